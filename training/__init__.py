"""Training of the embedded model; run with ``python -m training.mini``."""
