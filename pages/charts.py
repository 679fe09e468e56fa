"""A job's results → what is named, who is named most, in which languages; a click on a bar shows its rows."""

from collections.abc import Callable

import altair as alt
import pandas as pd
import streamlit as st

import plots
import ui
from chains.tables import to_csv
from plots import TYPES


def show_chart(question: str, counts: pd.DataFrame, draw: Callable[[pd.DataFrame], alt.LayerChart], key: str) -> list[dict]:
    """One question and its chart; the values of the bars that the user picked in it."""
    if counts.empty:
        st.caption("Nothing here matches the filters.")
        return []
    event = st.altair_chart(draw(counts), key=key, on_select="rerun")
    st.download_button("CSV", to_csv(counts), f"{key}.csv", "text/csv", key=f"csv {key}", on_click="ignore", type="tertiary")
    return list(event.selection.get("picked", []))


st.title("Charts")
jobs = {job.id: job for job in ui.get_jobs().list() if job.done}
if not jobs:
    st.info("Charts are drawn from a batch of texts, and there is none yet. Run one first, with a file or sample data.")
    if st.button("Go to Batch", key="to_batch", type="primary"):
        st.switch_page("pages/batch.py")
