import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from chains import statistics
from chains.metrics import NO_ANSWER, entity_scores, language_scores
from chains.schema import Entity
from chains.statistics import (
    adjust_holm,
    calibrate,
    compare_scores,
    count_entities,
    count_languages,
    mcnemar_p_value,
    score_intervals,
    score_sums,
)

LABELS = ["english", "french", "unknown"]
TYPES = ["location", "person"]
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, NO_ANSWER])), max_size=30)


def entity(start, end, type_="person"):
    return Entity(text="x" * (end - start), type=type_, start=start, end=end)


def answers(right, wrong):
    """Counts of so many right and wrong answers of two languages."""
    gold = ["english"] * (right + wrong)
    return count_languages(gold, ["english"] * right + ["french"] * wrong, LABELS)


@given(pairs)
def test_sums_of_language_counts_have_the_scores_of_scikit_learn(pairs):
    gold, predicted = [list(side) for side in zip(*pairs, strict=True)] or [[], []]
    expected = language_scores(gold, predicted)
    scores = score_sums(count_languages(gold, predicted, LABELS).sum(0))
    for name in ("accuracy", "micro_f1", "macro_f1", "weighted_f1"):
        assert scores[name] == pytest.approx(expected[name]), name


spans = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(TYPES)), max_size=4, unique_by=lambda one: one[0])
texts = spans.map(lambda found: [entity(2 * place, 2 * place + 1, type_) for place, type_ in found])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@given(st.lists(st.tuples(texts, texts), max_size=8))
def test_sums_of_entity_counts_have_the_scores_of_seqeval(corpus):
    gold, predicted = [list(side) for side in zip(*corpus, strict=True)] or [[], []]
    expected = entity_scores(gold, predicted)
    scores = score_sums(count_entities(gold, predicted, TYPES).sum(0))
    for name in ("micro_f1", "macro_f1", "weighted_f1"):
        assert scores[name] == pytest.approx(expected[name]), name


def test_interval_of_an_accuracy_is_about_that_of_the_binomial():
    low, high = score_intervals(answers(80, 20))["accuracy"]
    # 1.96 standard errors of 0.04
    assert (low, high) == (pytest.approx(0.72, abs=0.015), pytest.approx(0.88, abs=0.015))


def test_interval_is_that_of_drawing_texts_one_by_one():
    counts = count_languages(
        ["english"] * 6 + ["french"] * 3 + ["unknown"],
        ["english"] * 4 + ["french"] * 4 + ["english", "unknown"],
        LABELS,
    )
    rng = np.random.default_rng(5)
    drawn = score_sums(counts[rng.integers(0, 10, (20_000, 10))].sum(1))
    for name, (low, high) in score_intervals(counts).items():
        assert [low, high] == pytest.approx(list(np.quantile(drawn[name], [0.025, 0.975])), abs=0.06), name


@given(pairs)
def test_intervals_lie_around_their_score_and_come_again(pairs):
    gold, predicted = [list(side) for side in zip(*pairs, strict=True)] or [[], []]
    counts = count_languages(gold, predicted, LABELS)
    intervals = score_intervals(counts)
    assert intervals == score_intervals(counts)
    for low, high in intervals.values():
        assert 0.0 <= low <= high <= 1.0
    low, high = intervals["accuracy"]
    assert low <= score_sums(counts.sum(0))["accuracy"] <= high


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        (answers(0, 0), (0.0, 0.0)),
        (np.zeros((3, 0, 3), np.int64), (0.0, 0.0)),
        (np.zeros((0, 0, 3), np.int64), (0.0, 0.0)),
        (answers(1, 0), (1.0, 1.0)),
        (answers(0, 1), (0.0, 0.0)),
        (answers(50, 0), (1.0, 1.0)),
    ],
    ids=["no text", "no class", "neither", "one right", "one wrong", "all right"],
)
def test_intervals_of_nothing_one_and_all_alike(counts, interval):
    assert score_intervals(counts)["accuracy"] == interval
    same = compare_scores(counts, counts)["macro_f1"]
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_many_different_texts_are_drawn_in_blocks(monkeypatch):
    counts = np.random.default_rng(0).integers(0, 50, (300, 2, 3))
    whole, compared = score_intervals(counts), compare_scores(counts, counts[::-1])
    monkeypatch.setattr(statistics, "BLOCK", 10_000)
    blocks, again = score_intervals(counts), compare_scores(counts, counts[::-1])
    for name in whole:
        assert blocks[name] == pytest.approx(whole[name], abs=0.01)
        assert again[name].value == compared[name].value


def test_a_clear_difference_is_significant_and_has_its_sign():
    worse, better = answers(50, 50), answers(90, 10)
    up, down = compare_scores(worse, better)["accuracy"], compare_scores(better, worse)["accuracy"]
    assert up.value == pytest.approx(0.4) and down.value == pytest.approx(-0.4)
    assert 0.25 < up.low < 0.4 < up.high < 0.55
    assert up.p_value == down.p_value == pytest.approx(1 / 10_000)


def test_randomization_agrees_with_the_exact_sign_test():
    # 8 texts only the second answers, 2 only the first: swaps at least as far from even as 8:2.
    first = np.concatenate([answers(0, 8), answers(2, 0), answers(30, 0)])
    second = np.concatenate([answers(8, 0), answers(0, 2), answers(30, 0)])
    exact = 112 / 1024  # 2 × (45 + 10 + 1) / 2¹⁰
    assert compare_scores(first, second)["accuracy"].p_value == pytest.approx(exact, abs=0.01)
    assert mcnemar_p_value([False] * 8 + [True] * 2, [True] * 8 + [False] * 2) == pytest.approx(exact)


@pytest.mark.parametrize("right", [[], [True], [False, True]])
def test_runs_that_are_right_alike_do_not_differ(right):
    assert mcnemar_p_value(right, right) == 1.0


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [([], []), ([0.2], [0.2]), ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]), ([0.9, 0.8], [1.0, 1.0])],
)
def test_p_values_of_several_tests_are_adjusted(p_values, adjusted):
    assert adjust_holm(p_values) == pytest.approx(adjusted)


def test_calibration_error_is_the_one_computed_by_hand():
    found = calibrate([0.95, 0.95, 0.95, 0.95, 0.65, 0.55], [True, True, True, False, True, False])
    # 4 of 6 answers are off by 0.20, one by 0.35, one by 0.55.
    assert found.expected_error == pytest.approx((4 * 0.20 + 0.35 + 0.55) / 6)
    assert [one.count for one in found.bins] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 4]
    assert found.bins[9].accuracy == 0.75


def test_calibration_of_no_answers_is_zero():
    found = calibrate([], [])
    assert found.expected_error == 0.0
    assert sum(one.count for one in found.bins) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_bins_are_those_of_scikit_learn(rated):
    probabilities, right = zip(*rated, strict=True)
    found = [one for one in calibrate(probabilities, right).bins if one.count]
    accuracy, probability = calibration_curve(right, probabilities, n_bins=10)
    assert [one.accuracy for one in found] == pytest.approx(accuracy)
    assert [one.probability for one in found] == pytest.approx(probability)
    assert sum(one.count for one in found) == len(rated)
