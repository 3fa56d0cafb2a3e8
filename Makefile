# A fresh machine needs Python >= 3.10, make and a package registry; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint clean distclean

run: .venv/runtime
	$(BIN)/python main_imagenet.py

test: .venv/development
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Deletes what can be made again; the results in outputs/ stay.
clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
	find . -name outputs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Deletes the results too, but only for a yes from a terminal.
distclean:
	@test -t 0 || { echo "distclean: yes must come from a terminal; nothing was deleted" >&2; exit 2; }
	@printf "distclean deletes outputs/ with all results; type yes to go on: " && read answer \
		&& test "$$answer" = yes || { echo "distclean: nothing was deleted" >&2; exit 2; }
	$(MAKE) clean
	rm -rf outputs

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/development: .venv/runtime requirements-dev.txt requirements-export.txt requirements-hdf5.txt requirements-search.txt requirements-timm.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
