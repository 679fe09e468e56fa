"""The dashboard: page set-up, the way between pages, the model picker. Run with ``streamlit run streamlit_app.py``."""

import streamlit as st

import ui

st.set_page_config(page_title="Bloom Lens", page_icon=":material/local_florist:", layout="wide")
page = st.navigation(
    [
        st.Page("pages/single_text.py", title="Single text", icon=":material/short_text:", default=True),
        st.Page("pages/batch.py", title="Batch", icon=":material/table_rows:"),
        st.Page("pages/charts.py", title="Charts", icon=":material/bar_chart:"),
    ]
)
ui.pick_model()
page.run()
# Last, so that the page stands before the first model is loaded.
ui.show_model_status()
