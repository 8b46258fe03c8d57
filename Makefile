# One verb per line in `make help`. Every set-up step is a stamp in the virtual
# environment, so a second call does nothing it need not do.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash

VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
CORE := anatomy arrays artefacts change conditions domain elements header hips identity lifecycle phantom/* pipeline procedure/* quality reporting/* routing sampling scoring series
COMMA := ,
EMPTY :=
CORE_FILES := $(subst $(EMPTY) $(EMPTY),$(COMMA),$(patsubst %,*/hipscore/%.py,$(subst /*,/*,$(CORE))))

# schemathesis has nothing to do there and takes a second to load
QUICK := $(BIN)/pytest -p no:schemathesis -m "not computes and not long"

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.run ## score a synthetic study through the whole service and show where the results lie
	@$(BIN)/hipscore demo

.PHONY: viewer
viewer: setup-system $(VENV)/.dev ## a small hospital here: Orthanc, hipscore with two scored studies, and OHIF to look at them
	@$(BIN)/python scripts/viewer.py

.PHONY: setup
setup: $(VENV)/.run ## create .venv with the locked runtime and hipscore itself

.PHONY: setup-dev
setup-dev: $(VENV)/.dev ## the same with the tools for development

.PHONY: setup-system
setup-system: ## install the real parts the tests run against (apt: Orthanc, dcmtk, dicom3tools, PostgreSQL, Chromium)
	@scripts/setup-system.sh

.PHONY: setup-train
setup-train: $(VENV)/.train ## the same with torch, for hiptrain

.PHONY: test
test: setup-system $(VENV)/.dev ## everything CI runs but what needs torch: set-up, lint, all tests, coverage of the core
	@scripts/test.sh $(VENV)
	@echo "coverage of the core (must be 95 % or more):"
	@$(BIN)/coverage report --include='$(CORE_FILES)' --fail-under=95

.PHONY: quick
quick: $(VENV)/.dev ## unit and contract tests that analyse no whole study: half a minute, no servers
	@$(QUICK) tests/contract >$(VENV)/contract.log 2>&1 & contract=$$!; \
	$(QUICK) tests/unit; unit=$$?; \
	wait $$contract; said=$$?; cat $(VENV)/contract.log; exit $$((unit + said))

.PHONY: faults
faults: setup-system $(VENV)/.dev ## at least 300 injected faults over both databases, half an hour; writes docs/reliability.md
	@$(BIN)/python -m tests.faults --faults 300 --markdown docs/reliability.md

.PHONY: faults-fast
faults-fast: setup-system $(VENV)/.dev ## 25 injected faults over both databases, two minutes
	@$(BIN)/python -m tests.faults --fast

.PHONY: test-train
test-train: $(VENV)/.train ## the tests of hiptrain that need torch
	@$(BIN)/pytest tests/models/torch

.PHONY: test-distros
test-distros: ## the demo on bare systems made by debootstrap (root, ten minutes); prints a table
	@scripts/test-distros.sh

.PHONY: test-real
test-real: setup-system $(VENV)/.dev ## every real scan in ../shared/data through the whole service
	@$(BIN)/pytest -m real_scans tests

.PHONY: bench
bench: setup-system $(VENV)/.dev ## every benchmark beside its peers, three quarters of an hour; writes docs/performance.md
	@$(BIN)/python -m benchmarks --keep

.PHONY: bench-fast
bench-fast: setup-system $(VENV)/.dev ## small forms of all benchmarks, three minutes; only prints
	@$(BIN)/python -m benchmarks --fast

.PHONY: bench-intake
bench-intake: setup-system $(VENV)/.dev ## images per second beside Orthanc and dcmtk storescp, both databases
	@$(BIN)/python -m benchmarks.intake --both

.PHONY: bench-latency
bench-latency: setup-system $(VENV)/.dev ## from the last image to the report in Orthanc, stage by stage
	@$(BIN)/python -m benchmarks.latency

.PHONY: bench-pages
bench-pages: setup-system $(VENV)/.dev ## first byte of worklist, study page and score with 100,000 analyses in PostgreSQL
	@$(BIN)/python -m benchmarks.pages

.PHONY: screenshots
screenshots: setup-system $(VENV)/.dev ## pictures of SEG, secondary captures and PDF in OHIF, into build/screenshots
	@$(BIN)/python scripts/viewer.py --port 3001 --http-port 8081 --screenshots build/screenshots

.PHONY: docs
docs: $(VENV)/.dev ## write docs/conformance.md from the tables of the code
	@$(BIN)/python scripts/conformance.py

.PHONY: fuzz
fuzz: setup-system $(VENV)/.dev ## 20,000 mutated objects against listener and analysis; a table, minutes
	@$(BIN)/python -m tests.fuzz

.PHONY: soak
soak: setup-system $(VENV)/.dev ## 50,000 images through every process; memory must stay flat
	@$(BIN)/python -m tests.fuzz.soak

.PHONY: lint
lint: $(VENV)/.dev ## ruff, formatting, mypy --strict, import contracts, docs that follow the code
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@PYTHONPATH=service:models $(BIN)/lint-imports
	@$(BIN)/python scripts/conformance.py --check

.PHONY: format
format: $(VENV)/.dev ## let ruff fix what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: lock
lock: ## resolve dependencies anew and write requirements/*.lock
	@scripts/lock.sh

.PHONY: wheel
wheel: $(VENV)/.run ## build the wheel into dist/
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: bill
bill: $(VENV)/.dev ## bill of materials and list of licences into build/; fails on what is not permissive
	@$(BIN)/python scripts/bill.py

.PHONY: offline
offline: $(VENV)/.dev ## an archive for machines without a network, into dist/; bill of materials inside
	@scripts/offline.sh $(VENV)

.PHONY: test-offline
test-offline: offline ## install that archive and run the demo where there is no network (root)
	@scripts/test-offline.sh dist/hipscore-*-offline-*.tar

.PHONY: clean
clean: ## remove .venv and everything built
	@rm -rf $(VENV) build dist hipscore-demo hipscore-viewer htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@scripts/venv.sh $(VENV)

$(VENV)/.run: requirements/build.lock requirements/run.lock requirements/unmet.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked runtime into $(VENV) (half a minute, once)"
	@scripts/install.sh $(VENV) requirements/build.lock requirements/run.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.run
	@echo "installing the locked development tools into $(VENV)"
	@scripts/install.sh $(VENV) requirements/dev.lock
	@touch $@

# torch is not locked: which build fits (CPU, CUDA) depends on the machine. Everything else is.
$(VENV)/.train: $(VENV)/.dev
	@echo "installing torch $(TORCH) into $(VENV)"
	@grep -E '^[a-z0-9]' requirements/dev.lock | sed 's/ *\\$$//' > $(VENV)/constraints.txt
	@$(PIP) install --quiet -c $(VENV)/constraints.txt 'torch==$(TORCH)' --no-build-isolation --editable '.[train]'
	@touch $@
