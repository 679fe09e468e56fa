"""Parts of pages that are more than a few Streamlit calls."""
