"""Figures: a table of results in, counts or one chart out. No streamlit.

Tables are counted here, so that a chart gets a few dozen numbers however many rows a job has.
"""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import altair as alt
import pandas as pd

from chains.exports import FORMULA_STARTS, RESULT_COLUMNS, correct_record
from chains.metrics import ERROR_KINDS
from chains.schema import UNKNOWN, Correction
from chains.sweep import ShotScore

__all__ = [
    "ERROR_WORDS", "LANGUAGES", "TYPES", "TypeStyle", "correct_mentions", "correct_results", "count_confusions",
    "count_errors", "count_languages", "count_names", "count_types", "count_types_by_language", "draw_calibration",
    "draw_confusions", "draw_errors", "draw_languages", "draw_names", "draw_probabilities", "draw_scores",
    "draw_shots", "draw_types", "draw_types_by_language", "filter_rows", "label_language", "least_sure_first",
    "list_bins", "list_names", "list_shots", "pick_rows", "read_mentions", "read_results", "sort_types", "style_of",
    "to_csv",
]  # fmt: skip


@dataclass(frozen=True)
class TypeStyle:
    """How an entity type looks everywhere. ``fill`` stands 3:1 or more against both page backgrounds, for bars;
    ``light_ink`` and ``dark_ink`` 4.5:1 or more against the marks of the light and the dark theme, for words."""

    one: str
    many: str
    tag: str
    fill: str
    light_ink: str
    dark_ink: str
    underline: str


# Fills after Okabe and Ito, https://jfly.uni-koeln.de/color/; .streamlit/config.toml repeats them.
TYPES: dict[str, TypeStyle] = {
    "location": TypeStyle("Location", "Locations", "LOC", "#0072B2", "#00517F", "#7CC4F0", "solid"),
    "person": TypeStyle("Person", "People", "PER", "#D55E00", "#8F3F00", "#FFAA66", "dashed"),
    "organization": TypeStyle("Organization", "Organizations", "ORG", "#009E73", "#00563F", "#5FD9B3", "dotted"),
}
# Fill, light and dark ink of the types that only a task file of the user's has.
OTHER_TYPES = (
    ("#AA4499", "#7A2A6B", "#F0A0DD"),
    ("#8C7300", "#5C4B00", "#E3CC5C"),
    ("#C04060", "#8A2440", "#FF9FB4"),
    ("#5B6EC7", "#36459A", "#B0BCFF"),
)
LANGUAGES: dict[str, str] = {"english": "English", "spanish": "Spanish", "french": "French", UNKNOWN: "Not sure"}
ERROR_WORDS: dict[str, str] = dict(
    zip(ERROR_KINDS, ("Missed", "Not a name", "Wrong kind", "Wrong boundary"), strict=True)
)
NEUTRAL = "#7A8699"
INK = "currentColor"  # the page's own text colour, light or dark; works because Streamlit draws charts as SVG
FADED = 0.35
BAR_HEIGHT = 26
Counts = pd.DataFrame  # what the count_ functions give and the draw_ functions take
Chart = alt.LayerChart | alt.FacetChart  # what alt.layer is typed to give


def style_of(type_: str) -> TypeStyle:
    """How an entity type looks: one of ``TYPES``, or, by its name alone and so the same everywhere, one of the others.

    Its words are the user's, and not safe for HTML or Markdown.
    """
    if type_ in TYPES:
        return TYPES[type_]
    fill, light, dark = OTHER_TYPES[zlib.crc32(type_.encode()) % len(OTHER_TYPES)]
    words = type_.replace("_", " ")
    words = words[:1].upper() + words[1:]
    return TypeStyle(words, words, words[:3].upper(), fill, light, dark, "double")


def sort_types(types: Iterable[str]) -> list[str]:
    """Each type once: those of ``TYPES`` in their order, then the others by name."""
    order = list(TYPES)
    return sorted(set(types), key=lambda name: (order.index(name) if name in TYPES else len(order), name))


def label_language(language: str) -> str:
    """The word on screen for a language of a result; ``""`` (a row with an error) is ``No answer``."""
    return LANGUAGES.get(language, language.capitalize()) if language else "No answer"


