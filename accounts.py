"""Who uses the dashboard: on a laptop nobody asks; a shared deployment lets in whom Streamlit's log-in (OIDC) knows.

https://docs.streamlit.io/develop/concepts/connections/authentication says what stands in ``[auth]`` of the secrets.
"""

from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

import ui
from chains.config import MAX_CHARACTERS, load_settings
from chains.errors import ChainError

__all__ = ["check_length", "is_let_in", "is_shared", "owner", "show_log_in", "show_log_out"]

OF_ALL = ("redirect_uri", "cookie_secret")
OF_PROVIDER = ("client_id", "client_secret", "server_metadata_url")


def is_shared() -> bool:
    """Whether others use this deployment too."""
    return load_settings().is_shared


def is_let_in() -> bool:
    """Whether this session may see the dashboard."""
    return not is_shared() or bool(st.user.get("is_logged_in"))


def owner() -> str:
    """Whose jobs this session sees: ``""`` on a laptop, else the user by who vouches for them and under which id there.

    Names and addresses change and may be given to others; these two together never are (OpenID Connect Core, 5.7).

    Raises:
        ChainError: the log-in did not tell them, or nobody is logged in.
    """
    if not is_shared():
        return ""
    issuer, subject = st.user.get("iss"), st.user.get("sub")
    if not (is_let_in() and issuer and subject):
        raise ChainError("The log-in did not say who you are (the claims iss and sub). Log out and in again.")
    return f"{issuer} {subject}"


def check_length(text: str) -> None:
    """Raise ``ChainError`` if the text is longer than a shared deployment answers at once."""
    if is_shared() and len(text) > MAX_CHARACTERS:
        raise ChainError(
            f"The text has {len(text):,} characters: expected at most {MAX_CHARACTERS:,} here. Cut it into parts, or "
            "make a file of them for the page Batch."
        )


def show_log_in() -> None:
    """The page of a session that is not let in."""
    st.title("Bloom Lens")
    try:
        providers = _providers()
    except ChainError as error:
        ui.show_error(error)
        return
    st.write("Log in to see in which language your texts are, and whom and what they name.")
    for provider in providers:
        label = f"Log in with {provider}" if provider else "Log in"
        st.button(label, key=f"log in {provider}", type="primary", on_click=st.login, args=(provider or None,))


def show_log_out() -> None:
    """In the sidebar, who is logged in and the way out; nothing on a laptop."""
    if is_shared():
        with st.sidebar:
            name = st.user.get("email") or st.user.get("name") or st.user.get("sub")
            st.button("Log out", key="log_out", help=f"You are logged in as {name}.", on_click=st.logout)


def _providers() -> list[str]:
    """The names of those who can vouch for users; ``""`` for the only one if it has none.

    Raises:
        ChainError: the secrets have no complete ``[auth]``.
    """
    try:
        auth: Mapping[str, Any] = st.secrets["auth"]
    except (KeyError, StreamlitSecretNotFoundError):
        auth = {}
    named = {name: value for name, value in auth.items() if isinstance(value, Mapping) and name != "client_kwargs"}
    missing = [f"auth.{key}" for key in OF_ALL if not auth.get(key)]
    for name, section in (named or {"": auth}).items():
        missing += [".".join(filter(None, ("auth", name, key))) for key in OF_PROVIDER if not section.get(key)]
    if missing:
        raise ChainError(
            "Nobody can log in: this deployment is shared (BLOOM_LENS_SHARED=1), and .streamlit/secrets.toml lacks "
            f"{', '.join(missing)}. Whoever runs it has to name an OpenID Connect provider there; the README says how."
        )
    return list(named) or [""]
