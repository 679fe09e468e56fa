"""Bloom Lens: language and named entities of texts, by a local BLOOM model behind LangChain chains.

``load`` a model once, then call ``detect_language``, ``find_entities`` or ``analyse``. Importing this package is
cheap: torch and transformers load on first use.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chains.analysis import analyse
    from chains.entities import entity_chain, find_entities
    from chains.errors import ChainError
    from chains.language import detect_language, language_chain
    from chains.registry import load
    from chains.schema import Analysis, Detection, Entity, Mention, Recognition

# Read when torch loads: threads that wait for each other sleep instead of spinning. On a machine with other work to do,
# a browser for one, that is twice as fast (benchmarks/RESULTS.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = [
    "Analysis", "ChainError", "Detection", "Entity", "Mention", "Recognition",
    "analyse", "detect_language", "entity_chain", "find_entities", "language_chain", "load",
]  # fmt: skip

_HOMES = {
    "analyse": "analysis", "ChainError": "errors", "detect_language": "language", "language_chain": "language",
    "entity_chain": "entities", "find_entities": "entities", "load": "registry",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public name, from the module that holds it."""
    if name not in __all__:
        raise AttributeError(f"module 'chains' has no attribute {name!r}")
    return getattr(import_module(f"chains.{_HOMES.get(name, 'schema')}"), name)
