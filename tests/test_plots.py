import json
import tomllib
from pathlib import Path

import pandas as pd
import pytest

import plots
from chains.exports import to_frame
from chains.schema import Correction, Entity
from chains.sweep import ShotScore
from chains.tables import Layout, Row
from plots import TYPES


def job_table(*rows, columns=("text",)):
    """A job's table: per row a text, a language and ``name/type`` words; ``None`` for the language is an error."""
    results = []
    for number, (text, language, *names) in enumerate(rows, 1):
        entities = [
            dict(zip(("text", "type"), name.split("/"), strict=True)) | {"start": 0, "end": 1} for name in names
        ]
        kinds = [entity["type"] for entity in entities]
        record = {
            "language": language,
            "language_probability": {"unknown": 0.6, None: None}.get(language, 0.9),
            "entities": entities if language else None,
            "locations": kinds.count("location") if language else None,
            "people": kinds.count("person") if language else None,
            "organizations": kinds.count("organization") if language else None,
            "corrected": False,
            "error": "" if language else "could not be read",
        }
        results.append((Row(number, (text,) * len(columns)), record))
    return to_frame(Layout("csv", columns, columns), results)


TABLE = job_table(
    ("Lyon et Lyon", "french", "Lyon/location", "Lyon/location", "Ana/person"),
    ("Ana in Lyon", "english", "Ana/person", "Lyon/location"),
    ("broken", None),
    ("nothing", "unknown"),
)
MENTIONS = plots.read_mentions(TABLE)


def test_mentions_keep_row_and_language():
    assert list(MENTIONS.itertuples(index=False, name=None))[2:] == [
        (0, "french", "Ana", "person"),
        (1, "english", "Ana", "person"),
        (1, "english", "Lyon", "location"),
    ]


def test_results_are_found_beside_input_columns_of_the_same_names():
    table = job_table(("a", "french", "Lyon/location"), columns=("language", "entities", "error"))
    assert plots.read_results(table)["language"].tolist() == ["french"]
    assert plots.read_mentions(table)["text"].tolist() == ["Lyon"]


def test_types_are_counted_also_when_absent():
    counts = plots.count_types(MENTIONS)
    assert counts.to_dict("list") == {
        "type": ["location", "person", "organization"],
        "label": ["Locations", "People", "Organizations"],
        "count": [3, 2, 0],
        "rows": [2, 2, 0],
    }


@pytest.mark.parametrize(
    ("type_", "search", "expected"),
    [
        ("location", "", [("Lyon", "location", 3, 2)]),
        ("location", "yO", [("Lyon", "location", 3, 2)]),
        ("location", "(", []),
        ("organization", "", []),
    ],
)
def test_names_are_counted_and_searched(type_, search, expected):
    counts = plots.count_names(MENTIONS, type_, search=search)
    assert list(counts[["name", "type", "count", "rows"]].itertuples(index=False, name=None)) == expected


def test_only_the_top_names_stay_most_frequent_first_then_by_name():
    table = job_table(*[("x", "english", f"{name}/person") for name in ("B", "A", "C", "C")])
    assert plots.count_names(plots.read_mentions(table), "person", top=2)["name"].tolist() == ["C", "A"]


def test_languages_come_in_the_usual_order_and_errors_last():
    counts = plots.count_languages(plots.read_results(TABLE))
    assert counts["label"].tolist() == ["English", "French", "Not sure", "No answer"]
    assert counts["rows"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        ({"languages": ["french", "unknown"]}, [0, 3]),
        ({"types": ["person"]}, [0, 1]),
        ({"types": ["organization"]}, []),
        ({"search": "LYON", "column": "text"}, [0, 1]),
        ({"search": "[", "column": "text"}, []),
        ({"only_errors": True}, [2]),
        ({"below": 0.9}, [3]),
        ({"below": 0.91}, [0, 1, 3]),
        ({"languages": ["english"], "types": ["location"]}, [1]),
    ],
)
def test_rows_are_filtered(filters, rows):
    assert plots.filter_rows(TABLE, **filters).index.tolist() == rows


@pytest.mark.parametrize(
    ("picked", "rows"),
    [
        ([], [0, 1, 2, 3]),
        ([{"type": "person"}], [0, 1]),
        ([{"language": "french"}], [0]),
        ([{"name": "Lyon", "type": "location"}, {"language": "english"}], [1]),
        ([{"language": "english", "type": "location"}], [1]),
        ([{"name": "Lyon", "type": "person"}], []),
    ],
)
def test_picked_bars_give_their_rows(picked, rows):
    assert plots.pick_rows(TABLE, MENTIONS, picked).index.tolist() == rows


@pytest.mark.parametrize(
    "table", [TABLE, TABLE.head(1), TABLE.tail(1), TABLE.head(0)], ids=["four", "one", "bare", "none"]
)
def test_every_chart_draws_with_any_number_of_rows(table):
    mentions, results = plots.read_mentions(table), plots.read_results(table)
    for chart in (
        plots.draw_types(plots.count_types(mentions)),
        plots.draw_names(plots.count_names(mentions, "location")),
        plots.draw_languages(plots.count_languages(results)),
        plots.draw_types_by_language(plots.count_types_by_language(mentions)),
    ):
        specification = json.dumps(chart.to_dict(), allow_nan=False)
        assert "picked" in specification


def test_charts_get_counts_and_no_texts():
    chart = plots.draw_languages(plots.count_languages(plots.read_results(TABLE)))
    assert "Ana in Lyon" not in chart.to_json()


