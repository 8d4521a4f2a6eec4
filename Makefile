# Set up, run, test and check tsla. Everything is installed into .venv, at the versions of requirements.lock.
# PYTHON=... names the interpreter to build .venv with; unset, the first of the list that is new enough.

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow bench check format clean

BIN := .venv/bin
CPP := $(wildcard tsla/kernels/cpu/*.h tsla/kernels/cpu/*.cpp tsla/tasks/*.cpp)
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1 -/p' Makefile

quickstart: .venv/.ready-run  ## set everything up and run the main experiment
	$(BIN)/tsla train

test: .venv/.ready-dev  ## set everything up and run the tests
	$(BIN)/pytest -n 2

# pytest exits 5 when nothing was selected: no slow test is not a failure, anything else is.
test-slow: .venv/.ready-dev  ## the slow tier of the tests
	$(BIN)/pytest -m slow -n 2 || [ $$? -eq 5 ]

bench: .venv/.ready-bench  ## speed and memory beside the field's packages: docs/results/bench, and the README's table
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench.sh

check: .venv/.ready-dev  ## lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready-dev  ## rewrite the code in the house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:  ## remove caches; runs/, data/ and .venv stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find tsla tests scripts -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is the last thing written, so a set-up that was cut short is taken up again; a .venv without a working
# Python and pip is built anew.  torch goes first and alone: unpinned, pip may fetch several builds of gigabytes each.
.venv/.ready-run: pyproject.toml requirements.lock
	@if ! { $(BIN)/python -c '$(NEW_ENOUGH)' && $(PIP) --version; } >/dev/null 2>&1; then \
		python="$(PYTHON)"; \
		if ! "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
			echo "tsla needs Python 3.11 or newer (got: $${python:-none found}); name one: make PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "$$python -m venv .venv"; "$$python" -m venv --clear .venv; \
	fi
	$(PIP) install -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(PIP) install -c requirements.lock -e .
	@touch $@

.venv/.ready-dev: .venv/.ready-run
	$(PIP) install -c requirements.lock -e '.[dev,parity]'
	@touch $@

.venv/.ready-bench: .venv/.ready-run
	$(PIP) install -c requirements.lock -e '.[bench]'
	@touch $@
