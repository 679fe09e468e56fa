"""Both chains over many texts: a text that fails is reported and costs the others nothing."""

from collections.abc import Sequence

from chains.entities import find_entities, find_entities_batch
from chains.errors import ReplyError, TaskError
from chains.language import detect_language, detect_languages
from chains.registry import Model
from chains.schema import Analysis

__all__ = ["analyse"]


def analyse(texts: Sequence[str], model: Model, *, shots: int | None = None) -> list[Analysis]:
    """Language and entities of each text, in order; ``shots`` defaults to the model's own number.

    All texts run together. Only if one of them fails, each runs alone, so that its ``error`` is its own.

    Raises:
        ModelError: the model cannot answer any text, for instance because its server is down.
    """
    try:
        detections = detect_languages(texts, model, shots=shots)
        recognitions = find_entities_batch(texts, model, shots=shots)
    except (ReplyError, TaskError):
        return [_analyse_alone(text, model, shots) for text in texts]
    return [
        Analysis(text=text, detection=detection, recognition=recognition, model=model.version)
        for text, detection, recognition in zip(texts, detections, recognitions, strict=True)
    ]


def _analyse_alone(text: str, model: Model, shots: int | None) -> Analysis:
    try:
        detection = detect_language(text, model, shots=shots)
        recognition = find_entities(text, model, shots=shots)
    except (ReplyError, TaskError) as error:
        return Analysis(text=text, error=str(error), model=model.version)
    return Analysis(text=text, detection=detection, recognition=recognition, model=model.version)
