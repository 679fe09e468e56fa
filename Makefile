# Two commands matter: `make run` starts the dashboard, `make test` runs every test. Both do their own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test lint check secrets audit bench clean

run: $(VENV)/.installed
	$(BIN)/python -m streamlit run streamlit_app.py

test: $(VENV)/.installed-dev browser
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint secrets audit

# Lines that only look like secrets: the commits of models, and addresses of databases that show how one is written.
secrets: $(VENV)/.installed-dev
	git ls-files -z -- ':!models' ':!training/own' ':!*.png' | xargs -0 $(BIN)/detect-secrets-hook --exclude-lines '_bloomz\(|//user:password@'

# Asks the service of known vulnerabilities about every installed package. One that it cannot be asked about fails too.
# Without the internet: a mirror of OSV, as in make audit AUDIT='--vulnerability-service osv --osv-url http://mirror/v1/query'.
AUDIT ?=
audit: $(VENV)/.installed-dev
	@$(BIN)/pip-audit --strict --progress-spinner off $(AUDIT) || { echo "make audit: pip-audit found a vulnerability or could not ask about one; its words are above. Neither passes." >&2; exit 1; }

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.bench_memory embedded random:560m random:1b1
	$(BIN)/python -m benchmarks.bench_speed --model random:560m
	$(BIN)/python -m benchmarks.bench_speed --model random:1b1 --rows tuned,ctranslate2,ours
	$(BIN)/python -m benchmarks.bench_speed --model embedded --rows plain,tuned,ours

clean:
	rm -rf $(VENV)

$(VENV)/.created:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Bloom Lens needs Python 3.11 or newer: make PYTHON=python3.11 run')"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-train.txt requirements-harness.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev requirements-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

# The browser tests drive Chromium: the one on the path, else Debian's package, else Playwright's own.
.PHONY: browser
browser: $(VENV)/.installed-dev
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	|| $(BIN)/python -m playwright install chromium
