# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format image bench fuzz clean

demo: .venv/.ready
	$(BIN)/paddock demo

test: .venv/.ready
	$(BIN)/python -m pytest

lint: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

image: .venv/.ready
	image/build --wheel "$$($(PYTHON) tools/setup.py --wheel)"

bench: .venv/.ready
	$(BIN)/python bench/gate.py
	$(BIN)/python bench/sandbox.py
	$(BIN)/python bench/headers.py

fuzz: .venv/.ready
	$(BIN)/python -m tests.fuzz.run
	$(BIN)/python -m pytest -p no:cacheprovider tests/e2e/test_openapi.py --openapi-examples 200

.venv/.ready: tools/setup.py pyproject.toml $(wildcard requirements/*.txt)
	$(PYTHON) tools/setup.py

clean:
	rm -rf .venv build dist
