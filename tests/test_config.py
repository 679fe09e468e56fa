from pathlib import Path

import pytest

from chains.config import Settings, load_settings


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, Path(".data")),
        ({"BLOOM_LENS_DATA": ""}, Path(".data")),
        ({"BLOOM_LENS_DATA": "  "}, Path(".data")),
        ({"BLOOM_LENS_DATA": "/srv/bloom lens"}, Path("/srv/bloom lens")),
        ({"BLOOM_LENS_DATA": "~/lens"}, Path.home() / "lens"),
    ],
)
def test_data_folder_comes_from_the_environment(environment, folder):
    assert load_settings(environment) == Settings(data_folder=folder)


@pytest.mark.parametrize(
    ("value", "precision"), [("", ""), (" ", ""), ("int8", "int8"), (" INT8 ", "int8"), ("fp4", "fp4")]
)
def test_precision_comes_from_the_environment(value, precision):
    assert load_settings({"BLOOM_LENS_PRECISION": value}) == Settings(precision=precision)


@pytest.mark.parametrize(("value", "key"), [("", ""), (" \n", ""), (" sk-1\n", "sk-1")])
def test_the_key_comes_from_the_environment_and_is_not_shown(value, key):
    settings = load_settings({"BLOOM_LENS_API_KEY": value})
    assert settings.api_key == key and "sk-1" not in repr(settings)


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("BLOOM_LENS_DATA", "elsewhere")
    assert load_settings().data_folder == Path("elsewhere")


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        Settings().data_folder = Path("other")
