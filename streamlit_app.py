"""The dashboard: page set-up, the way between pages, the model picker. Run with ``streamlit run streamlit_app.py``."""

import streamlit as st

import accounts
import ui

# Inline: Streamlit would fetch an emoji or a Material icon for the browser tab from the internet.
SVG = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'><text y='8' font-size='8'>🌸</text></svg>"
st.set_page_config(page_title="Bloom Lens", page_icon=f"data:image/svg+xml,{SVG}", layout="wide")
if accounts.is_let_in():
    page = ui.navigate()
    ui.pick_model()
    page.run()
    # Last, so that the page stands before the first model is loaded.
    ui.show_model_status()
    accounts.show_log_out()
else:
    ui.navigate(position="hidden")
    accounts.show_log_in()
