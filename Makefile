# Everything below sets up what it needs: `make quickstart` and `make test` work from a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help quickstart exit-quickstart serve-quickstart test lint docs lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 26
	@echo "  PYTHON=python3.12 chooses the interpreter (3.10 to 3.13); run 'make clean' before changing it."

quickstart: .venv/.installed  ## set up .venv, then run the tour: data, training, evaluation, report
	$(BIN)/python -m tools.quickstart

exit-quickstart: .venv/.installed  ## the same tour for EXIT
	$(BIN)/python -m tools.quickstart exit

serve-quickstart: .venv/.installed  ## after quickstart: export MKT, serve it, compare its scores, measure
	$(BIN)/python -m tools.serve_quickstart

# One process more than cores: tests of clusters, networks and stores wait much of their time.
test: lint  ## set up .venv, then run everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 5 --dist loadfile --durations 30

lint: .venv/.installed  ## set up .venv, then ruff, mypy and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint launch/containers/*.Containerfile

docs: .venv/.installed  ## set up .venv, then the documentation: build/docs/index.html
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

# The stamps are written last, so that what was broken off starts over. A changed lock empties .venv: nothing that the
# lock does not name may linger there. torch brings its dependencies, since only its wheel knows whether it needs the
# CUDA libraries; everything else comes from the lock alone, since torchrec's metadata would add FBGEMM's CUDA build.
.venv/.locked: requirements/cpu.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v[:2] <= (3, 13) and \
	  f"Python {v[0]}.{v[1]} found, 3.10 to 3.13 needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --constraint requirements/cpu.lock torch
	$(PIP) install --quiet --no-deps --requirement requirements/cpu.lock
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock:  ## make requirements/cpu.lock and serve.lock anew (asks the package index)
	$(PYTHON) -m venv --clear build/uv
	build/uv/bin/python -m pip --disable-pip-version-check install --quiet uv
	build/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --no-python-downloads \
	  --excludes requirements/cpu.excludes --extra data --extra dev --extra docs --extra export --extra lake --extra serve --extra spark --extra trackers --annotation-style line \
	  --custom-compile-command "make lock" --output-file requirements/cpu.lock \
	  requirements/cpu.in pyproject.toml
	build/uv/bin/uv pip compile --quiet --universal --python-version 3.10 --no-python-downloads \
	  --constraint requirements/cpu.lock --annotation-style line --custom-compile-command "make lock" \
	  --output-file requirements/serve.lock requirements/serve.in

clean:  ## remove .venv, caches and builds (never runs/ or data/)
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
