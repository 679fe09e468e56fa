"""Both chains over many texts: a text that fails is reported and costs the others nothing."""

from collections.abc import Sequence
from typing import Any

from chains.entities import find_entities, find_entities_batch
from chains.errors import ReplyError, TaskError
from chains.language import detect_language, detect_languages
from chains.prompts import Tasks
from chains.registry import Model
from chains.schema import Analysis

__all__ = ["analyse"]


def analyse(
    texts: Sequence[str], model: Model, *, shots: int | None = None, tasks: Tasks | None = None
) -> list[Analysis]:
    """Language and entities of each text, in order; ``shots`` defaults to the model's own number, ``tasks`` to the
    shipped ones.

    All texts run together. Only if one of them fails, each runs alone, so that its ``error`` is its own.

    Raises:
        ModelError: the model cannot answer any text, for instance because its server is down.
    """
    tasks = tasks or Tasks()
    try:
        detections = detect_languages(texts, model, task=tasks.language, shots=shots)
        recognitions = find_entities_batch(texts, model, task=tasks.entities, shots=shots)
    except (ReplyError, TaskError):
        return [_analyse_alone(text, model, shots, tasks) for text in texts]
    about: dict[str, Any] = {"model": model.version, "tasks": tasks.identities}
    return [
        Analysis(text=text, detection=detection, recognition=recognition, **about)
        for text, detection, recognition in zip(texts, detections, recognitions, strict=True)
    ]


def _analyse_alone(text: str, model: Model, shots: int | None, tasks: Tasks) -> Analysis:
    about: dict[str, Any] = {"text": text, "model": model.version, "tasks": tasks.identities}
    try:
        detection = detect_language(text, model, task=tasks.language, shots=shots)
        recognition = find_entities(text, model, task=tasks.entities, shots=shots)
    except (ReplyError, TaskError) as error:
        return Analysis(error=str(error), **about)
    return Analysis(detection=detection, recognition=recognition, **about)
