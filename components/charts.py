"""A chart with its numbers to take home; its own menu saves it as PNG or SVG."""

from collections.abc import Callable

import streamlit as st

import plots

__all__ = ["show_chart"]


def show_chart(
    counts: plots.Counts, draw: Callable[[plots.Counts], plots.Chart], key: str, *, is_picked: bool = True
) -> list[dict[str, str]]:
    """The chart and its numbers as CSV; returns what the user picked in it, if one can be picked in (``is_picked``)."""
    if counts.empty:
        st.caption("There are none in these rows.")
        return []
    event = st.altair_chart(draw(counts), key=key, on_select="rerun" if is_picked else "ignore")
    st.download_button(
        "CSV",
        plots.to_csv(counts),
        f"{key.split()[0]}.csv",
        "text/csv",
        key=f"csv {key}",
        on_click="ignore",
        icon=":material/download:",
    )
    return list(event.selection.get("picked", [])) if is_picked else []