def test_threshold_is_a_line_only_if_there_is_one():
    probabilities = {"english": 0.2, "unknown": 0.8}
    assert "rule" in plots.draw_probabilities(probabilities, 0.5).to_json()
    assert "rule" not in plots.draw_probabilities(probabilities, None).to_json()


def test_types_of_ones_own_are_counted_filtered_and_drawn():
    table = job_table(
        ("A Corolla", "catalan", "Corolla/product", "Ana/person"), ('"type": "product"', "french", 'a/b"c')
    )
    mentions = plots.read_mentions(table)
    types = plots.sort_types(mentions["type"])
    assert types == ["person", 'b"c', "product"]
    counts = plots.count_types(mentions, types)
    assert counts["label"].tolist() == ["People", 'B"c', "Product"]
    assert plots.filter_rows(table, types=["product"]).index.tolist() == [0]
    assert plots.filter_rows(table, types=['b"c']).index.tolist() == [1]
    assert plots.list_names(table["entities"][0]) == "Corolla (PRO), Ana (PER)"
    assert plots.count_languages(plots.read_results(table))["label"].tolist() == ["French", "Catalan"]
    for chart in (plots.draw_types(counts), plots.draw_types_by_language(plots.count_types_by_language(mentions))):
        assert plots.style_of("product").fill in chart.to_json()


@pytest.mark.parametrize("number", [1, 7])
def test_shots_are_drawn_against_their_cost(number):
    scores = plots.list_shots([ShotScore(shots, 0.5 + shots / 100, 0.01 * shots, 9) for shots in range(number)])
    assert scores.columns.tolist() == ["shots", "f1", "seconds", "tokens"] and len(scores) == number
    assert json.dumps(plots.draw_shots(scores, "micro F1").to_dict(), allow_nan=False).count("micro F1") >= 2


def test_names_in_words():
    assert plots.list_names(TABLE["entities"][0]) == "Lyon (LOC), Ana (PER)"
    assert plots.list_names("") == ""


def test_numbers_of_a_chart_leave_as_csv_without_formulas():
    counts = pd.DataFrame({"name": ["=HYPERLINK(1)", "Zoë, Ana", "-"], "count": [-1, 2, 3]})
    assert plots.to_csv(counts).decode("utf-8-sig") == "name,count\r\n'=HYPERLINK(1),-1\r\n\"Zoë, Ana\",2\r\n'-,3\r\n"


def test_charts_of_streamlit_have_the_same_colours():
    theme = tomllib.loads(Path(".streamlit/config.toml").read_text())["theme"]
    assert theme["chartCategoricalColors"][: len(TYPES)] == [style.fill for style in TYPES.values()]


PORTO = Entity(text="Porto", type="location", start=0, end=5)
CORRECTIONS = {
    3: Correction(language="spanish", entities=(PORTO,)),
    1: Correction(language="french"),
    9: Correction(language="french"),
}


def test_corrections_take_the_place_of_answers_and_leave_the_table():
    before = TABLE.copy(deep=True)
    corrected = plots.correct_results(TABLE, CORRECTIONS)
    pd.testing.assert_frame_equal(TABLE, before)
    assert corrected.dtypes.equals(TABLE.dtypes)
    results = plots.read_results(corrected)
    assert results["language"].tolist() == ["french", "english", "spanish", "unknown"]
    assert results["corrected"].tolist() == [True, False, True, False]
    assert results["locations"].tolist() == [0, 1, 1, 0]
    assert results["error"].tolist() == [""] * 4
    assert results["language_probability"].isna().tolist() == [True, False, True, False]
    assert plots.count_languages(results)["language"].tolist() == ["english", "spanish", "french", "unknown"]
    mentions = plots.correct_mentions(MENTIONS, corrected)
    pd.testing.assert_frame_equal(mentions, plots.read_mentions(corrected))
    assert mentions["text"].tolist() == ["Ana", "Lyon", "Porto"]


@pytest.mark.parametrize("corrections", [{}, {9: Correction(language="french")}])
def test_a_table_without_corrections_stays_as_it_is(corrections):
    corrected = plots.correct_results(TABLE, corrections)
    pd.testing.assert_frame_equal(corrected, TABLE)
    pd.testing.assert_frame_equal(plots.correct_mentions(MENTIONS, corrected), MENTIONS)


def test_a_row_whose_names_were_all_taken_away_has_no_mentions():
    corrected = plots.correct_results(TABLE, {1: Correction(language="french")})
    mentions = plots.correct_mentions(MENTIONS, corrected)
    assert mentions["row"].dtype == "int64" and mentions["text"].tolist() == ["Ana", "Lyon"]


def test_only_corrected_rows_stay():
    corrected = plots.correct_results(TABLE, CORRECTIONS)
    assert plots.filter_rows(corrected, only_corrected=True).index.tolist() == [0, 2]


def test_rows_stand_in_the_order_of_the_models_doubt_and_corrections_move_none():
    table = job_table(("a", "french"), ("b", "unknown"), ("c", None), ("d", "english"), ("e", "unknown"))
    name = table.columns[2]
    assert name == "language_probability"
    table.loc[3, name] = pd.NA
    expected = [2, 1, 4, 0, 3]
    assert plots.least_sure_first(table, table).index.tolist() == expected
    corrected = plots.correct_results(table, {2: Correction(language="french"), 3: Correction(language="french")})
    assert plots.least_sure_first(corrected, table).index.tolist() == expected
    assert plots.least_sure_first(corrected[corrected["text"] > "b"], table).index.tolist() == [2, 4, 3]
