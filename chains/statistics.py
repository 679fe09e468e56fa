"""How sure a score is: bootstrap intervals, paired significance tests, calibration. Numbers in, numbers out.

Both tasks are counted alike: of each text and class, how many answers are right, found (predicted) and expected
(gold), as an array of shape ``(texts, classes, 3)``. Every F1 is a function of the sums of these, so a resample needs
only sums; and since texts with equal counts are interchangeable, it is drawn over the different counts, which are few.

A text is the unit that is drawn, never an entity: those of one text are not independent. All draws are seeded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chains.metrics import NO_ANSWER
from chains.schema import Entity

__all__ = [
    "LEVEL", "Bin", "Calibration", "Difference", "adjust_holm", "calibrate", "compare_scores", "count_entities",
    "count_languages", "score_intervals", "score_sums", "mcnemar_p_value",
]  # fmt: skip

LEVEL = 0.95
RESAMPLES = 2_000
SHUFFLES = 9_999
BINS = 10
BLOCK = 2_000_000  # numbers that are drawn at once, which bounds the memory
RIGHT, FOUND, EXPECTED = range(3)
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much higher the second score is than the first, with its ``LEVEL`` interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Bin:
    """The answers whose probability lies above ``low`` and at most at ``high``: their number, their mean probability
    and the share of them that is right; both are 0.0 of no answers."""

    low: float
    high: float
    count: int
    probability: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How well probabilities say how often answers are right; ``expected_error`` is 0.0 of no answers."""

    expected_error: float
    bins: tuple[Bin, ...]


def count_languages(gold: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> Counts:
    """The counts of language answers, shape ``(texts, classes, 3)``; ``NO_ANSWER`` finds nothing."""
    place = {label: number for number, label in enumerate(classes)}
    counts = np.zeros((len(gold), len(classes), 3), np.int64)
    for row, (one, other) in enumerate(zip(gold, predicted, strict=True)):
        counts[row, place[one], EXPECTED] = 1
        if other != NO_ANSWER:
            counts[row, place[other], FOUND] = 1
        counts[row, place[one], RIGHT] = one == other
    return counts


def count_entities(
    gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]], classes: Sequence[str]
) -> Counts:
    """The counts of entities by exact span and type, shape ``(texts, classes, 3)``; one listed twice counts once."""
    place = {type_: number for number, type_ in enumerate(classes)}
    counts = np.zeros((len(gold), len(classes), 3), np.int64)
    for row, (one, other) in enumerate(zip(gold, predicted, strict=True)):
        for column, entities in ((EXPECTED, set(one)), (FOUND, set(other)), (RIGHT, set(one) & set(other))):
            for entity in entities:
                counts[row, place[entity.type], column] += 1
    return counts


def score_sums(sums: NDArray[Any]) -> dict[str, Floats]:
    """``accuracy`` (right of expected) and ``micro_f1``, ``macro_f1``, ``weighted_f1`` of summed counts.

    ``sums`` has the shape ``(…, classes, 3)``, each score ``(…)``. As in ``metrics``, the macro mean runs over the
    classes that occur, and what has a zero denominator is 0.0.
    """
    right, found, expected = np.moveaxis(sums, -1, 0)
    f1 = _ratio(2 * right, found + expected)
    return {
        "accuracy": _ratio(right.sum(-1), expected.sum(-1)),
        "micro_f1": _ratio(2 * right.sum(-1), (found + expected).sum(-1)),
        "macro_f1": _ratio(f1.sum(-1), (found + expected > 0).sum(-1)),
        "weighted_f1": _ratio((f1 * expected).sum(-1), expected.sum(-1)),
    }


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
    return ratio


