# Two commands do all: `make demo` and `make test`. Both set up .venv first.
PY := .venv/bin/python
export OMP_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE  # many processes start, and each would compile all that it imports

.PHONY: demo test test-slow test-timing lint setup

demo: setup
	.venv/bin/polyarm demo

test: lint
	$(PY) -m pytest -q -n 2

test-slow: setup
	$(PY) -m pytest -q -m slow

test-timing: setup
	$(PY) -m pytest -q -m timing

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

setup:
	@./setup.sh
