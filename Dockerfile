# Dashboard and REST with the embedded model. Nothing of the image is written to: all that changes is in /data.
# The digest is that of Python 3.13.15 on Debian 13.6, of September 2026; a later one brings their security updates.
FROM python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285 AS packages
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY requirements.txt ./
# PyPI's torch brings gigabytes for NVIDIA's cards; the same version for processors alone is in PyTorch's own index.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu -r requirements.txt

FROM python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BLOOM_LENS_DATA=/data \
    HF_HOME=/data/hub \
    HOME=/data \
    TMPDIR=/data
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin lens \
    && install --directory --owner lens --group lens /data
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
# What changes least comes first.
COPY models/bloom-mini models/bloom-mini
COPY LICENSE ./
COPY .streamlit/config.toml .streamlit/
COPY streamlit_app.py api.py gateway.py messages.py accounts.py ui.py plots.py ./
COPY pages pages
COPY chains chains
USER 10001:10001
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["uvicorn", "api:app", "--host", "0.0.0.0", "--port", "7860"]
