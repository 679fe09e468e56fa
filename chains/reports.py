"""Answers beside their gold → a report; the answers of two runs on the same texts → what differs, and how surely."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chains.metrics import ERROR_KINDS, NO_ANSWER, EntityError, entity_scores, find_errors, language_scores
from chains.schema import UNKNOWN, Entity
from chains.statistics import (
    Counts,
    Difference,
    adjust_holm,
    calibrate,
    compare_scores,
    count_entities,
    count_languages,
    mcnemar_p_value,
    score_intervals,
)

__all__ = [
    "HEADLINES", "TASKS", "Answers", "Comparison", "TaskName", "answer_rows", "compare_runs", "differing_rows",
    "error_rows", "report_scores",
]  # fmt: skip

TaskName = Literal["language", "entities"]
TASKS: tuple[TaskName, ...] = ("language", "entities")
# The scores that have an interval, the most telling first. Of single labels, micro-F1 is accuracy.
HEADLINES: dict[TaskName, tuple[str, ...]] = {
    "language": ("accuracy", "micro_f1", "macro_f1", "weighted_f1"),
    "entities": ("micro_f1", "macro_f1", "weighted_f1"),
}
RANDOMIZATION = "approximate randomization"
MCNEMAR = "exact McNemar test"
Row = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """What was answered to some texts in one task, beside what is right; all lists are of one length.

    ``numbers`` are those of the gold set's rows. ``gold`` and ``predicted`` hold a label per text (``NO_ANSWER`` where
    there is none), or a tuple of entities. ``probabilities`` are those of the predicted labels, ``None`` where
    the model gave none. ``problems`` say why a text got no answer, else ``""``.
    """

    task: TaskName
    numbers: list[int]
    texts: list[str]
    gold: list[Any]
    predicted: list[Any]
    probabilities: list[float | None]
    problems: list[str]

    def is_right(self) -> list[bool]:
        """Whether each text is answered as its gold says: of entities, with all of them and no others."""
        if self.task == "language":
            return [one == other for one, other in zip(self.gold, self.predicted, strict=True)]
        pairs = zip(self.gold, self.predicted, self.problems, strict=True)
        return [set(one) == set(other) and not problem for one, other, problem in pairs]

    def only(self, numbers: set[int]) -> "Answers":
        """Those to the rows of these numbers."""
        kept = [place for place, number in enumerate(self.numbers) if number in numbers]
        lists = {name: [getattr(self, name)[place] for place in kept] for name in LISTS}
        return Answers(self.task, **lists)


LISTS = ("numbers", "texts", "gold", "predicted", "probabilities", "problems")


@dataclass(frozen=True)
class Comparison:
    """A run against the one that it is measured by: for each headline score the difference and the p-value's method.

    ``adjusted`` are the p-values by score, if several runs are compared at once: see ``statistics.adjust_holm``.
    """

    texts: int
    differences: dict[str, Difference]
    methods: dict[str, str]
    adjusted: dict[str, float]


def report_scores(answers: Answers) -> dict[str, Any]:
    """The scores of ``metrics``, with ``intervals`` (score → low and high) and ``failed`` (texts without an answer).

    Language: with ``calibration`` of the answers that have a probability, ``None`` if none has. Entities: with
    ``errors``, the number of each kind. A text without an answer counts as wrong, with no label and no entities.
    """
    intervals = score_intervals(_count(answers, _classes([answers])))
    shared = {
        "intervals": {name: list(intervals[name]) for name in HEADLINES[answers.task]},
        "failed": sum(map(bool, answers.problems)),
    }
    if answers.task == "entities":
        kinds = Counter(error.kind for _, error in _list_errors(answers))
        scores = entity_scores(answers.gold, answers.predicted)
        return scores | shared | {"errors": {kind: kinds[kind] for kind in ERROR_KINDS}}
    rated = [
        (probability, right)
        for probability, right in zip(answers.probabilities, answers.is_right(), strict=True)
        if probability is not None
    ]
    calibration = asdict(calibrate(*zip(*rated, strict=True))) if rated else None
    return language_scores(answers.gold, answers.predicted) | shared | {"calibration": calibration}


def _classes(runs: Sequence[Answers]) -> list[str]:
    """The classes that occur in any of these runs of one task."""
    sides = [side for answers in runs for side in (answers.gold, answers.predicted)]
    if runs[0].task == "language":
        return sorted({label for side in sides for label in side} - {NO_ANSWER}, key=lambda one: (one == UNKNOWN, one))
    return sorted({entity.type for side in sides for entities in side for entity in entities})


def _count(answers: Answers, classes: Sequence[str]) -> Counts:
    count = count_languages if answers.task == "language" else count_entities
    return count(answers.gold, answers.predicted, classes)


def compare_runs(baseline: Answers, others: Sequence[Answers]) -> list[Comparison]:
    """Each of ``others`` against ``baseline``, on the texts that all of them have; p-values adjusted if several.

    The accuracy of languages is tested by the exact McNemar test, every F1 by approximate randomization.
    """
    runs = [baseline, *others]
    shared = set.intersection(*(set(answers.numbers) for answers in runs))
    runs = [answers.only(shared) for answers in runs]
    classes = _classes(runs)
    first = _count(runs[0], classes)
    found = []
    for answers in runs[1:]:
        differences = compare_scores(first, _count(answers, classes))
        methods = dict.fromkeys(HEADLINES[answers.task], RANDOMIZATION)
        if answers.task == "language":
            p_value = mcnemar_p_value(runs[0].is_right(), answers.is_right())
            methods["accuracy"] = MCNEMAR
            accuracy = differences["accuracy"]
            differences["accuracy"] = Difference(accuracy.value, accuracy.low, accuracy.high, p_value)
        found.append(({name: differences[name] for name in methods}, methods))
    adjusted: list[dict[str, float]] = [{} for _ in found]
    for name in HEADLINES[baseline.task]:
        for place, value in enumerate(adjust_holm([differences[name].p_value for differences, _ in found])):
            adjusted[place][name] = value
    return [Comparison(len(shared), *both, values) for both, values in zip(found, adjusted, strict=True)]


def answer_rows(answers: Answers) -> list[Row]:
    """Every row: ``row``, ``text``, ``gold``, ``predicted`` (as JSON has them), whether it is ``right``,
    ``probability`` (of a language) and ``problem``."""
    return [
        {
            "row": answers.numbers[place],
            "text": answers.texts[place],
            "gold": _to_json(answers.gold[place]),
            "predicted": _to_json(answers.predicted[place]),
            "right": right,
            "probability": answers.probabilities[place],
            "problem": answers.problems[place],
        }
        for place, right in enumerate(answers.is_right())
    ]


def _to_json(answer: str | tuple[Entity, ...]) -> Any:
    return answer if isinstance(answer, str) else [entity.model_dump() for entity in answer]


def _list_errors(answers: Answers) -> list[tuple[int, EntityError]]:
    """Each error with its text's place."""
    pairs = enumerate(zip(answers.gold, answers.predicted, strict=True))
    return [(place, error) for place, (gold, predicted) in pairs for error in find_errors(gold, predicted)]


