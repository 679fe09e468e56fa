"""A chart with its numbers to take home; its own menu saves it as PNG or SVG."""

from collections.abc import Callable

import streamlit as st

import plots

__all__ = ["show_chart"]


def show_chart(counts: plots.Counts, draw: Callable[[plots.Counts], plots.Chart], key: str) -> list[dict[str, str]]:
    """The chart and its numbers as CSV; returns what the user picked in it."""
    if counts.empty:
        st.caption("There are none in these rows.")
        return []
    event = st.altair_chart(draw(counts), key=key, on_select="rerun")
    st.download_button(
        "CSV",
        plots.to_csv(counts),
        f"{key}.csv",
        "text/csv",
        key=f"csv {key}",
        on_click="ignore",
        icon=":material/download:",
    )
    return list(event.selection.get("picked", []))
