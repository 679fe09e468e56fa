"""The one reader of environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Settings", "load_settings"]


@dataclass(frozen=True)
class Settings:
    """What a user may set from outside; its repr leaves out what is secret, so it is safe to print.

    ``data_folder`` (``BLOOM_LENS_DATA``) holds jobs and their results; it is created when first needed.
    ``precision`` (``BLOOM_LENS_PRECISION``) is empty for the type that suits the processor, or ``int8``.
    ``api_key`` (``BLOOM_LENS_API_KEY``) is sent to the server of a model named ``openai:…``, if there is one.
    """

    data_folder: Path = Path(".data")
    precision: str = ""
    api_key: str = field(default="", repr=False)


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of ``environment`` (by default the process's own); an unset or blank variable gives the default."""
    environment = os.environ if environment is None else environment
    return Settings(
        data_folder=Path(environment.get("BLOOM_LENS_DATA", "").strip() or ".data").expanduser(),
        precision=environment.get("BLOOM_LENS_PRECISION", "").strip().lower(),
        api_key=environment.get("BLOOM_LENS_API_KEY", "").strip(),
    )
