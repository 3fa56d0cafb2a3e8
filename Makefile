# A fresh machine needs Python >= 3.10, make and a package registry; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint clean

run: .venv/runtime
	$(BIN)/python main_imagenet.py

test: .venv/development
	$(BIN)/python -m pytest -n 2

lint: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/development: .venv/runtime requirements-dev.txt requirements-export.txt requirements-timm.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
