import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from chains import versions
from chains.errors import TaskError
from chains.prompts import load_task, write_task
from chains.versions import SHIPPED, Versions

TASK = load_task("language").model_copy(update={"instruction": "Say the language."})


@pytest.fixture
def store(tmp_path):
    return Versions(tmp_path / "tasks")


def test_each_save_is_a_version_and_older_ones_stay(store):
    assert store.list("language") == []
    first = store.save(TASK)
    second = store.save(TASK.model_copy(update={"instruction": "Say it."}))
    assert (first.version, second.version) == (2, 3)
    assert [saved.number for saved in store.list("language")] == [3, 2]
    assert store.load("language", 2) == first and store.load("language", 3) == second
    assert store.load("language", SHIPPED) == load_task("language")
    assert store.list("entities") == []


def test_many_who_save_at_once_get_versions_of_their_own(store):
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda _: store.save(TASK).version, range(40)))
    assert sorted(saved) == list(range(2, 42))
    assert all(store.load("language", number).version == number for number in saved)


def test_a_version_that_is_not_there_is_an_error(store):
    with pytest.raises(TaskError, match="no version 7 of the task 'language'"):
        store.load("language", 7)


def test_a_file_changed_by_hand_is_checked_again(store):
    store.save(TASK)
    file = store.folder / "language-2.yaml"
    file.write_text("name: [")
    with pytest.raises(TaskError, match="is not YAML"):
        store.load("language", 2)
    file.write_text(write_task(load_task("entities")))
    with pytest.raises(TaskError, match="is of kind 'entities'"):
        store.load("language", 2)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "tasks").write_text("a file")
    with pytest.raises(TaskError, match="Cannot write a file in .*BLOOM_LENS_DATA"):
        Versions(tmp_path / "tasks").save(TASK)


def test_there_is_an_end_to_versions(store, monkeypatch):
    monkeypatch.setattr(versions, "MAX_VERSIONS", 1)
    store.save(TASK)
    with pytest.raises(TaskError, match="There are 1 versions"):
        store.save(TASK)
    assert os.listdir(store.folder) == ["language-2.yaml"]
