"""A shared dashboard: who is let in, whose jobs are seen, what is asked for in vain."""

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import accounts
from chains.config import MAX_CHARACTERS
from tests.test_app import app, detect, plain, press, upload, wait_for_job, words  # noqa: F401

AUTH = {
    "redirect_uri": "http://localhost:8501/oauth2callback",
    "cookie_secret": "c" * 32,
    "client_id": "lens",
    "client_secret": "s",
    "server_metadata_url": "http://localhost:1/.well-known/openid-configuration",
}


def user(name, issuer="https://id.example"):
    return {"is_logged_in": True, "iss": issuer, "sub": name, "email": f"{name}@example.org"}


@pytest.fixture
def shared(app, monkeypatch):  # noqa: F811
    """``shared(user)``: the dashboard of a shared deployment as this user sees it."""
    monkeypatch.setenv("BLOOM_LENS_SHARED", "1")
    st.cache_resource.clear()  # the jobs are set up with the limits of their deployment

    def visit(who=None, auth=AUTH):
        page = AppTest.from_file("../streamlit_app.py", default_timeout=30)
        page.secrets["auth"] = auth
        page.user = who or {"is_logged_in": False}
        page.run()
        assert not page.exception
        return page

    return visit


def test_on_a_laptop_nobody_logs_in(app):  # noqa: F811
    assert app.title[0].value.startswith("Which language") and not [b for b in app.button if "Log" in b.label]


@pytest.mark.parametrize("path", [None, "pages/batch.py", "pages/charts.py"])
def test_who_is_not_logged_in_sees_the_log_in_and_nothing_else(shared, path):
    page = shared()
    if path:
        page.switch_page(path).run()
    assert [button.label for button in page.button] == ["Log in"]
    assert not page.text_area and not page.file_uploader and not page.sidebar.children and not page.exception


def test_log_in_and_log_out_are_streamlits_own(shared, monkeypatch):
    called = []
    monkeypatch.setattr(st, "login", lambda provider: called.append(provider))
    monkeypatch.setattr(st, "logout", lambda: called.append("out"))
    press(shared(), "Log in")
    two = {name: AUTH[name] for name in accounts.OF_ALL} | {"google": AUTH, "okta": AUTH}
    press(shared(auth=two), "Log in with okta")
    page = shared(user("ana"))
    assert page.text_area
    press(page, "Log out")
    assert called == [None, "okta", "out"]


@pytest.mark.parametrize("missing", list(AUTH))
def test_a_missing_secret_is_named(shared, missing):
    page = shared(auth={name: value for name, value in AUTH.items() if name != missing})
    assert f"lacks auth.{missing}." in plain(page.error) and not page.button


def test_secrets_without_a_log_in_are_an_error_in_words(shared):
    page = shared(auth={})
    assert "Nobody can log in" in plain(page.error) and "auth.redirect_uri, auth.cookie_secret" in plain(page.error)
    assert not page.button


def test_a_job_is_seen_by_its_owner_alone(shared):
    ana = upload(shared(user("ana")), b"text\nAna in Lyon\n")
    wait_for_job(press(ana, "Start"))
    id = ana.query_params["job"]
    assert "for you, once you are logged in" in words(ana.markdown)
    for other in (user("bo"), user("ana", "https://other.example")):
        page = shared(other)
        page.query_params["job"] = id
        page.switch_page("pages/batch.py").run()
        assert "There is no job" in plain(page.error) and "mine" not in plain(page.markdown)
        page.query_params.clear()
        page.switch_page("pages/charts.py").run()
        assert "there is none yet" in plain(page.info)
    again = shared(user("ana")).switch_page("pages/batch.py").run()
    assert "mine" in plain(again.markdown)


def test_a_user_without_an_id_has_no_jobs(shared):
    page = shared({"is_logged_in": True, "email": "ana@example.org"})
    page.switch_page("pages/batch.py").run()
    assert "did not say who you are" in plain(page.error) and not page.file_uploader


def test_all_use_the_model_of_the_deployment(shared):
    [picker] = shared(user("ana")).sidebar.selectbox
    assert [option.split(" ")[0] for option in picker.options] == ["embedded"]


def test_a_text_that_is_too_long_is_an_error_in_words(shared):
    page = detect(shared(user("ana")), "a" * (MAX_CHARACTERS + 1))
    assert "The text has 20,001 characters: expected at most 20,000" in plain(page.error)
    assert not detect(page, "a" * MAX_CHARACTERS).error


def test_a_file_of_too_many_rows_is_an_error_in_words(shared, monkeypatch):
    monkeypatch.setenv("BLOOM_LENS_MAX_ROWS", "2")
    st.cache_resource.clear()
    page = press(upload(shared(user("ana")), b"text\na\nb\nc\n"), "Start")
    assert "has 3 rows: expected at most 2" in plain(page.error)
