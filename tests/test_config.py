from pathlib import Path

import pytest

from chains.config import Settings, load_settings
from chains.errors import ChainError


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


def test_tokens_and_rate_are_read():
    digests = "a" * 64, "B" * 64
    environment = {"BLOOM_LENS_TOKENS": f"ana:{digests[0]}, bo:{digests[1]}", "BLOOM_LENS_RATE": "60"}
    with pytest.raises(ChainError, match="BLOOM_LENS_SHARED is not 1"):
        load_settings(environment)
    settings = load_settings(environment | {"BLOOM_LENS_SHARED": "1"})
    assert settings.tokens == {"ana": "a" * 64, "bo": "b" * 64} and settings.requests_per_minute == 60
    assert "aaaa" not in repr(settings)


@pytest.mark.parametrize("words", ["my-token", "ana:my-token", f"ana:{'a' * 64},ana:{'b' * 64}", f"ana:{'a' * 63}"])
def test_tokens_that_cannot_be_read_are_an_error_that_does_not_show_them(words):
    with pytest.raises(ChainError, match="expected 'name:hash'") as caught:
        load_settings({"BLOOM_LENS_TOKENS": words})
    assert "my-token" not in str(caught.value)


def test_a_rate_that_is_no_number_is_an_error():
    with pytest.raises(ChainError, match="BLOOM_LENS_RATE is 'fast': expected a number"):
        load_settings({"BLOOM_LENS_RATE": "fast"})


@pytest.mark.parametrize(("word", "is_on"), [("", False), ("0", False), ("1", True), (" 1 ", True)])
def test_unpinned_models_are_allowed_by_a_switch(word, is_on):
    assert load_settings({"BLOOM_LENS_UNPINNED": word}).allows_unpinned is is_on


def test_a_switch_that_is_neither_on_nor_off_is_an_error():
    with pytest.raises(ChainError, match="BLOOM_LENS_UNPINNED is 'yes': expected 1"):
        load_settings({"BLOOM_LENS_UNPINNED": "yes"})


def test_limits_are_those_of_a_shared_deployment_or_none():
    alone, shared = load_settings({}), load_settings({"BLOOM_LENS_SHARED": "1", "BLOOM_LENS_MAX_ROWS": "7"})
    assert not alone.is_shared and (alone.requests_per_minute, alone.max_jobs, alone.max_rows) == (0, 0, 0)
    assert shared.is_shared and (shared.requests_per_minute, shared.max_jobs, shared.max_rows) == (600, 4, 7)
    assert load_settings({"BLOOM_LENS_SHARED": "1", "BLOOM_LENS_MAX_JOBS": "0"}).max_jobs == 0
