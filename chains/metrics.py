"""Scores of predicted against gold: languages by scikit-learn, entities by seqeval; and what kind of error each is.

Everywhere: a precision, recall or F1 whose denominator is zero is 0.0, and so is every score of an empty corpus.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from chains.schema import UNKNOWN, Entity

__all__ = [
    "ERROR_KINDS", "NO_ANSWER", "EntityError", "ErrorKind", "entity_scores", "find_errors", "find_overlap",
    "language_scores",
]  # fmt: skip

# What is predicted for a text that got no answer: it counts as wrong, and is no class of its own.
NO_ANSWER = ""
ErrorKind = Literal["missed", "spurious", "wrong type", "wrong boundary"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("missed", "spurious", "wrong type", "wrong boundary")


class EntityError(NamedTuple):
    """One thing that is wrong in an answer; a missed entity has no ``predicted``, a spurious one no ``gold``."""

    kind: ErrorKind
    gold: Entity | None
    predicted: Entity | None


def language_scores(gold: list[str], predicted: list[str]) -> dict[str, Any]:
    """Accuracy, micro, macro and weighted F1, scores ``per_class`` and the confusion matrix (rows are gold).

    Classes are those that occur in gold or predicted, ``unknown`` last; the macro mean runs over all of them.
    ``NO_ANSWER`` is none of them, but if it occurs the matrix has a last column for it.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold and {len(predicted)} predicted labels cannot be compared")
    labels = sorted({*gold, *predicted} - {NO_ANSWER}, key=lambda label: (label == UNKNOWN, label))
    columns = [*labels, *([NO_ANSWER] if NO_ANSWER in predicted else [])]
    pairs = Counter(zip(gold, predicted, strict=True))
    matrix = {"labels": columns, "rows": [[pairs[row, column] for column in columns] for row in labels]}
    if not labels:
        scores: dict[str, Any] = dict.fromkeys(("accuracy", "micro_f1", "macro_f1", "weighted_f1"), 0.0)
        return scores | {"per_class": {}, "confusion_matrix": matrix}
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    options: dict[str, Any] = {"labels": labels, "zero_division": 0.0}
    scores = {"accuracy": float(accuracy_score(gold, predicted))}
    for average in ("micro", "macro", "weighted"):
        scores[f"{average}_f1"] = float(f1_score(gold, predicted, average=average, **options))
    rows = zip(*precision_recall_fscore_support(gold, predicted, **options), strict=True)
    per_class = {label: _scores(*row) for label, row in zip(labels, rows, strict=True)}
    return scores | {"per_class": per_class, "confusion_matrix": matrix}


def entity_scores(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> dict[str, Any]:
    """``micro_f1``, ``macro_f1``, ``weighted_f1`` and scores ``per_type``, over all texts together.

    An entity is right if one with the same start, end and type is in the gold of the same text. An entity listed
    twice counts once. Types are those that occur in gold or predicted, as in seqeval's default mode.

    Raises:
        ValueError: gold and predicted are not as many, or entities of one side of a text overlap.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"the entities of {len(gold)} gold and {len(predicted)} predicted texts cannot be compared")
    texts = [_tag(*both) for both in zip(gold, predicted, strict=True)]
    if not any(gold) and not any(predicted):
        return dict.fromkeys(("micro_f1", "macro_f1", "weighted_f1"), 0.0) | {"per_type": {}}
    from seqeval.metrics import classification_report

    gold_tags, predicted_tags = zip(*texts, strict=True)
    report = classification_report(list(gold_tags), list(predicted_tags), output_dict=True, zero_division=0)
    rows = {name: _scores(*row.values()) for name, row in report.items()}
    scores: dict[str, Any] = {
        f"{average}_f1": rows.pop(f"{average} avg")["f1"] for average in ("micro", "macro", "weighted")
    }
    return scores | {"per_type": dict(sorted(rows.items()))}


def _tag(gold: Sequence[Entity], predicted: Sequence[Entity]) -> tuple[list[str], list[str]]:
    """BIO tags of both sides over the pieces into which all edges cut the text: seqeval takes tokens."""
    edges = sorted({edge for entity in (*gold, *predicted) for edge in (entity.start, entity.end)})
    place = {edge: number for number, edge in enumerate(edges)}
    both = []
    for entities in (gold, predicted):
        if overlap := find_overlap(entities):
            raise ValueError(f"{overlap[0].text!r} and {overlap[1].text!r} overlap: expected that no entities do")
        tags = ["O"] * len(edges)
        for entity in entities:
            start, end = place[entity.start], place[entity.end]
            tags[start:end] = [f"B-{entity.type}", *[f"I-{entity.type}"] * (end - start - 1)]
        both.append(tags)
    return both[0], both[1]


def find_overlap(entities: Sequence[Entity]) -> tuple[Entity, Entity] | None:
    """Two different entities that share a character, or ``None``."""
    ordered = sorted(set(entities), key=lambda entity: (entity.start, entity.end))
    return next(((a, b) for a, b in pairwise(ordered) if b.start < a.end), None)


def _scores(precision: float, recall: float, f1: float, support: int) -> dict[str, float]:
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}


def find_errors(gold: Sequence[Entity], predicted: Sequence[Entity]) -> list[EntityError]:
    """What is wrong in the answer to one text, in reading order.

    Gold and predicted entities are paired, each at most once: first equal ones, which are right; then those of one
    place, ``wrong type``; then overlapping ones of one type, longest overlap first, ``wrong boundary``. What is left is
    ``missed`` or ``spurious``; so an entity of another type at another, overlapping place is both. These are the
    categories of MUC-5 (Chinchor and Sundheim 1993, https://aclanthology.org/M93-1007), with its partial matches told
    apart by what is wrong in them.
    """
    left_gold, left_predicted = list(dict.fromkeys(gold)), list(dict.fromkeys(predicted))

    def overlap(one: Entity, other: Entity) -> int:
        return min(one.end, other.end) - max(one.start, other.start)

    def pair(fits: Callable[[Entity, Entity], bool]) -> list[tuple[Entity, Entity]]:
        pairs = [(one, other) for one in left_gold for other in left_predicted if fits(one, other)]
        found = []
        for one, other in sorted(pairs, key=lambda pair: (-overlap(*pair), pair[0].start, pair[1].start)):
            if one in left_gold and other in left_predicted:
                left_gold.remove(one)
                left_predicted.remove(other)
                found.append((one, other))
        return found

    pair(lambda one, other: one == other)
    wrong_type = pair(lambda one, other: (one.start, one.end) == (other.start, other.end))
    wrong_boundary = pair(lambda one, other: one.type == other.type and overlap(one, other) > 0)
    errors = [EntityError("wrong type", *both) for both in wrong_type]
    errors += [EntityError("wrong boundary", *both) for both in wrong_boundary]
    errors += [EntityError("missed", one, None) for one in left_gold]
    errors += [EntityError("spurious", None, other) for other in left_predicted]
    return sorted(errors, key=lambda error: min(entity.start for entity in error[1:] if entity))