def score_intervals(counts: Counts, *, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The percentile bootstrap interval at ``LEVEL`` of each score of ``score_sums``; of no texts ``(0.0, 0.0)``.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3. If all texts have equal counts,
    the interval has no width: a resample cannot show what the sample does not hold.
    """
    scores = _resample(counts, np.random.default_rng(seed))
    return {name: _interval(values) for name, values in scores.items()}


def compare_scores(first: Counts, second: Counts, *, seed: int = 0) -> dict[str, Difference]:
    """How much higher each score of the ``second`` run is than that of the ``first`` on the same texts and classes.

    The interval is that of a paired bootstrap, which draws the same texts for both (Koehn 2004,
    https://aclanthology.org/W04-3250). The p-value is that of approximate randomization, which swaps both answers to a
    text half of the time (Noreen 1989; Yeh 2000, https://aclanthology.org/C00-2137), plus one in both parts of the
    fraction, so that it is never 0. Of no texts, and where no text differs, it is 1.0.
    """
    rng = np.random.default_rng(seed)
    both = np.stack([first, second], axis=1)  # (texts, 2, classes, 3)
    drawn = _resample(both, rng)
    observed = {name: values[1] - values[0] for name, values in score_sums(both.sum(0)).items()}
    shuffled = _shuffle(first, second, rng)
    differences = {}
    for name, values in drawn.items():
        # A tie must not be lost to rounding.
        as_large = int((np.abs(shuffled[name]) >= abs(observed[name]) - 1e-12).sum())
        low, high = _interval(values[:, 1] - values[:, 0])
        differences[name] = Difference(float(observed[name]), low, high, (1 + as_large) / (1 + SHUFFLES))
    return differences


def _resample(counts: Counts, rng: np.random.Generator) -> dict[str, Floats]:
    """Each score of ``RESAMPLES`` draws of as many texts with replacement; counts are ``(texts, …, classes, 3)``."""
    patterns, numbers = _group(counts)

    def draw(size: int) -> Counts:
        # How often each different text is drawn: exactly what drawing texts one by one gives.
        times = rng.multinomial(len(counts), numbers / len(counts), size) if len(counts) else np.zeros((size, 0), int)
        return times @ patterns

    sums = np.concatenate([draw(size) for size in _blocks(RESAMPLES, len(numbers))])
    return score_sums(sums.reshape(RESAMPLES, *counts.shape[1:]))


def _shuffle(first: Counts, second: Counts, rng: np.random.Generator) -> dict[str, Floats]:
    """Of ``SHUFFLES`` random swaps of the two answers to a text, the differences of each score."""
    patterns, numbers = _group(np.stack([first, second], axis=1))
    shape = first.shape[1:]
    middle = int(np.prod(shape))
    moved = patterns[:, middle:] - patterns[:, :middle]  # what the first run wins and the second loses by a swap
    parts = []
    for size in _blocks(SHUFFLES, len(numbers)):
        swapped = (rng.binomial(numbers, 0.5, (size, len(numbers))) @ moved).reshape(size, *shape)
        one, other = score_sums(first.sum(0) + swapped), score_sums(second.sum(0) - swapped)
        parts.append({name: other[name] - one[name] for name in one})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _group(counts: Counts) -> tuple[Counts, Counts]:
    """The different counts of texts, each flat, and of how many texts each is."""
    flat = counts.reshape(len(counts), int(np.prod(counts.shape[1:])))
    if not flat.size:  # no texts, or no classes
        return flat[:1], np.array([len(flat)] if len(flat) else [], np.int64)
    patterns, numbers = np.unique(flat, axis=0, return_counts=True)
    return patterns, numbers


def _blocks(draws: int, width: int) -> Iterator[int]:
    """``draws`` in parts such that none draws more than about ``BLOCK`` numbers."""
    size = max(1, BLOCK // max(1, width))
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar_p_value(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The two-sided p-value of two runs on the same texts, each right where it says so, being equally often right.

    The exact test: of the texts on which just one is right, each run should have half (McNemar 1947,
    https://doi.org/10.1007/BF02295996). Without any such text it is 1.0.
    """
    from scipy.stats import binomtest

    only_first = sum(one and not other for one, other in zip(first, second, strict=True))
    only_second = sum(other and not one for one, other in zip(first, second, strict=True))
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests as they count together, in the same order (Holm 1979); none gets smaller."""
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def calibrate(probabilities: Sequence[float], is_right: Sequence[bool]) -> Calibration:
    """Answers by their probability in ``BINS`` equal bins, and the expected calibration error.

    That is the mean distance of a bin's accuracy from its probability, weighted by its answers (Naeini et al. 2015,
    https://doi.org/10.1609/aaai.v29i1.9602; Guo et al. 2017, https://arxiv.org/abs/1706.04599). Bins are those of
    scikit-learn's ``calibration_curve``, which does not tell how many answers each holds.
    """
    edges = np.linspace(0.0, 1.0, BINS + 1)
    chosen = np.searchsorted(edges[1:-1], np.asarray(probabilities, float))
    count = np.bincount(chosen, minlength=BINS)
    probability = _ratio(np.bincount(chosen, np.asarray(probabilities, float), BINS), count)
    accuracy = _ratio(np.bincount(chosen, np.asarray(is_right, float), BINS), count)
    error = float(_ratio((count * np.abs(accuracy - probability)).sum(), count.sum()))
    rows = zip(edges[:-1], edges[1:], count, probability, accuracy, strict=True)
    return Calibration(error, tuple(Bin(float(a), float(b), int(n), float(p), float(r)) for a, b, n, p, r in rows))
