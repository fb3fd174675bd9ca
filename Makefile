# `make demo` and `make test` work on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow check format clean

demo: $(READY)  ## the whole journey on the embedded starter
	$(BIN)/demeanor demo

test: $(READY)  ## the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2

check: $(READY)  ## format, lint, types, the order of the rooms
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_rooms.py

format: $(READY)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

$(READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache
