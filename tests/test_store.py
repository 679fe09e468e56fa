import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa

from chains import store as store_module
from chains.errors import QuotaError, StoreError
from chains.store import Job, Store

JOB = Job(
    id="a", name="my file", source="f00d", path="", layout="{}", text_column="text", model="fake", shots=None, total=5,
    created="2026-01-01T00:00:00.000000+00:00",
)  # fmt: skip
ONE, TWO, THREE = (bytes([number] * 16) for number in (1, 2, 3))


@pytest.fixture
def store(database_url):
    store = Store(database_url)
    yield store
    store.close()


def commit(store, job, *, worker="me", keys=(), answers=None, failures=None, mended=(), **progress):
    return store.commit(
        job, worker, keys=list(keys), answers=answers or {}, failures=failures or {}, mended=mended, progress=progress
    )


def claimed(store, job=JOB, worker="me"):
    store.add_job(job)
    assert store.change_job(job.id, worker=worker, state="running")
    return store.get_job(job.id)


def count(store, table):
    with store.engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(store_module.METADATA.tables[table]))


def test_a_job_comes_back_as_it_was_stored(store):
    job = replace(JOB, name="naïve 😀 \"'\\", shots=3, owner="ana", error="oops", seconds=1.5)
    store.add_job(job)
    assert store.get_job("a") == job
    assert store.get_job("b") is None


def test_jobs_are_listed_newest_first_and_by_what_is_asked(store):
    jobs = [replace(JOB, id=id, created=f"2026-01-0{day}", owner=owner) for id, day, owner in
            (("a", 1, ""), ("b", 3, "ana"), ("c", 2, "bob"))]  # fmt: skip
    for job in jobs:
        store.add_job(job)
    store.change_job("c", state="done")
    assert [job.id for job in store.list_jobs()] == ["b", "c", "a"]
    assert [job.id for job in store.list_jobs(owner="ana")] == ["b"]
    assert [job.id for job in store.list_jobs(owner="")] == ["a"]
    assert [job.id for job in store.list_jobs(states=("waiting",))] == ["b", "a"]
    assert [job.id for job in store.list_jobs(model="fake", shots=None, owner="bob")] == ["c"]
    assert store.list_jobs(model="other") == []


def test_an_owner_has_so_many_jobs_that_wait_or_run(store):
    for id, owner, state in (("a", "ana", "done"), ("b", "ana", "running"), ("c", "bob", "waiting")):
        store.add_job(replace(JOB, id=id, owner=owner, state=state), most=2)
    store.add_job(replace(JOB, id="d", owner="ana"), most=2)
    with pytest.raises(QuotaError, match="You have 2 jobs that wait or run"):
        store.add_job(replace(JOB, id="e", owner="ana"), most=2)
    assert store.get_job("e") is None
    store.change_job("d", state="stopped")
    store.add_job(replace(JOB, id="e", owner="ana"), most=2)


def test_a_change_needs_what_it_expects(store):
    store.add_job(JOB)
    assert not store.change_job("a", expected={"state": "running"}, state="stopped")
    assert store.change_job("a", expected={"state": ("waiting", "running"), "worker": ""}, state="stopped")
    assert store.get_job("a").state == "stopped"
    assert not store.change_job("b", state="stopped")


def test_words_that_no_database_holds_are_mended(store):
    store.add_job(JOB)
    store.change_job("a", error="NUL \0 and half \ud83d")
    assert store.get_job("a").error == "NUL \ufffd and half ?"


@pytest.mark.parametrize("size", [0, 1, 10, 11])
def test_a_file_comes_back_byte_for_byte_and_is_stored_once(store, tmp_path, monkeypatch, size):
    monkeypatch.setattr(store_module, "PIECE_BYTES", 5)
    file = tmp_path / "file"
    file.write_bytes(bytes(range(size)))
    store.add_job(JOB, file)
    store.add_job(replace(JOB, id="b"), file)
    assert b"".join(store.read_source("f00d")) == file.read_bytes()
    assert count(store, "pieces") == -(-size // 5)
    assert list(store.read_source("other")) == []


def test_a_chunk_is_stored_as_a_whole(store):
    job = claimed(store)
    answers = {ONE: {"language": "french"}, TWO: {"language": None, "entities": ["\0 é \ud83d"]}}
    assert commit(store, job, keys=[ONE, TWO, ONE], answers=answers, failures={3: "no reply\0"}, done=4, seconds=2.0)
    assert store.records([ONE, TWO, THREE]) == answers
    assert store.known([TWO, THREE]) == {TWO}
    assert store.failures("a") == {3: "no reply\ufffd"}
    job = store.get_job("a")
    assert (job.done, job.failed, job.seconds) == (4, 1, 2.0)


@pytest.mark.parametrize("stale", [{"done": 1}, {"id": "gone"}])
def test_a_chunk_of_a_job_that_went_on_elsewhere_changes_nothing(store, stale):
    job = replace(claimed(store), **stale)
    assert not commit(store, job, keys=[ONE], answers={ONE: {}}, failures={1: "x"}, done=2)
    assert not commit(store, store.get_job("a"), worker="other", keys=[ONE], answers={ONE: {}}, done=2)
    assert (store.records([ONE]), store.failures("a"), store.get_job("a").done) == ({}, {}, 0)


def test_a_chunk_that_counts_on_an_answer_that_is_gone_changes_nothing(store):
    job = claimed(store)
    assert not commit(store, job, keys=[ONE, TWO], answers={ONE: {}}, done=2)
    assert (store.records([ONE]), store.get_job("a").done) == ({}, 0)


def test_the_first_answer_to_a_text_stays(store):
    commit(store, claimed(store), keys=[ONE], answers={ONE: {"language": "french"}}, done=1)
    commit(store, claimed(store, replace(JOB, id="b")), keys=[ONE], answers={ONE: {"language": "other"}}, done=1)
    assert store.records([ONE]) == {ONE: {"language": "french"}}


def test_failures_are_listed_by_row_and_mended(store):
    job = claimed(store)
    commit(store, job, failures={number: f"error {number}" for number in (5, 3, 1)}, done=5)
    assert list(store.failures("a")) == [1, 3, 5]
    assert list(store.failures("a", after=1, before=4)) == [3]
    assert list(store.failures("a", after=1, limit=1)) == [3]
    job = store.get_job("a")
    assert commit(store, job, keys=[ONE], answers={ONE: {}}, failures={3: "again"}, mended=(1, 3))
    assert store.failures("a") == {3: "again", 5: "error 5"}
    assert store.get_job("a").failed == 2


def test_the_last_correction_of_a_row_holds_until_it_is_undone(store):
    store.add_job(JOB)
    store.add_job(replace(JOB, id="b"))
    for row, language in ((5, "french"), (2, "spanish"), (5, "unknown")):
        assert store.add_correction("a", row, {"language": language, "entities": [{"text": "\0 é 😀"}]})
    assert list(store.corrections("a")) == [2, 5]
    assert store.corrections("a")[5] == {"language": "unknown", "entities": [{"text": "\0 é 😀"}]}
    assert store.corrections("b") == {}
    assert store.undo_correction("a", 5)
    assert store.corrections("a")[5]["language"] == "french"
    assert store.undo_correction("a", 5)
    assert list(store.corrections("a")) == [2]
    assert not store.undo_correction("a", 5)
    assert not store.undo_correction("a", 1)


def test_corrections_go_with_their_job(store):
    store.add_job(JOB)
    assert store.add_correction("a", 1, {"language": "french"})
    store.delete_job("a")
    assert count(store, "corrections") == 0
    assert not store.add_correction("a", 1, {"language": "french"})
    assert not store.undo_correction("a", 1)


def test_people_who_correct_a_row_at_once_lose_nothing(store):
    store.add_job(JOB)
    threads = [
        threading.Thread(target=lambda: [store.add_correction("a", 1, {"number": number}) for number in range(5)])
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(store, "corrections") == 30
    assert store.corrections("a") == {1: {"number": 4}}


def test_a_database_of_the_first_version_gets_its_corrections(database_url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", store_module.MIGRATIONS[:1])
        store = Store(database_url)
        store.add_job(JOB)
        assert "corrections" not in sa.inspect(store.engine).get_table_names()
        store.close()
    store = Store(database_url)
    assert store.add_correction("a", 1, {"language": "french"})
    assert store.corrections("a") == {1: {"language": "french"}}
    store.close()


def test_a_deleted_job_takes_what_only_it_used(store, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    store.add_job(JOB, file)
    store.add_job(replace(JOB, id="b"), file)
    for id, keys in (("a", [ONE, TWO]), ("b", [TWO, THREE])):
        store.change_job(id, worker="me")
        answers = {key: {} for key in keys}
        assert commit(store, store.get_job(id), keys=keys, answers=answers, failures={1: "x"}, done=3)
    store.delete_job("a")
    assert store.known([ONE, TWO, THREE]) == {TWO, THREE}
    assert (count(store, "pieces"), count(store, "failures"), store.has_source("f00d")) == (1, 1, True)
    store.delete_job("b")
    assert [count(store, table) for table in ("jobs", "pieces", "answers", "uses", "failures")] == [0] * 5
    store.delete_job("b")


def test_more_keys_than_a_statement_takes(store):
    keys = [number.to_bytes(16, "big") for number in range(25_000)]
    assert commit(store, claimed(store), keys=keys, answers={key: {} for key in keys}, done=5)
    assert store.known(keys) == set(keys)
    assert len(store.records(keys)) == 25_000
    store.delete_job("a")
    assert count(store, "answers") == 0


def test_a_heartbeat_reaches_all_jobs_of_a_worker(store):
    claimed(store)
    claimed(store, replace(JOB, id="b"))
    claimed(store, replace(JOB, id="c"), worker="other")
    store.beat("me", 12.5)
    assert {job.id: job.heartbeat for job in store.list_jobs()} == {"a": 12.5, "b": 12.5, "c": 0.0}


def test_writers_in_many_threads_wait_for_each_other(store):
    for number in range(8):
        claimed(store, replace(JOB, id=str(number)))

    def work(id):
        for step in range(10):
            job = store.get_job(id)
            key = bytes([100 + int(id), step]) * 8
            assert commit(store, job, keys=[key, ONE], answers={key: {}, ONE: {}}, done=step + 1)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {job.done for job in store.list_jobs()} == {10}
    assert count(store, "answers") == 81


def test_migrations_run_once_and_in_order(database_url, monkeypatch):
    Store(database_url).close()
    ran = []
    added = [lambda connection: ran.append(2), lambda connection: ran.append(3)]
    monkeypatch.setattr(store_module, "MIGRATIONS", [*store_module.MIGRATIONS, *added])
    for _ in range(2):
        Store(database_url).close()
    assert ran == [2, 3]


def test_a_migration_that_fails_leaves_the_database_as_it_was(database_url, monkeypatch):
    def fail(connection):
        connection.execute(sa.text("CREATE TABLE half (id INTEGER)"))
        raise RuntimeError("no")

    store = Store(database_url)
    store.add_job(JOB)
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", [*store_module.MIGRATIONS, fail])
        with pytest.raises(RuntimeError, match="no"):
            Store(database_url)
    store = Store(database_url)
    assert store.get_job("a") == JOB
    assert "half" not in sa.inspect(store.engine).get_table_names()
    store.close()


def test_processes_that_open_a_new_database_at_once_all_succeed(database_url):
    problems = []

    def open_store():
        try:
            Store(database_url).close()
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=open_store) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_database_of_a_later_version_is_refused(database_url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", [*store_module.MIGRATIONS, lambda connection: None])
        Store(database_url).close()
    with pytest.raises(StoreError, match="is of a later version of Bloom Lens"):
        Store(database_url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is no database URL"),
        ("oracle+nothing://u:secret@h/d", "is no database URL"),  # pragma: allowlist secret
        ("postgresql+psycopg://u:secret@127.0.0.1:1/d", "cannot be used: .*refused"),  # pragma: allowlist secret
        ("sqlite:////proc/nowhere/jobs.db", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_an_error_in_words_without_the_password(url, message):
    with pytest.raises(StoreError, match=message) as caught:
        Store(url)
    assert "secret" not in str(caught.value)


def test_postgresql_is_used_again_after_its_restart(postgres, postgres_url):
    store = Store(postgres_url)
    store.add_job(JOB)
    postgres.stop("immediate")
    with pytest.raises(StoreError, match="What was stored before is safe"):
        store.get_job("a")
    postgres.start()
    assert store.get_job("a") == JOB
    store.close()


def test_a_database_from_before_jobs_had_tasks_is_brought_up_to_date(database_url):
    old = Store(database_url)
    old.add_job(JOB)
    with old.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE jobs DROP COLUMN tasks"))
        connection.execute(sa.text("DELETE FROM migrations WHERE number > 1"))
    old.close()
    for _ in range(2):
        store = Store(database_url)
        assert store.get_job("a") == JOB
        store.close()
