# Everything a developer does here. Works with GNU make 3.81, which macOS ships.
#   PYTHON=python3.12 make dev    choose the interpreter (default: the newest of 3.10 to 3.14)
#   VENV=.venv-3.10 make test       choose the environment's folder
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
K3S_ARGS ?=
BIN := $(VENV)/bin
# Images set it; pytest and each program that a test starts would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE
# The pure cores: every branch is tested.
PURE := */local_agent/lifecycle.py,*/local_agent/planner.py,*/router/fleet/address.py,*/router/fleet/membership.py,*/router/policies/*,*/shared/http/headers.py,*/shared/http/origin.py,*/shared/http/sse.py,*/shared/http/wire.py,*/shared/kit/backoff.py,*/shared/kit/plugins.py
K3S = "$(BIN)/python" -m scripts.k3s
K3S_FLAGS = $(if $(filter-out 0,$(DRY_RUN)),--dry-run) $(if $(filter 1,$(YES)),--yes) $(if $(filter 1,$(PURGE)),--purge) $(K3S_ARGS)
SETUP = @VENV="$(VENV)" PYTHON="$(PYTHON)" sh scripts/setup.sh

.PHONY: help setup setup-dev dev up down docker-dev docker-down k3s-up k3s-down k3s-status k3s-doctor lock test coverage test-integration soak bench lint format migrate seed docs dist sbom clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z0-9-]*:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

setup: ## make .venv with everything that runs (no developer tools)
	$(SETUP) run

setup-dev: ## make .venv with the developer tools as well
	$(SETUP) dev

dev: setup ## start router and agent with the embedded model; Ctrl-C stops them
	@exec "$(BIN)/python" -m scripts.dev run

up: setup ## the same in the background, back when ready
	@exec "$(BIN)/python" -m scripts.dev up

down: ## stop what `make up` (or `make dev`) started
	@if [ -x "$(BIN)/python" ]; then exec "$(BIN)/python" -m scripts.dev down; \
	else echo "nothing runs: there is no $(VENV) yet"; fi

docker-dev: ## router and agent as containers, with the embedded model (needs Docker; on a Mac Python too)
	@sh scripts/docker_dev.sh up

docker-down: ## stop those; VOLUMES=1 removes their data too
	@sh scripts/docker_dev.sh down

k3s-up: setup ## llm-d in a Kubernetes of this machine, ends with LLMD_ENDPOINT=… (DRY_RUN=1 only says; K3S_ARGS=--help)
	@exec $(K3S) up $(K3S_FLAGS)

k3s-down: setup ## let it use nothing; PURGE=1 takes away what k3s-up made, models too
	@exec $(K3S) down $(K3S_FLAGS)

k3s-status: setup ## what of it runs
	@exec $(K3S) status $(K3S_FLAGS)

k3s-doctor: setup ## what is wrong with it, and the command that helps
	@exec $(K3S) doctor $(K3S_FLAGS)

test: setup-dev ## unit, property and contract tests, with branch coverage (PYTEST_ARGS=… some of them)
	@"$(BIN)/python" -m scripts.chart_tools >/dev/null
	@if [ -n "$(PYTEST_ARGS)" ]; then exec "$(BIN)/python" -m pytest -n auto -m "not integration" $(PYTEST_ARGS); fi; \
	"$(BIN)/python" -m pytest -n auto --dist worksteal --cov --cov-branch --cov-report=term \
	  --cov-fail-under=90 && $(MAKE) --no-print-directory coverage

coverage: ## say what of the pure cores the last `make test` did not reach: it has to be nothing
	@"$(BIN)/python" -m coverage report --include="$(PURE)" --fail-under=100

test-integration: setup-dev ## tests of whole programs, against real engines and package downloads (PYTEST_ARGS=… some of them)
	@"$(BIN)/python" -m scripts.chart_tools >/dev/null
	@if [ -n "$(PYTEST_ARGS)" ]; then exec "$(BIN)/python" -m pytest -m "integration or slow" $(PYTEST_ARGS); fi; \
	"$(BIN)/python" -m pytest -n auto --dist worksteal -m slow; slow=$$?; \
	"$(BIN)/python" -m pytest -m integration && exit $$slow

soak: setup-dev ## the router under random faults for 30 minutes (SOAK_ARGS="--minutes 2"); nothing may leak or be lost
	@exec "$(BIN)/python" -m tests.soak $(SOAK_ARGS)

bench: setup-dev ## measure the data plane, write docs/performance.md (BENCH_ARGS="--quick" in a minute)
	@"$(BIN)/python" -m benchmarks $(BENCH_ARGS)

# .pre-commit-config.yaml has the same checks; a test compares them.
lint: setup-dev ## ruff, black, mypy, import-linter, sizes, generated docs, shell scripts, workflows, Dockerfiles
	@"$(BIN)/python" -m ruff check .
	@"$(BIN)/python" -m black --check --quiet . || { "$(BIN)/python" -m black --check .; exit 1; }
	@"$(BIN)/python" -m mypy
	@"$(BIN)/lint-imports"
	@"$(BIN)/python" -m scripts.check_sizes
	@"$(BIN)/python" -m scripts.gen_config_docs --check
	@"$(BIN)/python" -m scripts.gen_reference_docs --check
	@"$(BIN)/python" -m scripts.gen_chart_docs --check
	@"$(BIN)/shellcheck" scripts/*.sh .ci/run
	@"$(BIN)/actionlint" -shellcheck "$(BIN)/shellcheck" .github/workflows/*.yml
	@"$(BIN)/zizmor" --offline --quiet .github
	@"$(BIN)/hadolint" router/Dockerfile local_agent/Dockerfile

format: setup-dev ## let black and ruff rewrite what they can
	@"$(BIN)/python" -m black --quiet .
	@"$(BIN)/python" -m ruff check --fix .

lock: setup ## write requirements/*.txt and local_agent/constraints/*.txt: what images and engines install (UPGRADE=1: newest versions)
	@sh scripts/lock.sh

migrate: setup ## bring the registry to the newest schema
	@"$(BIN)/iir" migrate

seed: setup ## write the known providers and prefix rules; changes nothing that is there
	@"$(BIN)/iir" seed

docs: setup-dev ## build the documentation into site/
	@"$(BIN)/python" -m scripts.gen_config_docs
	@"$(BIN)/python" -m scripts.gen_reference_docs
	@"$(BIN)/python" -m scripts.gen_chart_docs
	@NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs build --strict --quiet
	@echo "site/index.html"

dist: setup-dev ## build wheel and sdist into dist/
	@rm -rf dist
	@"$(BIN)/python" -m build --no-isolation >"$(VENV)/dist.log" 2>&1 || { cat "$(VENV)/dist.log"; exit 1; }
	@ls dist

sbom: ## write what the images install into dist/, as CycloneDX
	@sh scripts/sbom.sh

clean: ## remove caches and built files; keeps .venv and data
	@rm -rf benchmarks/.cache build dist site .coverage coverage.xml .pytest_cache .mypy_cache .ruff_cache \
	  .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
