"""The one reader of environment variables."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chains.errors import ChainError

__all__ = ["Settings", "load_settings"]

# Streamlit's own place for what must not be in the repository: on Community Cloud, the app's settings.
SECRETS = Path(".streamlit") / "secrets.toml"


@dataclass(frozen=True)
class Settings:
    """What a user may set from outside; its repr leaves out what is secret, so it is safe to print.

    ``data_folder`` (``BLOOM_LENS_DATA``) holds converted models, files of jobs and, unless ``database``
    (``BLOOM_LENS_DATABASE``, or that name in .streamlit/secrets.toml) is the URL of another one, the database of jobs;
    it is created when first needed. ``precision`` (``BLOOM_LENS_PRECISION``) is empty for the type that suits the
    processor, or ``int8``. ``api_key`` (``BLOOM_LENS_API_KEY``) is sent to the server of a model named ``openai:…``.
    """

    data_folder: Path = Path(".data")
    database: str = field(default="", repr=False)
    precision: str = ""
    api_key: str = field(default="", repr=False)

    @property
    def database_url(self) -> str:
        """Where jobs are stored, for SQLAlchemy: by default SQLite in the data folder."""
        return self.database or f"sqlite:///{self.data_folder / 'jobs.db'}"


def load_settings(environment: Mapping[str, str] | None = None, secrets: Path = SECRETS) -> Settings:
    """The settings of ``environment`` (by default the process's own); an unset or blank variable gives the default.

    Raises:
        ChainError: ``secrets``, where the database may stand too, is no TOML.
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
    return Settings(
        data_folder=Path(read("BLOOM_LENS_DATA") or ".data").expanduser(),
        database=database,
        precision=read("BLOOM_LENS_PRECISION").lower(),
        api_key=read("BLOOM_LENS_API_KEY"),
    )
