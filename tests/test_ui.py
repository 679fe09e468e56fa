import html
import re
import tomllib
from pathlib import Path

import pytest

import ui
from chains.schema import Entity
from chains.store import Job
from plots import OTHER_TYPES, TYPES, style_of


def entity(text, surface, type_="person"):
    start = text.index(surface)
    return Entity(text=surface, type=type_, start=start, end=start + len(surface))


def visible(markup):
    return html.unescape(re.sub(r"<abbr.*?</abbr>|<[^>]*>", "", markup))


def test_entities_are_marked_in_place_with_tag_and_underline():
    text = "Ana met Bo in Lyon."
    markup = ui.entity_html(text, [entity(text, "Lyon", "location"), entity(text, "Ana")])
    assert visible(markup) == text
    assert markup.count("<mark") == 2
    assert markup.index("PER</abbr>") < markup.index("LOC</abbr>")
    assert "dashed" in markup and "solid" in markup and "dotted" not in markup


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=alert(1)>", "a & b <b>", "\"quotes\" 'too'", "😀 é e\u0301\nline"]
)
def test_text_is_escaped_inside_and_outside_of_marks(text):
    inside = ui.entity_html(text, [Entity(text=text, type="person", start=0, end=len(text))])
    outside = ui.entity_html(text, [])
    assert "<img" not in inside + outside and "<b>" not in inside + outside
    assert visible(inside) == visible(outside) == text


def test_of_overlapping_entities_the_first_is_marked_and_no_text_is_lost():
    entities = [Entity(text="ab", type="person", start=0, end=2), Entity(text="bc", type="person", start=1, end=3)]
    markup = ui.entity_html("abc", entities)
    assert markup.count("<mark") == 1 and visible(markup) == "abc"


def test_markdown_shows_unchanged():
    assert ui.escape_markdown("<Rex>(dog) *a* $x$ :red[b]") == r"\<Rex\>\(dog\) \*a\* \$x\$ \:red\[b\]"
    assert ui.escape_markdown("at 9:30, :material/home:") == "at 9\\:30, \\:\u2060material/home\\:"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "a while"),
        (0, "0 seconds"),
        (0.314, "0.31 seconds"),
        (1.0, "1 second"),
        (6.78, "6.8 seconds"),
        (99.6, "100 seconds"),
        (240, "4 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_durations_in_words(seconds, words):
    assert ui.format_seconds(seconds) == words


def test_rows_of_a_running_job_are_read_again_a_few_times_and_at_its_end():
    def version(**values):
        return ui.table_version(Job("id", "name", "", "", "", "text", "embedded", 0, 2_000_000, "", **values))

    assert len({version(state="running", done=done) for done in range(64, 2_000_000, 64)}) < 50
    assert version(state="waiting", done=64) == version(state="running", done=64)
    assert version(state="done", done=64) != version(state="running", done=64)
    # Rows that failed and are tried again change while their number does not.
    assert version(state="done", done=64, seconds=1.0) != version(state="done", done=64, seconds=1.5)
    assert version(state="running", done=64, retried=9) != version(state="running", done=64, retried=20)


def test_sizes_and_rows_in_words():
    assert [ui.format_bytes(size) for size in (1, 4_100, 34_000_000, 1_660_000_000)] == [
        "1 KB",
        "5 KB",
        "34 MB",
        "1.7 GB",
    ]
    assert [ui.count_rows(number) for number in (0, 1, 12402)] == ["0 rows", "1 row", "12,402 rows"]


def luminance(colour):
    """Relative luminance, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def blend(colour, background, alpha):
    pairs = [(int(colour[place : place + 2], 16), int(background[place : place + 2], 16)) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(alpha * top + (1 - alpha) * bottom):02x}" for top, bottom in pairs)


@pytest.mark.parametrize("name", [*TYPES, "product", "event", "work of art", "<b>"])
@pytest.mark.parametrize(("theme", "alpha"), [("light", 0x1F / 255), ("dark", 0x40 / 255)])
def test_marks_tags_and_bars_stand_out_in_both_themes(name, theme, alpha):
    colours = tomllib.loads(Path(".streamlit/config.toml").read_text())["theme"][theme]
    style = style_of(name)
    page = colours["backgroundColor"]
    mark = blend(style.fill, page, alpha)
    assert contrast(colours["textColor"], mark) >= 4.5
    assert contrast(style.light_ink if theme == "light" else style.dark_ink, mark) >= 4.5
    assert contrast(style.fill, page) >= 3
    assert contrast("#FFFFFF", colours["primaryColor"]) >= 4.5  # words on a button


def test_names_of_types_are_escaped():
    markup = ui.entity_html("abc", [Entity(text="abc", type='<img src=x>"', start=0, end=3)])
    assert "<img" not in markup and "&lt;IM</abbr>" in markup and visible(markup) == "abc"


def test_tokens_are_escaped_and_everything_invisible_is_shown():
    markup = ui.tokens_html([b"<b>&", b" x", b"\xf0\x9f", b"\x98\x80", "\u200bé".encode(), b".\n", b"\x00"])
    assert "<b>" not in markup
    assert visible(markup) == "<b>&·x[F0 9F][98 80][U+200B]é.↵[U+0000]"
    assert markup.count("box-shadow") == 7 and markup.count("<br>") == 1


def test_every_other_style_is_somebodys():
    assert {style_of(f"type {number}").fill for number in range(50)} == {fill for fill, _, _ in OTHER_TYPES}


def test_types_differ_without_colour():
    assert (
        len({style.tag for style in TYPES.values()}) == len({style.underline for style in TYPES.values()}) == len(TYPES)
    )
