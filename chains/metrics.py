"""Scores of predicted against gold: languages by scikit-learn, entities by seqeval's definitions over exact spans.

Everywhere: a precision, recall or F1 whose denominator is zero is 0.0, and so is every score of an empty corpus.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from chains.schema import UNKNOWN, Entity

__all__ = ["entity_scores", "language_scores"]


def language_scores(gold: list[str], predicted: list[str]) -> dict[str, Any]:
    """Accuracy, ``macro_f1``, ``weighted_f1``, scores ``per_class`` and the confusion matrix (rows are gold).

    Classes are those that occur in gold or predicted, ``unknown`` last; the macro mean runs over all of them.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold and {len(predicted)} predicted labels cannot be compared")
    labels = sorted({*gold, *predicted}, key=lambda label: (label == UNKNOWN, label))
    if not labels:
        matrix: dict[str, list[Any]] = {"labels": [], "rows": []}
        return {"accuracy": 0.0, "macro_f1": 0.0, "weighted_f1": 0.0, "per_class": {}, "confusion_matrix": matrix}
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    columns = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0.0)
    per_class = {
        label: _scores(float(precision), float(recall), float(f1), int(support))
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    }
    pairs = Counter(zip(gold, predicted, strict=True))
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": _macro_f1(per_class),
        "weighted_f1": _weighted_f1(per_class),
        "per_class": per_class,
        "confusion_matrix": {"labels": labels, "rows": [[pairs[row, column] for column in labels] for row in labels]},
    }


def entity_scores(gold: list[Sequence[Entity]], predicted: list[Sequence[Entity]]) -> dict[str, Any]:
    """``micro_f1``, ``macro_f1``, ``weighted_f1`` and scores ``per_type``, over all texts together.

    An entity is right if one with the same start, end and type is in the gold of the same text. An entity listed
    twice counts once. Types are those that occur in gold or predicted, as in seqeval's default mode.
    """
    if len(gold) != len(predicted):
        raise ValueError(f"the entities of {len(gold)} gold and {len(predicted)} predicted texts cannot be compared")
    expected, found, right = Counter[str](), Counter[str](), Counter[str]()
    for gold_entities, predicted_entities in zip(gold, predicted, strict=True):
        gold_spans, predicted_spans = _spans(gold_entities), _spans(predicted_entities)
        expected.update(type_ for _, _, type_ in gold_spans)
        found.update(type_ for _, _, type_ in predicted_spans)
        right.update(type_ for _, _, type_ in gold_spans & predicted_spans)
    per_type = {
        type_: _count_scores(right[type_], found[type_], expected[type_]) for type_ in sorted({*expected, *found})
    }
    return {
        "micro_f1": _count_scores(right.total(), found.total(), expected.total())["f1"],
        "macro_f1": _macro_f1(per_type),
        "weighted_f1": _weighted_f1(per_type),
        "per_type": per_type,
    }


def _spans(entities: Iterable[Entity]) -> set[tuple[int, int, str]]:
    return {(entity.start, entity.end, entity.type) for entity in entities}


def _count_scores(right: int, found: int, expected: int) -> dict[str, float]:
    precision, recall, f1 = (_ratio(right, found), _ratio(right, expected), _ratio(2 * right, found + expected))
    return _scores(precision, recall, f1, expected)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _scores(precision: float, recall: float, f1: float, support: int) -> dict[str, float]:
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def _macro_f1(scores: dict[str, dict[str, float]]) -> float:
    return sum(score["f1"] for score in scores.values()) / len(scores) if scores else 0.0


def _weighted_f1(scores: dict[str, dict[str, float]]) -> float:
    support = sum(score["support"] for score in scores.values())
    return sum(score["f1"] * score["support"] for score in scores.values()) / support if support else 0.0
