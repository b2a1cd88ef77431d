# Only relative paths, and every tool through `.venv/bin/python -m`: the checkout's path may have spaces in it.

PYTHON ?= python3
RUN := .venv/bin/python -m
CODE := app core worker cli migrations bench .ci/audit
export PYTHON
# Each process that is started, of which tests have hundreds, would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

# make run PORT=9001 DATA_DIR="another folder" WORKERS=2
quoted = '$(subst ','\'',$(1))'
OPTIONS = $(if $(PORT), --port $(call quoted,$(PORT)))$(if $(DATA_DIR), --data-dir $(call quoted,$(DATA_DIR)))

.DEFAULT_GOAL := help
.PHONY: help setup demo run test lint fuzz audit bench soak screens constraints vendor clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## make .venv with the exact versions of constraints.txt (again only when they changed)
	@.ci/setup

demo: setup ## start everything and watch a webhook being delivered (PORT=, DATA_DIR=)
	@$(RUN) cli demo$(OPTIONS)

run: setup ## start the platform with its own PostgreSQL and Valkey, data in var/ (PORT=, DATA_DIR=, WORKERS=)
	@$(RUN) cli up$(OPTIONS)$(if $(WORKERS), --workers $(call quoted,$(WORKERS)))

lint: setup ## style, types, faults of security and the rule on imports
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) bandit --quiet --configfile pyproject.toml --recursive $(CODE)
	@# import-linter can't be run with -m
	.venv/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

test: lint ## lint and all tests
	@# Four at a time on two cores: many of the tests wait rather than compute, and a file's share what they plant.
	@# In their order, the slow files first: by default the files of many tests are, which are the quick ones.
	$(RUN) pytest -n 4 --dist loadfile --no-loadscope-reorder --durations 15

fuzz: setup ## a long run of strange requests by the OpenAPI document; of each kind for each operation (EXAMPLES=300)
	@$(RUN) tests.fuzz$(if $(EXAMPLES), $(call quoted,$(EXAMPLES)))

audit: setup ## is a dependency known to be vulnerable? Error 3: that could not be found out; see docs/dependencies.md
	@.venv/bin/python .ci/audit

bench: setup ## measure load and latency on this machine
	@$(RUN) bench

soak: setup ## an hour of mixed faults under load, and an exact ledger; see docs/reliability.md
	@$(RUN) tests.faults.soak

screens: setup ## take the pictures in docs/screens anew; needs Chromium
	@$(RUN) tests.browser.screens

constraints: ## renew constraints.txt with the newest versions that pyproject.toml allows
	@.ci/constraints

vendor: setup ## take the browser's libraries anew from npm, in the versions that .ci/vendor names
	@.ci/vendor

clean: ## remove .venv and caches; data in var/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./var -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
