import pytest
import seqeval.metrics
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from chains.metrics import entity_scores, language_scores
from chains.schema import Entity

LENGTH = 20
TYPES = ["location", "organization", "person"]
labels = st.sampled_from(["english", "french", "spanish", "unknown"])


def entity(start, end, type_="person"):
    return Entity(text="x" * (end - start), type=type_, start=start, end=end)


@st.composite
def texts(draw):
    """The entities of one text of ``LENGTH`` characters: random spans of random types that never overlap."""
    edges = sorted(draw(st.sets(st.integers(0, LENGTH), max_size=8)))
    pieces = [entity(start, end, draw(st.sampled_from(TYPES))) for start, end in zip(edges, edges[1:], strict=False)]
    return [piece for piece in pieces if draw(st.booleans())]


@st.composite
def corpora(draw):
    """Gold and predicted entities of some texts; about half of the predicted ones are gold."""
    gold = draw(st.lists(texts(), max_size=5))
    predicted = [one if draw(st.booleans()) else draw(texts()) for one in gold]
    return gold, predicted


def tags(entities):
    """One BIO tag per character."""
    written = ["O"] * LENGTH
    for one in entities:
        written[one.start : one.end] = [f"B-{one.type}", *[f"I-{one.type}"] * (one.end - one.start - 1)]
    return written


@pytest.mark.parametrize(
    ("gold", "predicted", "micro", "macro", "weighted"),
    [
        ([], [], 0.0, 0.0, 0.0),
        ([[]], [[]], 0.0, 0.0, 0.0),
        ([[entity(0, 3)]], [[entity(0, 3)]], 1.0, 1.0, 1.0),
        ([[entity(0, 3)]], [[]], 0.0, 0.0, 0.0),
        ([[]], [[entity(0, 3)]], 0.0, 0.0, 0.0),
        ([[entity(0, 3)]], [[entity(0, 4)]], 0.0, 0.0, 0.0),
        ([[entity(0, 3)]], [[entity(0, 3, "location")]], 0.0, 0.0, 0.0),
        ([[entity(0, 3)], []], [[], [entity(0, 3)]], 0.0, 0.0, 0.0),
        ([[entity(0, 3), entity(4, 5)]], [[entity(0, 3), entity(0, 3)]], 2 / 3, 2 / 3, 2 / 3),
        ([[entity(0, 1), entity(2, 3), entity(4, 5, "location")]], [[entity(0, 1), entity(2, 3)]], 0.8, 0.5, 2 / 3),
    ],
)
def test_entities_count_by_exact_span_and_type(gold, predicted, micro, macro, weighted):
    scores = entity_scores(gold, predicted)
    assert [scores["micro_f1"], scores["macro_f1"], scores["weighted_f1"]] == pytest.approx([micro, macro, weighted])


def test_entity_scores_per_type_have_precision_recall_f1_and_support():
    gold = [[entity(0, 1), entity(2, 3), entity(4, 5), entity(6, 7)]]
    predicted = [[entity(0, 1), entity(2, 3), entity(6, 8, "location")]]
    assert entity_scores(gold, predicted)["per_type"] == {
        "location": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        "person": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 4},
    }


@pytest.mark.filterwarnings("ignore")  # seqeval warns of each zero division and of NumPy's own changes
@given(corpora())
def test_entity_scores_are_those_of_seqeval(corpus):
    gold, predicted = corpus
    gold_tags, predicted_tags = [tags(one) for one in gold], [tags(one) for one in predicted]
    scores = entity_scores(gold, predicted)
    if not scores["per_type"]:
        assert (scores["micro_f1"], scores["macro_f1"], scores["weighted_f1"]) == (0.0, 0.0, 0.0)
        return
    report = seqeval.metrics.classification_report(gold_tags, predicted_tags, output_dict=True, zero_division=0)
    for average in ("micro", "macro", "weighted"):
        assert scores[f"{average}_f1"] == pytest.approx(report[f"{average} avg"]["f1-score"])
    for type_, row in scores["per_type"].items():
        reference = report[type_]
        assert list(row.values()) == pytest.approx(
            [reference["precision"], reference["recall"], reference["f1-score"], reference["support"]]
        )
    assert set(scores["per_type"]) == set(report) - {"micro avg", "macro avg", "weighted avg"}


def test_language_scores_are_those_computed_by_hand():
    gold = ["english", "english", "french", "unknown"]
    predicted = ["english", "unknown", "french", "spanish"]
    assert language_scores(gold, predicted) == {
        "accuracy": 0.5,
        "micro_f1": 0.5,
        "macro_f1": pytest.approx((2 / 3 + 1 + 0 + 0) / 4),
        "weighted_f1": pytest.approx((2 * 2 / 3 + 1 + 0) / 4),
        "per_class": {
            "english": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
            "french": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
            "spanish": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
            "unknown": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
        },
        "confusion_matrix": {
            "labels": ["english", "french", "spanish", "unknown"],
            "rows": [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]],
        },
    }


def test_language_scores_of_an_empty_corpus_are_zero():
    assert language_scores([], []) == {
        "accuracy": 0.0,
        "micro_f1": 0.0,
        "macro_f1": 0.0,
        "weighted_f1": 0.0,
        "per_class": {},
        "confusion_matrix": {"labels": [], "rows": []},
    }


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=30))
def test_language_means_are_those_of_scikit_learn(pairs):
    gold, predicted = [list(side) for side in zip(*pairs, strict=True)]
    scores = language_scores(gold, predicted)
    for average in ("micro", "macro", "weighted"):
        reference = sklearn.metrics.f1_score(gold, predicted, average=average, zero_division=0.0)
        assert scores[f"{average}_f1"] == pytest.approx(reference)
    assert sum(map(sum, scores["confusion_matrix"]["rows"])) == len(pairs)


@pytest.mark.parametrize("score", [language_scores, entity_scores])
def test_gold_and_predicted_must_be_as_many(score):
    with pytest.raises(ValueError, match="cannot be compared"):
        score([[]], [])
