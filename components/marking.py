"""A text in which names are marked by selecting them, by ``marking.js`` inside Streamlit's own page."""

from collections.abc import Callable, Iterable
from pathlib import Path

import streamlit as st

import ui
from chains.schema import Entity
from plots import style_of

__all__ = ["mark_names"]

HTML = """
<div class="marking">
  <div class="marking-text"></div>
  <div class="marking-bar">
    <span class="marking-chosen" aria-live="polite"></span>
    <span class="marking-buttons" role="group" aria-label="What the selected text is"></span>
  </div>
</div>
"""
HINT = "Select words or click a marked name, then say what it is:"
NONE = "Not a name"

# Not isolated: a browser tells nobody outside of a shadow root what is selected in it.
_component = st.components.v2.component(
    "bloom_lens_marking",
    html=HTML,
    css=Path(__file__).with_name("marking.css").read_text(encoding="utf-8"),
    js=Path(__file__).with_name("marking.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def mark_names(
    text: str,
    entities: Iterable[Entity],
    types: Iterable[str],
    *,
    key: str,
    on_mark: Callable[[int, int, str | None], None],
) -> None:
    """Show ``text`` with its entities, which do not overlap; ``on_mark(start, end, type)`` is called when the user says
    what a part of it is: one of ``types``, or ``None`` for no name. Offsets count code points."""

    def take() -> None:
        marked = st.session_state[key]["mark"]
        on_mark(int(marked["start"]), int(marked["end"]), marked["type"] or None)

    styles = {
        name: {"one": style.one, "tag": style.tag, "underline": style.underline} | ui.type_colours(style)
        for name, style in ((name, style_of(name)) for name in types)
    }
    places = [{"start": entity.start, "end": entity.end, "type": entity.type} for entity in entities]
    data = {"text": text, "entities": places, "types": styles, "hint": HINT, "none": NONE}
    _component(key=key, data=data, on_mark_change=take)
