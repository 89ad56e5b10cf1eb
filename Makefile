# Every target creates the virtual environment .venv with the pinned dependencies if it is missing or out of date. The
# only requirement is Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LINTERS_INSTALLED := $(VENV)/.linters-installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The first of these that runs and is new enough; 'make PYTHON=/path/to/python' overrides it.
CANDIDATES := python3.13 python3.12 python3.11 python3 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	if $$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then echo $$python; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench lint docs figures dist sbom clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## make videos, train and compare four methods; DEMO_FLAGS are handed on to dmgal demo
	$(BIN)/dmgal demo $(DEMO_FLAGS)

test: $(INSTALLED)  ## run the tests; PYTEST_FLAGS are handed on to pytest
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

test-all: $(INSTALLED)  ## run the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "" --timeout 3600 $(PYTEST_FLAGS)

bench: $(INSTALLED)  ## run short benchmarks and compare their ratios with those of bench/results
	$(BIN)/python -m dmgal.bench.smoke

# mypy looks for a package by its folder's name, so it runs in a folder that holds the checkout under the name dmgal. In
# the checkout it would take __main__.py for the module __main__, which some libraries import.
lint: $(LINTERS_INSTALLED)  ## check style, format, types and documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV)/typing && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p dmgal
	$(MAKE) docs

docs: $(LINTERS_INSTALLED)  ## check the generated tables and diagrams, and build the documentation into build/docs
	$(BIN)/python -m dmgal.bench.docs_tables --check
	$(BIN)/python -m dmgal.bench.docs_diagrams --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

figures: $(INSTALLED)  ## make the pictures of the documentation again, from generated clips
	$(BIN)/python -m dmgal.bench.docs_tables
	$(BIN)/python -m dmgal.bench.docs_diagrams
	$(BIN)/python -m dmgal.bench.docs_pictures

dist: $(INSTALLED)  ## build sdist and wheel into dist, with the same bytes for the same commit
	$(BIN)/python .ci/dist.py

sbom: $(LINTERS_INSTALLED)  ## list the pinned dependencies in build/sbom.json (CycloneDX)
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json constraints.txt

clean:  ## remove the virtual environment and everything else that was built
	rm -rf $(VENV) build dist dmgal.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt torchvision_on_cpu.py
	@test -n "$(PYTHON)" || { echo "dmgal needs Python 3.11 or newer; tried: $(CANDIDATES)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "dmgal needs Python 3.11 or newer; $(PYTHON) is older, or none." >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON); the first time this takes minutes."
	@"$(PYTHON)" -m venv $(VENV) || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu" \
		"install the package python3-venv." >&2; exit 1; }
	$(PIP_INSTALL) --editable ".[test]"
	@$(BIN)/python -c "import torchvision" 2>/dev/null || $(BIN)/python torchvision_on_cpu.py
	@touch $@

# The API reference is read from links to the package's own parts. In the checkout it would search .venv as well.
PARTS := $(wildcard *.py) $(patsubst %/__init__.py,%,$(wildcard */__init__.py))

$(LINTERS_INSTALLED): $(INSTALLED)
	$(PIP_INSTALL) --editable ".[dev]"
	@mkdir -p $(VENV)/typing $(VENV)/reference/dmgal && ln -sfn "$(CURDIR)" $(VENV)/typing/dmgal
	@for part in $(PARTS); do ln -sfn "$(CURDIR)/$$part" $(VENV)/reference/dmgal/; done
	@touch $@
