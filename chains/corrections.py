"""Answers by hand: marked in a text, checked against it, and put into the form of a shot."""

import textwrap
from collections.abc import Iterable

import yaml

from chains.errors import CorrectionError
from chains.prompts import Shot, Task, Tasks, write_reply
from chains.schema import UNKNOWN, Correction, Entity, Gold
from chains.spans import align, list_mentions

__all__ = ["as_shot", "check_correction", "mark", "write_shot"]


def mark(text: str, entities: Iterable[Entity], start: int, end: int, type_: str | None) -> tuple[Entity, ...]:
    """``entities`` with ``text[start:end]`` as one of that type, or with ``None`` as none, in reading order.

    White space at its edges is left out, and what overlaps it gives way; nothing but white space changes nothing.

    Raises:
        CorrectionError: it does not lie in the text.
    """
    if not 0 <= start <= end <= len(text):
        raise CorrectionError(
            f"A name from {start} to {end} does not lie in its text of {len(text)} characters: mark it again."
        )
    start += len(text[start:end]) - len(text[start:end].lstrip())
    end = start + len(text[start:end].rstrip())
    if start == end:
        return tuple(entities)
    kept = [entity for entity in entities if entity.end <= start or end <= entity.start]
    if type_ is not None:
        kept.append(Entity(text=text[start:end], type=type_, start=start, end=end))
    return tuple(sorted(kept, key=lambda entity: entity.start))


def check_correction(text: str, correction: Correction, tasks: Tasks) -> Correction:
    """The correction with its entities in reading order.

    Raises:
        CorrectionError: its language or a type is none of the task files', an entity is not what stands in ``text`` at
            its place, or two of them overlap.
    """
    languages = [*tasks.language.labels, UNKNOWN]
    if correction.language not in languages:
        raise CorrectionError(f"The language {correction.language!r} is none of {', '.join(languages)}.")
    types = tasks.entities.labels
    entities = sorted(correction.entities, key=lambda entity: entity.start)
    place = 0
    for entity in entities:
        if entity.type not in types:
            raise CorrectionError(f"The type {entity.type!r} of {entity.text!r} is none of {', '.join(types)}.")
        if not 0 <= entity.start < entity.end or text[entity.start : entity.end] != entity.text:
            raise CorrectionError(
                f"The name {entity.text!r} is not what stands from {entity.start} to {entity.end} in its text: "
                "offsets count code points, and the end is exclusive."
            )
        if entity.start < place:
            raise CorrectionError(f"The name {entity.text!r} overlaps the one before it: names must not overlap.")
        place = entity.end
    return Correction(language=correction.language, entities=tuple(entities))


def as_shot(task: Task, answer: Gold) -> Shot:
    """The few-shot example that shows ``answer`` to a model, as the task's file would hold it.

    Raises:
        CorrectionError: the task's replies cannot say this: it has no word for the language or a type, or a name is
            marked at some of its places only.
    """
    if task.kind == "language":
        word = task.labels.get(answer.language, task.out_of_scope if answer.language == UNKNOWN else None)
        if word is None:
            raise CorrectionError(f"The task '{task.name}' has no word for the language {answer.language!r}.")
        return Shot(text=answer.text, reply=word)
    if missing := {entity.type for entity in answer.entities} - set(task.labels):
        raise CorrectionError(f"The task '{task.name}' has no word for the type {min(missing)!r}.")
    mentions = list_mentions(answer.entities)
    found, _ = align(answer.text, mentions)
    if different := set(found) ^ set(answer.entities):
        name = min(different, key=lambda entity: entity.start)
        raise CorrectionError(
            f"A shot cannot say this: a reply that names {name.text!r} means every place where it stands as a whole "
            "word. Mark all of them, or take another row."
        )
    return Shot(
        text=answer.text, reply=write_reply([(m.text, task.labels[m.type]) for m in mentions], task.empty or "")
    )


def write_shot(shot: Shot) -> str:
    """The lines of a shot as they stand under ``shots:`` in a task file."""
    lines = yaml.safe_dump([shot.model_dump()], allow_unicode=True, sort_keys=False, width=10_000)
    return textwrap.indent(lines, "  ", lambda line: True)