def read_results(frame: pd.DataFrame) -> pd.DataFrame:
    """The result columns of a job's table under their plain names: they stand last, and may carry a suffix there."""
    return frame.iloc[:, -len(RESULT_COLUMNS) :].set_axis(list(RESULT_COLUMNS), axis=1)


def read_mentions(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per entity of a job's table: ``row`` (its index label), ``language``, ``text`` and ``type``."""
    results = read_results(frame)
    cells = zip(results.index, results["language"], results["entities"], strict=True)
    mentions = [
        (row, language, entity["text"], entity["type"])
        for row, language, entities in cells
        if isinstance(entities, str) and entities
        for entity in json.loads(entities)
    ]
    return pd.DataFrame(mentions, columns=["row", "language", "text", "type"]).astype({"row": "int64"})


def correct_results(frame: pd.DataFrame, corrections: Mapping[int, Correction]) -> pd.DataFrame:
    """A job's table with the corrections, by row number, in the place of the model's answers; ``frame`` stays as it is.

    Laid over the table, which takes seconds to read, so that a correction is seen at once.
    """
    records = {row - 1: correct_record({}, one) for row, one in corrections.items() if 0 < row <= len(frame)}
    frame = frame.copy(deep=False)
    for name, column in zip(frame.columns[-len(RESULT_COLUMNS) :], RESULT_COLUMNS, strict=True):
        cells = [record[column] for record in records.values()]
        if column == "entities":
            cells = [json.dumps(entities, ensure_ascii=False) for entities in cells]
        if cells:
            frame.loc[list(records), name] = pd.Series(cells, index=list(records), dtype=frame[name].dtype)
    return frame


def correct_mentions(mentions: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The ``mentions`` of the model's answers with those of the corrected rows of ``frame`` in their place."""
    corrected = frame[read_results(frame)["corrected"]]
    if corrected.empty:
        return mentions
    kept = mentions[~mentions["row"].isin(corrected.index)]
    return pd.concat([kept, read_mentions(corrected)]).sort_values("row", kind="stable", ignore_index=True)


def least_sure_first(rows: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """``rows`` of a job's table in the order of the model's doubt in its own ``answers``, a table of the same job.

    First those that it failed at, then the least probable languages; those without a probability stand last. Nothing
    is known of how sure it was of an entity. A correction moves no row.
    """
    results = read_results(answers.loc[rows.index])
    sure = results["language_probability"].mask(results["error"] != "", -1.0)
    return rows.loc[sure.sort_values(kind="stable", na_position="last").index]


def list_names(entities: str) -> str:
    """A cell of entities in words: ``Lyon (LOC), Airbus (ORG)``, each name once; an empty cell gives ``""``."""
    names = {(entity["text"], entity["type"]): None for entity in json.loads(entities or "[]")}
    return ", ".join(f"{name} ({style_of(type_).tag})" for name, type_ in names)


def filter_rows(
    frame: pd.DataFrame,
    *,
    languages: Sequence[str] = (),
    types: Sequence[str] = (),
    search: str = "",
    column: str = "",
    only_errors: bool = False,
    only_corrected: bool = False,
    below: float | None = None,
) -> pd.DataFrame:
    """The rows in one of ``languages`` that name one of ``types`` and hold ``search`` in ``column``, in any case.

    What is empty filters nothing. With ``below``, only rows whose language is less probable than that stay; a row
    without a probability does not.
    """
    results = read_results(frame)
    keep = pd.Series(True, index=frame.index)
    if languages:
        keep &= results["language"].isin(languages)
    if types:
        # Exact: a quotation mark inside a name would have a backslash before it.
        named = [f'"type": {json.dumps(name, ensure_ascii=False)}' for name in types]
        keep &= pd.concat([results["entities"].str.contains(words, regex=False) for words in named], axis=1).any(axis=1)
    if search.strip():
        keep &= frame[column].str.contains(search.strip(), case=False, regex=False)
    if only_errors:
        keep &= results["error"] != ""
    if only_corrected:
        keep &= results["corrected"]
    if below is not None:
        keep &= (results["language_probability"] < below).fillna(False).astype(bool)
    return frame[keep]


def pick_rows(frame: pd.DataFrame, mentions: pd.DataFrame, picked: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """The rows that every item of ``picked`` describes: by ``language``, or by a mention of ``type`` and ``name``."""
    rows = set(frame.index)
    for item in picked:
        found = read_results(frame)
        if "type" in item:
            found = mentions[mentions["type"] == item["type"]].set_index("row")
        if "name" in item:
            found = found[found["text"] == item["name"]]
        if "language" in item:
            found = found[found["language"] == item["language"]]
        rows &= set(found.index)
    return frame.loc[sorted(rows)]


def count_types(mentions: pd.DataFrame, types: Iterable[str] = TYPES) -> pd.DataFrame:
    """``type``, ``label``, ``count`` and in how many ``rows``, one row per type, also for a type without mentions."""
    groups = mentions.groupby("type")["row"].agg(["size", "nunique"]).reindex(list(types), fill_value=0)
    counts = groups.reset_index().set_axis(["type", "count", "rows"], axis=1)
    counts.insert(1, "label", [style_of(name).many for name in counts["type"]])
    return counts


def count_names(mentions: pd.DataFrame, type_: str, *, search: str = "", top: int = 20) -> pd.DataFrame:
    """``name``, ``type``, ``count`` and ``rows`` of the ``top`` names of a type that contain ``search``, in any case.

    Most frequent first, names of the same count in alphabetical order.
    """
    chosen = mentions[mentions["type"] == type_]
    if search.strip():
        chosen = chosen[chosen["text"].str.contains(search.strip(), case=False, regex=False)]
    groups = chosen.groupby("text")["row"].agg(["size", "nunique"]).reset_index()
    counts = groups.set_axis(["name", "count", "rows"], axis=1)
    counts.insert(1, "type", type_)
    return counts.sort_values(["count", "name"], ascending=[False, True]).head(top).reset_index(drop=True)


def count_languages(results: pd.DataFrame) -> pd.DataFrame:
    """``language``, ``label`` and number of ``rows`` for every language that occurs, in the usual order."""
    rows = results["language"].value_counts()
    order = [*LANGUAGES, *sorted(set(rows.index) - set(LANGUAGES))]
    counts = rows.reindex([language for language in order if language in rows.index])
    labels = [label_language(language) for language in counts.index]
    return pd.DataFrame({"language": list(counts.index), "label": labels, "rows": counts.to_list()})


def count_types_by_language(mentions: pd.DataFrame) -> pd.DataFrame:
    """``language``, ``language_label``, ``type``, ``label`` and ``count`` for every pair that occurs."""
    groups = mentions.groupby(["language", "type"]).size().reset_index(name="count")
    groups["language_label"] = [label_language(language) for language in groups["language"]]
    groups["label"] = [style_of(name).many for name in groups["type"]]
    return groups[["language", "language_label", "type", "label", "count"]]


def count_confusions(matrix: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """A cell per row of a confusion matrix of languages (``metrics.language_scores``), empty cells too: ``gold``,
    ``predicted``, ``count``, ``share`` of its gold, whether it ``is_right``, and both in words."""
    cells = [
        {
            "gold": gold,
            "predicted": predicted,
            "count": count,
            "share": count / sum(row) if count else 0.0,
            "is_right": gold == predicted,
            "gold_label": label_language(gold),
            "predicted_label": label_language(predicted),
        }
        for gold, row in zip(matrix["labels"], matrix["rows"], strict=False)  # a column without a row: no answer
        for predicted, count in zip(matrix["labels"], row, strict=True)
    ]
    columns = ["gold", "predicted", "count", "share", "is_right", "gold_label", "predicted_label"]
    return pd.DataFrame(cells, columns=columns)


def list_bins(calibration: Mapping[str, Any]) -> pd.DataFrame:
    """The bins of a calibration that hold answers: ``low``, ``high``, ``count``, ``probability`` and ``accuracy``."""
    bins = [one for one in calibration["bins"] if one["count"]]
    return pd.DataFrame(bins, columns=["low", "high", "count", "probability", "accuracy"])


def count_errors(errors: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """``kind``, ``type``, both in words (``kind_label``, ``label``) and ``count`` of the entity errors that occur."""
    counts = Counter((error["kind"], error["type"]) for error in errors)
    found = [
        (kind, type_, ERROR_WORDS[kind], style_of(type_).many, counts[kind, type_])
        for kind in ERROR_WORDS
        for type_ in sort_types(type_ for _, type_ in counts)
        if counts[kind, type_]
    ]
    return pd.DataFrame(found, columns=["kind", "type", "kind_label", "label", "count"])


def to_csv(counts: Counts) -> bytes:
    """The table as CSV for spreadsheets: with a byte order mark, and ``'`` before text that would be a formula."""
    safe = counts.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell)
    return safe.to_csv(index=False, lineterminator="\r\n").encode("utf-8-sig")


def draw_types(counts: pd.DataFrame) -> Chart:
    """Bars: how often each type is named. The selection ``picked`` holds ``type``."""
    return _draw_bars(
        counts,
        "label",
        "count",
        fields=["type"],
        colour=_colour("type", counts["type"]),
        tooltip=["label:N", "count:Q", "rows:Q"],
    )


def draw_names(counts: pd.DataFrame) -> Chart:
    """Bars: how often each name of one type occurs. The selection ``picked`` holds ``name`` and ``type``."""
    fields = ["name", "type"]
    return _draw_bars(
        counts,
        "name",
        "count",
        fields=fields,
        colour=_colour("type", counts["type"]),
        tooltip=["name:N", "count:Q", "rows:Q"],
    )


def draw_languages(counts: pd.DataFrame) -> Chart:
    """Bars: how many rows each language has. The selection ``picked`` holds ``language``."""
    return _draw_bars(
        counts, "label", "rows", fields=["language"], colour=alt.ColorValue(NEUTRAL), tooltip=["label:N", "rows:Q"]
    )


def draw_types_by_language(counts: pd.DataFrame) -> Chart:
    """Bars per language, one for each type, in one order. The selection ``picked`` holds ``language`` and ``type``."""
    types = sort_types(counts["type"])
    labels = [style_of(name).many for name in types]
    offset = alt.YOffset("label:N", sort=labels, bandPosition=0.5, scale=alt.Scale(paddingInner=0.1))
    return _draw_bars(
        counts,
        "language_label",
        "count",
        fields=["language", "type"],
        colour=_colour("label", types, legend=True),
        tooltip=["language_label:N", "label:N", "count:Q"],
        offset=offset,
        sort=list(LANGUAGES.values()),
        height=len(types) * 20 + 14,
    )


def draw_probabilities(probabilities: Mapping[str, float], threshold: float | None) -> Chart:
    """Bars: the probability of each language in percent, and the threshold, if there is one, as a dashed line."""
    data = pd.DataFrame(
        {
            "label": [label_language(language) for language in probabilities],
            "probability": list(probabilities.values()),
            "is_best": [value == max(probabilities.values()) for value in probabilities.values()],
        }
    )
    # Room at the right for the words of a bar that reaches 100%.
    x = alt.X("probability:Q", title=None, scale=alt.Scale(domain=[0, 1.15]), axis=None)
    y = alt.Y("label:N", title=None, sort=None, axis=_name_axis())
    base = alt.Chart(data).encode(x=x, y=y, tooltip=["label:N", alt.Tooltip("probability:Q", format=".1%")])
    colour = alt.condition("datum.is_best", alt.value(TYPES["location"].fill), alt.value(NEUTRAL))
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.7}).encode(color=colour)
    words = base.mark_text(align="left", dx=5, fontSize=13, color=INK).encode(
        text=alt.Text("probability:Q", format=".1%")
    )
    layers: list[alt.Chart] = [bars, words]
    if threshold is not None:
        line = alt.Chart(pd.DataFrame({"threshold": [threshold]})).mark_rule(strokeDash=[5, 4], color=NEUTRAL, size=1.5)
        layers.append(line.encode(x="threshold:Q", tooltip=[alt.Tooltip("threshold:Q", format=".0%")]))
    return alt.layer(*layers).properties(height=BAR_HEIGHT * len(data) + 10)


def draw_confusions(counts: pd.DataFrame) -> Chart:
    """A confusion matrix, rows gold; the tint is the share of the row. The selection ``picked`` holds both sides."""
    picked = alt.selection_point(name="picked", fields=["gold", "predicted"])
    order = list(dict.fromkeys(counts["predicted_label"]))
    axis: dict[str, Any] = {
        "labelFontSize": 13,
        "titleFontSize": 13,
        "labelColor": INK,
        "titleColor": INK,
        "labelLimit": 120,
    }
    axis |= {"ticks": False, "domain": False}
    base = alt.Chart(counts).encode(
        x=alt.X("predicted_label:N", title="Answered", sort=order, axis=alt.Axis(orient="top", labelAngle=0, **axis)),
        y=alt.Y("gold_label:N", title="Right", sort=order, axis=alt.Axis(**axis)),
        tooltip=[
            alt.Tooltip("gold_label:N", title="right"),
            alt.Tooltip("predicted_label:N", title="answered"),
            alt.Tooltip("count:Q", format=","),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    # Words of the page's colour stand on the tint, in either theme: it never gets darker than half.
    cells = base.mark_rect(cursor="pointer", cornerRadius=4, strokeWidth=2).encode(
        color=alt.condition("datum.is_right", alt.value(TYPES["location"].fill), alt.value(TYPES["person"].fill)),
        fillOpacity=alt.FillOpacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 0.5]), legend=None),
        stroke=alt.condition(
            alt.param("picked", empty=False), alt.ColorValue(INK), alt.ColorValue("transparent"), empty=False
        ),
    )
    words = base.mark_text(fontSize=14, color=INK).encode(text=alt.Text("count:Q", format=","))
    return alt.layer(cells.add_params(picked), words).properties(height=46 * max(1, counts["gold"].nunique()) + 50)


def draw_calibration(bins: pd.DataFrame) -> Chart:
    """A reliability diagram: how often answers of one probability are right; on the dashed line, as often as said.

    The area of a point is its number of answers.
    """
    percent = alt.Axis(format=".0%", labelColor=INK, titleColor=INK, labelFontSize=12, titleFontSize=13)
    scale = alt.Scale(domain=[0, 1])
    ideal = alt.Chart(pd.DataFrame({"probability": [0.0, 1.0], "accuracy": [0.0, 1.0]}))
    line = ideal.mark_line(strokeDash=[5, 4], color=NEUTRAL, size=1.5)
    base = alt.Chart(bins).encode(
        tooltip=[
            alt.Tooltip("probability:Q", title="mean probability", format=".1%"),
            alt.Tooltip("accuracy:Q", title="right", format=".1%"),
            alt.Tooltip("count:Q", title="answers", format=","),
        ]
    )
    path = base.mark_line(color=TYPES["location"].fill, size=1.5)
    points = base.mark_circle(color=TYPES["location"].fill, opacity=0.9).encode(
        size=alt.Size("count:Q", scale=alt.Scale(domainMin=0, range=[30, 500]), legend=None)
    )
    x = alt.X("probability:Q", title="Probability of the answer", scale=scale, axis=percent)
    y = alt.Y("accuracy:Q", title="Share that is right", scale=scale, axis=percent)
    return alt.layer(*(layer.encode(x=x, y=y) for layer in (line, path, points))).properties(height=300)


def draw_errors(counts: pd.DataFrame) -> Chart:
    """Bars per kind of entity error, one for each type. The selection ``picked`` holds ``kind`` and ``type``."""
    types = sort_types(counts["type"])
    labels = [style_of(name).many for name in types]
    return _draw_bars(
        counts,
        "kind_label",
        "count",
        fields=["kind", "type"],
        colour=_colour("label", types, legend=True),
        tooltip=["kind_label:N", "label:N", "count:Q"],
        offset=alt.YOffset("label:N", sort=labels, bandPosition=0.5, scale=alt.Scale(paddingInner=0.1)),
        sort=list(ERROR_WORDS.values()),
        height=3 * 20 + 14,
    )


def draw_scores(scores: pd.DataFrame) -> Chart:
    """A point per ``run`` with its ``value`` and, as a line, the interval from ``low`` to ``high``; in table order."""
    axis = alt.Axis(format=".1%", labelColor=INK, labelFontSize=12, tickCount=5)
    base = alt.Chart(scores).encode(
        y=alt.Y("run:N", title=None, sort=None, axis=_name_axis(label_limit=320)),
        tooltip=["run:N", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("value", "low", "high"))],
    )
    x = alt.X("low:Q", title=None, scale=alt.Scale(zero=False, nice=True), axis=axis)
    interval = base.mark_rule(size=3, color=NEUTRAL).encode(x=x, x2="high:Q")
    point = base.mark_circle(size=140, opacity=1, color=TYPES["location"].fill).encode(x="value:Q")
    return alt.layer(interval, point).properties(height=36 * max(1, len(scores)) + 40)


def list_shots(scores: Iterable[ShotScore]) -> pd.DataFrame:
    """``shots``, ``f1``, ``seconds`` and ``tokens``, one row per score."""
    return pd.DataFrame([asdict(score) for score in scores], columns=["shots", "f1", "seconds", "tokens"])


def draw_shots(scores: pd.DataFrame, score: str) -> Chart:
    """A point for every number of ``shots``: ``f1`` (0 to 1, called ``score``) against ``seconds`` per text."""
    x = alt.X("seconds:Q", title="Seconds per text", scale=alt.Scale(zero=True, nice=True), axis=_number_axis("~g"))
    # Never less than ten points high: a text more or less is no mountain.
    y_scale = alt.Scale(domain=[max(0.0, scores["f1"].min() - 0.05), min(1.0, scores["f1"].max() + 0.05)], nice=True)
    y = alt.Y("f1:Q", title=score, scale=y_scale, axis=_number_axis("~%"))
    tooltip = [
        alt.Tooltip("shots:Q", title="Shots"),
        alt.Tooltip("f1:Q", title=score, format=".1%"),
        alt.Tooltip("seconds:Q", title="Seconds per text", format=".3f"),
    ]
    base = alt.Chart(scores).encode(x=x, y=y, tooltip=tooltip)
    line = base.mark_line(color=NEUTRAL, strokeWidth=1.5).encode(order="shots:Q")
    points = base.mark_circle(size=90, color=TYPES["location"].fill, opacity=1)
    words = base.mark_text(dy=-13, fontSize=13, color=INK).encode(text="shots:Q")
    return alt.layer(line, points, words).properties(height=300)


def _draw_bars(
    counts: pd.DataFrame,
    name: str,
    number: str,
    *,
    fields: list[str],
    colour: alt.Color | alt.ColorValue,
    tooltip: list[str],
    offset: alt.YOffset | None = None,
    sort: list[str] | None = None,
    height: int = BAR_HEIGHT,
) -> Chart:
    """Horizontal bars in the table's order with their numbers; a click on a bar picks ``fields``, the others fade."""
    picked = alt.selection_point(name="picked", fields=fields)
    x = alt.X(
        f"{number}:Q", title=None, axis=None, scale=alt.Scale(domain=[0, 1.12 * max(1, counts[number].max() or 0)])
    )
    y = alt.Y(f"{name}:N", title=None, sort=sort, axis=_name_axis())
    base = alt.Chart(counts).encode(x=x, y=y, tooltip=tooltip)
    if offset is not None:
        base = base.encode(yOffset=offset)
    opacity = alt.condition(picked, alt.value(1), alt.value(FADED))
    bars = base.mark_bar(cornerRadiusEnd=3, cursor="pointer").encode(color=colour, opacity=opacity).add_params(picked)
    words = base.mark_text(align="left", dx=5, fontSize=12, color=INK).encode(text=alt.Text(f"{number}:Q", format=","))
    return alt.layer(bars, words).properties(height=height * max(1, counts[name].nunique()) + 10)


def _number_axis(format: str) -> alt.Axis:
    return alt.Axis(format=format, labelColor=INK, titleColor=INK, labelFontSize=12, gridOpacity=0.3, tickCount=6)


def _name_axis(label_limit: int = 170) -> alt.Axis:
    return alt.Axis(labelLimit=label_limit, labelFontSize=13, labelColor=INK, ticks=False, domain=False, grid=False)


def _colour(field: str, types: Iterable[str], *, legend: bool = False) -> alt.Color:
    """The colours of ``types``, which the data names by ``field``: by ``type`` or by ``label``."""
    names = sort_types(types)
    domain = names if field == "type" else [style_of(name).many for name in names]
    scale = alt.Scale(domain=domain, range=[style_of(name).fill for name in names])
    return alt.Color(
        f"{field}:N", scale=scale, title=None, legend=alt.Legend(orient="top", labelColor=INK) if legend else None
    )