def error_rows(answers: Answers) -> list[Row]:
    """One row per entity error: ``row``, ``kind``, ``type`` (the gold's, else the predicted one's), ``gold`` and
    ``predicted`` (an entity as JSON has it, or ``None``) and ``text``."""
    rows = []
    for place, error in _list_errors(answers):
        gold, predicted = (None if one is None else one.model_dump() for one in (error.gold, error.predicted))
        type_ = (error.gold or error.predicted).type  # type: ignore[union-attr]  # one of them is there
        about = {"row": answers.numbers[place], "kind": error.kind, "type": type_}
        rows.append(about | {"gold": gold, "predicted": predicted, "text": answers.texts[place]})
    return rows


def differing_rows(runs: Sequence[Answers]) -> list[Row]:
    """The rows that all runs have and do not all answer alike: ``row``, ``text``, ``gold`` and ``answers``, in order
    of the runs, each as JSON has it."""
    shared = set.intersection(*(set(answers.numbers) for answers in runs))
    kept = [answers.only(shared) for answers in runs]
    rows = []
    for place, number in enumerate(kept[0].numbers):
        answers = [run.predicted[place] for run in kept]
        if len({answer if isinstance(answer, str) else frozenset(answer) for answer in answers}) > 1:
            row = {"row": number, "text": kept[0].texts[place], "gold": _to_json(kept[0].gold[place])}
            rows.append(row | {"answers": [_to_json(answer) for answer in answers]})
    return rows
