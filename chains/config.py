"""The one reader of environment variables."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chains.errors import ChainError

__all__ = ["MAX_CHARACTERS", "Settings", "load_settings"]

# Streamlit's own place for what must not be in the repository: on Community Cloud, the app's settings.
SECRETS = Path(".streamlit") / "secrets.toml"
MAX_CHARACTERS = 20_000  # of a text that its caller waits for, by REST or on a shared dashboard
# What each caller may do where many share one machine, unless the settings say otherwise.
SHARED_REQUESTS_PER_MINUTE, SHARED_JOBS, SHARED_ROWS = 600, 4, 1_000_000


@dataclass(frozen=True)
class Settings:
    """What a user may set from outside; its repr leaves out what is secret, so it is safe to print.

    ``data_folder`` (``BLOOM_LENS_DATA``) holds converted models, files of jobs and, unless ``database``
    (``BLOOM_LENS_DATABASE``, or that name in .streamlit/secrets.toml) is the URL of another one, the database of jobs;
    it is created when first needed. ``precision`` (``BLOOM_LENS_PRECISION``) is empty for the type that suits the
    processor, or ``int8``. ``allows_unpinned`` (``BLOOM_LENS_UNPINNED``) lets models of which no commit is named be
    downloaded from the Hub. ``api_key`` (``BLOOM_LENS_API_KEY``) is sent to the server of a model named ``openai:…``.

    ``is_shared`` (``BLOOM_LENS_SHARED``) is the one switch for a deployment that others use: REST then asks for tokens,
    the dashboard for a log-in, and a job is its owner's alone. ``tokens`` (``BLOOM_LENS_TOKENS``) are the SHA-256 of
    each REST caller's token by the caller's name. ``model`` (``BLOOM_LENS_MODEL``) is the name of the model that
    answers REST and a shared dashboard. What each caller may do, 0 being any number: ``requests_per_minute``
    (``BLOOM_LENS_RATE``) to REST in the long run, ``max_jobs`` (``BLOOM_LENS_MAX_JOBS``) that wait or run, ``max_rows``
    (``BLOOM_LENS_MAX_ROWS``) in a file.
    """

    data_folder: Path = Path(".data")
    database: str = field(default="", repr=False)
    precision: str = ""
    allows_unpinned: bool = False
    api_key: str = field(default="", repr=False)
    model: str = "embedded"
    is_shared: bool = False
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    requests_per_minute: int = 0
    max_jobs: int = 0
    max_rows: int = 0

    @property
    def database_url(self) -> str:
        """Where jobs are stored, for SQLAlchemy: by default SQLite in the data folder."""
        return self.database or f"sqlite:///{self.data_folder / 'jobs.db'}"


def load_settings(environment: Mapping[str, str] | None = None, secrets: Path = SECRETS) -> Settings:
    """The settings of ``environment`` (by default the process's own); an unset or blank variable gives the default.

    Raises:
        ChainError: ``secrets``, where the database may stand too, is no TOML; or a variable is not what it should be.
    """
    environment = os.environ if environment is None else environment

    def read(name: str) -> str:
        return environment.get(name, "").strip()

    database = read("BLOOM_LENS_DATABASE")
    if not database and secrets.is_file():
        try:
            database = str(tomllib.loads(secrets.read_text(encoding="utf-8")).get("BLOOM_LENS_DATABASE", "")).strip()
        except ValueError as error:
            raise ChainError(f"Cannot read {str(secrets)!r} as TOML: {error}. Mend it, or remove it.") from error
    # The way hosts write it, and the driver that requirements.txt brings.
    for prefix in ("postgres://", "postgresql://"):
        if database.startswith(prefix):
            database = "postgresql+psycopg://" + database.removeprefix(prefix)
    is_shared = _read_switch("BLOOM_LENS_SHARED", read("BLOOM_LENS_SHARED"))
    tokens = _read_tokens(read("BLOOM_LENS_TOKENS"))
    if tokens and not is_shared:
        raise ChainError(
            "BLOOM_LENS_TOKENS is set and BLOOM_LENS_SHARED is not 1: nobody would be asked for a token. Set both (the "
            "dashboard then asks for a log-in too), or neither."
        )

    def read_number(name: str, default: int) -> int:
        return _read_number(name, read(name), default if is_shared else 0)

    return Settings(
        data_folder=Path(read("BLOOM_LENS_DATA") or ".data").expanduser(),
        database=database,
        precision=read("BLOOM_LENS_PRECISION").lower(),
        allows_unpinned=_read_switch("BLOOM_LENS_UNPINNED", read("BLOOM_LENS_UNPINNED")),
        api_key=read("BLOOM_LENS_API_KEY"),
        model=read("BLOOM_LENS_MODEL") or "embedded",
        is_shared=is_shared,
        tokens=tokens,
        requests_per_minute=read_number("BLOOM_LENS_RATE", SHARED_REQUESTS_PER_MINUTE),
        max_jobs=read_number("BLOOM_LENS_MAX_JOBS", SHARED_JOBS),
        max_rows=read_number("BLOOM_LENS_MAX_ROWS", SHARED_ROWS),
    )


def _read_switch(name: str, word: str) -> bool:
    if word not in {"", "0", "1"}:
        raise ChainError(f"{name} is {word!r}: expected 1 for yes, or 0 or nothing for no.")
    return word == "1"


def _read_tokens(words: str) -> dict[str, str]:
    """``ana:<64 hexadecimal digits>`` for each caller, separated by commas or white space."""
    found = [re.fullmatch(r"([\w.@-]{1,64}):([0-9a-fA-F]{64})", word) for word in re.split(r"[,\s]+", words) if word]
    tokens = {match[1]: match[2].lower() for match in found if match}
    if len(tokens) < len(found):
        # Not the value: somebody may have written a token where its hash should be.
        raise ChainError(
            "BLOOM_LENS_TOKENS is not as it should be: expected 'name:hash', separated by commas, each name once and "
            'each hash the SHA-256 of that caller\'s token in hexadecimal. printf %s "$TOKEN" | sha256sum makes one.'
        )
    return tokens


def _read_number(name: str, word: str, default: int) -> int:
    if not re.fullmatch(r"[0-9]{0,9}", word):
        raise ChainError(f"{name} is {word!r}: expected a number, or 0 for any number.")
    return int(word) if word else default
