"""The one reader of environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings", "load_settings"]


@dataclass(frozen=True)
class Settings:
    """What a user may set from outside; nothing in it is secret, so its repr is safe to print.

    ``data_folder`` (``BLOOM_LENS_DATA``) holds jobs and their results; it is created when first needed.
    """

    data_folder: Path = Path(".data")


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of ``environment`` (by default the process's own); an unset or blank variable gives the default."""
    environment = os.environ if environment is None else environment
    folder = environment.get("BLOOM_LENS_DATA", "").strip()
    return Settings(data_folder=Path(folder).expanduser()) if folder else Settings()
