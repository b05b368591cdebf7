# SPDX-License-Identifier: Apache-2.0
# Needs git, make and python3 >= 3.11 with venv; everything else comes from requirements.lock.

PYTHON := .venv/bin/python
UV := .venv/bin/uv
# Newer than the lock and pyproject.toml: .venv is up to date.
READY := .venv/.ready
# A test that hangs ends the run after half an hour, with the stacks of all threads.
PYTEST := $(PYTHON) -m pytest -o faulthandler_timeout=1800 -o faulthandler_exit_on_timeout=true
# Several processes, because most tests wait for servers: two groups need an Airflow, the rest goes by files.
PARALLEL := --dist loadgroup --no-loadscope-reorder --max-worker-restart 0
DEMO_MARKER := .demo/.airflow-provider-getimg-demo
# Copies of images that may have been paid for: `clean` keeps them, as each run of the demo does.
DEMO_IMAGES := .demo/images
SETS := 3.1.2 3.1.8 3.2.2 3.3.0 newest lowest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo ui cluster unit test test-long bench fix lint test-matrix versions release-check docs lock clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1|/p' Makefile | \
	    while IFS='|' read -r name what; do printf '  make %-13s %s\n' "$$name" "$$what"; done

setup: $(READY)  ## make .venv from the lock (the other targets do this if needed)

demo: $(READY)  ## generate an image with the simulator, and save it to a local S3 server
	@$(PYTHON) -m devstack.demo

ui: $(READY)  ## the same, and leave Airflow's UI up until Ctrl-C
	@$(PYTHON) -m devstack.demo --keep

cluster: $(READY)  ## start what docker-compose.yaml describes as processes, until Ctrl-C
	@$(PYTHON) -m devstack.cluster

unit: $(READY)  ## run the tests that start no server and no process (under a minute)
	$(PYTEST) tests/unit

test: $(READY)  ## run the tests (some start Airflow; those with a browser need Chromium)
	$(PYTEST) --numprocesses 3 $(PARALLEL) -m "not long"

test-long: $(READY)  ## run the tests that take minutes
	$(PYTEST) --numprocesses 2 $(PARALLEL) -m long

# Three cells at once on two cores: each waits for half of its time, for servers that start and time-outs that are tested.
# A part of it: make test-matrix SETS="newest lowest" PYTHONS=3.12
test-matrix: $(READY)  ## test the wheel on all Pythons and Airflows (about 80 minutes)
	printf '%s\n' $(SETS) | xargs -P 3 -I SET $(PYTHON) -m nox --tags SET $(addprefix --force-python=,$(PYTHONS))

versions: $(READY)  ## write the results of `make test-matrix` into docs/versions.md
	$(PYTHON) docs/versions.py

release-check: $(READY)  ## build what a release would be, and run it in an empty environment
	rm -rf dist
	$(PYTHON) -m build --no-isolation
	$(PYTHON) -m twine check --strict dist/*
	$(PYTHON) -m check_wheel_contents dist/*.whl
	$(PYTHON) -m nox --session release

bench: $(READY)  ## measure speed and memory, compared with other tools (about 20 minutes)
	$(PYTHON) -m benchmarks

fix: $(READY)  ## format, and fix what can be fixed
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

lint: $(READY)  ## check style, types, words and who imports whom
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	.venv/bin/lint-imports --no-cache --no-logo
	$(PYTHON) -m mypy --strict airflow_provider_getimg devstack benchmarks noxfile.py
	$(PYTHON) tests/style.py

docs: $(READY)  ## build the handbook into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

lock: $(UV)  ## resolve the dependencies in pyproject.toml again
	$(UV) pip compile pyproject.toml --extra testing --group dev --universal \
	    --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	    --output-file requirements.lock
	$(UV) pip compile pyproject.toml requirements-image.in --extra simulator --constraints requirements.lock \
	    --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	    --output-file requirements-image.lock

clean:  ## delete what the targets above made, but not the images in .demo/images
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .matrix dist build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	if [ -f $(DEMO_MARKER) ]; then \
	    find .demo -mindepth 1 -maxdepth 1 ! -path $(DEMO_MARKER) ! -path $(DEMO_IMAGES) -exec rm -rf {} +; \
	    if [ ! -e $(DEMO_IMAGES) ]; then rm -rf .demo; fi; \
	fi

# The byte code is compiled here once, by all cores, instead of by each process of the first run.
$(READY): $(UV) requirements.lock pyproject.toml
	@echo "Installing the locked dependencies into .venv (about 1.6 GB)"
	@$(UV) pip sync --python $(PYTHON) --quiet --require-hashes --compile-bytecode \
	    requirements.lock
	@$(UV) pip install --python $(PYTHON) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(UV): requirements-uv.txt
	@found=; \
	for python in python3 python3.13 python3.12 python3.11; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	        2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "This needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv)." >&2; \
	    exit 1; \
	fi; \
	"$$found" -m venv .venv
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    --requirement requirements-uv.txt
	@touch $@
