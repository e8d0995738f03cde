# The same names as in the Makefile, which does the work. `just dev` = `make dev`.

# list the recipes
default:
    @just --list

help:
    @make help

# make .venv with everything that runs
setup:
    @make setup

# start router and agent with the embedded model; Ctrl-C stops them
dev:
    @make dev

# the same in the background, back when ready
up:
    @make up

# stop what `up` started
down:
    @make down

# router and agent as containers, back when the model answers
docker-dev:
    @make docker-dev

# stop those; VOLUMES=1 removes their data too
docker-down:
    @make docker-down

# llm-d in a Kubernetes of this machine, ends with LLMD_ENDPOINT=…
k3s-up:
    @make k3s-up

# let it use nothing; PURGE=1 takes away what k3s-up made
k3s-down:
    @make k3s-down

# what of it runs
k3s-status:
    @make k3s-status

# what is wrong with it, and the command that helps
k3s-doctor:
    @make k3s-doctor

# unit, property and contract tests, with branch coverage
test:
    @make test

# say what of the pure cores the last `make test` did not reach: it has to be nothing
coverage:
    @make coverage

# tests against real engines and package downloads
test-integration:
    @make test-integration

# the router under random faults for 30 minutes
soak:
    @make soak

# measure the data plane, write docs/performance.md
bench:
    @make bench

# ruff, black, mypy, import-linter, sizes, generated docs, shell scripts, workflows, Dockerfiles
lint:
    @make lint

# let black and ruff rewrite what they can
format:
    @make format

# write requirements/*.txt, which the images install
lock:
    @make lock

# bring the registry to the newest schema
migrate:
    @make migrate

# write the known providers and prefix rules
seed:
    @make seed

# build the documentation into site/
docs:
    @make docs

# build wheel and sdist into dist/
dist:
    @make dist

# write what the images install into dist/, as CycloneDX
sbom:
    @make sbom

# remove caches and built files
clean:
    @make clean
