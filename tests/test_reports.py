import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.metrics import NO_ANSWER, entity_scores, find_errors
from chains.reports import Answers, answer_rows, compare_runs, differing_rows, error_rows, report_scores
from chains.schema import Entity

TEXT = "Ana Ruiz left the Bank of Spain for Lyon."


def entity(surface, type_):
    start = TEXT.index(surface)
    return Entity(text=surface, type=type_, start=start, end=start + len(surface))


ANA, BANK, LYON = entity("Ana Ruiz", "person"), entity("Bank of Spain", "organization"), entity("Lyon", "location")


def run(task, gold, predicted, probabilities=None, numbers=None):
    texts = len(gold)
    problems = ["no reply" if one == NO_ANSWER else "" for one in predicted]
    numbers = numbers or list(range(1, texts + 1))
    return Answers(task, numbers, [TEXT] * texts, gold, predicted, probabilities or [None] * texts, problems)


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ([], [], []),
        ([ANA, LYON], [LYON, ANA], []),
        ([ANA], [], ["missed"]),
        ([], [LYON], ["spurious"]),
        ([LYON], [entity("Lyon", "organization")], ["wrong type"]),
        ([ANA], [entity("Ana", "person")], ["wrong boundary"]),
        ([BANK], [entity("Spain", "location")], ["missed", "spurious"]),
        ([ANA], [entity("Ana", "person"), entity("Ruiz", "person")], ["wrong boundary", "spurious"]),
        ([ANA, LYON], [entity("Ana", "person"), entity("Lyon", "person")], ["wrong boundary", "wrong type"]),
        ([ANA, ANA], [], ["missed"]),
    ],
)
def test_each_error_is_of_one_kind(gold, predicted, kinds):
    assert [error.kind for error in find_errors(gold, predicted)] == kinds


def test_of_two_overlapping_names_the_one_with_the_longer_overlap_is_the_pair():
    of_spain, bank = entity("of Spain", "organization"), entity("Bank", "organization")
    [first, second] = find_errors([BANK], [bank, of_spain])
    assert {(error.kind, error.predicted.text) for error in (first, second)} == {
        ("wrong boundary", "of Spain"),
        ("spurious", "Bank"),
    }


@st.composite
def sides(draw):
    """Entities of a text that do not overlap."""
    edges = sorted(draw(st.sets(st.integers(0, 12), max_size=7)))
    pieces = [
        Entity(text="x" * (end - start), type=draw(st.sampled_from(["location", "person"])), start=start, end=end)
        for start, end in zip(edges, edges[1:], strict=False)
    ]
    return [piece for piece in pieces if draw(st.booleans())]


@given(sides(), sides())
def test_errors_are_all_that_is_not_right(gold, predicted):
    errors = find_errors(gold, predicted)
    right = len(set(gold) & set(predicted))
    assert [error.gold is not None for error in errors].count(True) == len(gold) - right
    assert [error.predicted is not None for error in errors].count(True) == len(predicted) - right
    for kind, one, other in errors:
        assert (kind == "missed") == (other is None) and (kind == "spurious") == (one is None)


def test_entities_that_overlap_cannot_be_scored():
    with pytest.raises(ValueError, match="'Bank of Spain' and 'Spain' overlap"):
        entity_scores([[BANK, entity("Spain", "location")]], [[]])


def test_language_report_has_intervals_and_calibration():
    report = report_scores(run("language", ["english"] * 4, ["english"] * 3 + ["french"], [0.95] * 4))
    assert report["accuracy"] == 0.75
    low, high = report["intervals"]["accuracy"]
    assert low < 0.75 < high
    assert report["calibration"]["expected_error"] == pytest.approx(0.2)
    assert report["failed"] == 0
    json.dumps(report)


def test_text_without_an_answer_is_wrong_and_no_class():
    report = report_scores(run("language", ["english", "french"], ["english", NO_ANSWER], [1.0, None]))
    assert (report["accuracy"], report["failed"]) == (0.5, 1)
    assert set(report["per_class"]) == {"english", "french"}
    assert report["confusion_matrix"] == {"labels": ["english", "french", ""], "rows": [[1, 0, 0], [0, 0, 1]]}
    assert report["calibration"]["expected_error"] == 0.0


def test_without_probabilities_there_is_no_calibration():
    assert report_scores(run("language", ["english"], ["english"]))["calibration"] is None


def test_entity_report_counts_kinds_of_errors():
    report = report_scores(run("entities", [(ANA, LYON), (BANK,)], [(ANA,), (entity("Spain", "organization"),)]))
    assert report["errors"] == {"missed": 1, "spurious": 0, "wrong type": 0, "wrong boundary": 1}
    assert report["micro_f1"] == pytest.approx(2 / 5)
    json.dumps(report)


@pytest.mark.parametrize("task", ["language", "entities"])
def test_report_of_nothing_is_all_zero(task):
    report = report_scores(run(task, [], []))
    assert report["macro_f1"] == 0.0 and report["intervals"]["macro_f1"] == [0.0, 0.0]


def test_rows_say_what_is_wrong():
    answers = run("entities", [(ANA, LYON)], [(ANA, entity("Lyon", "person"))])
    [error] = error_rows(answers)
    assert (error["kind"], error["type"], error["gold"]["type"], error["predicted"]["type"]) == (
        "wrong type", "location", "location", "person",
    )  # fmt: skip
    [row] = answer_rows(answers)
    assert (row["right"], row["row"], row["gold"]) == (False, 1, [ANA.model_dump(), LYON.model_dump()])


def test_entities_in_another_order_are_right():
    answers = run("entities", [(ANA, LYON)], [(LYON, ANA)])
    assert answers.is_right() == [True]
    assert differing_rows([answers, run("entities", [(ANA, LYON)], [(ANA, LYON)])]) == []


def test_runs_are_compared_on_the_rows_that_all_have():
    gold = ["english"] * 4
    first = run("language", gold, ["english", "french", "french", "french"])
    second = run("language", gold[:3], ["english", "english", "french"], numbers=[1, 2, 3])
    [comparison] = compare_runs(first, [second])
    assert comparison.texts == 3
    assert comparison.differences["accuracy"].value == pytest.approx(1 / 3)
    assert comparison.differences["accuracy"].p_value == 1.0  # one text of one
    assert comparison.methods["accuracy"] == "exact McNemar test"
    assert comparison.methods["macro_f1"] == "approximate randomization"
    [row] = differing_rows([first, second])
    assert (row["row"], row["answers"]) == (2, ["french", "english"])


def test_p_values_of_several_runs_are_adjusted():
    gold = ["english"] * 12
    first = run("language", gold, ["french"] * 12)
    better = run("language", gold, ["english"] * 12)
    [one, other] = compare_runs(first, [better, better])
    assert one.differences["accuracy"].p_value == pytest.approx(2 / 2**12)
    assert one.adjusted["accuracy"] == other.adjusted["accuracy"] == pytest.approx(4 / 2**12)
