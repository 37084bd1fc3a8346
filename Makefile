# sensorlab: two commands do all, `make tune-bev` and `make test`; both start from nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help install tune-bev test test-slow lint format bench clean

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	@echo "== creating $(VENV) and installing sensorlab (about two minutes) =="
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The CPU wheel of torch comes first: resolved later, other packages pull gigabytes of CUDA libraries.
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP) ## create .venv and install everything

tune-bev: $(STAMP) ## the main job: embedded data, a sweep, the ranked table
	@echo "== the BEV sweep on the embedded world =="
	$(BIN)/python experiments/tune_bev.py

test: $(STAMP) ## lint, types and the tests (under 15 minutes on 2 cores)
	@$(MAKE) --no-print-directory lint
	@echo "== tests =="
	$(BIN)/python -m pytest -m "not slow" -q --durations=15

test-slow: $(STAMP) ## the tests that take long
	$(BIN)/python -m pytest -m slow -q --durations=15

lint: $(STAMP) ## ruff and mypy
	@echo "== ruff, mypy =="
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## every benchmark, as JSON
	@for name in $$($(BIN)/sensorlab bench --list); do echo "== $$name =="; $(BIN)/sensorlab bench $$name --json || exit 1; done

clean: ## remove what the jobs wrote
	rm -rf outputs mlartifacts mlruns.db mlruns.db-shm mlruns.db-wal
