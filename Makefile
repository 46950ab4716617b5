# Everything runs in .venv, which `make install` fills. Only the linters run in build/lint: they need no vLLM.
# CI calls these same targets.
PYTHON    ?= python3
INSTALLED ?=
DEVICE    ?= cpu
MODEL     ?=
ARGS      ?=

CODE := $(wildcard server duet_kernels training benchmarks tests scripts docs examples)

# INSTALLED names a Python that holds everything already, as on a host without a network: then nothing is installed.
RUN       := $(or $(INSTALLED),.venv/bin/python)
REHEARSE  := $(or $(INSTALLED),build/rehearsal/bin/python)
LINT      := $(or $(INSTALLED),build/lint/bin/python)
installed  = $(if $(INSTALLED),,$(1)/.installed-$(2))

HAS_GPU := $(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
NO_GPU  := "no CUDA device here, or not vLLM's build for one (DEVICE=cuda): nothing was run"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

.PHONY: help
help: ## Show this list
	@echo "usage: make TARGET [PYTHON=python3.12] [INSTALLED=python3] [DEVICE=cpu|cuda] [MODEL=...] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(call installed,.venv,$(DEVICE)) ## Install everything into .venv, for the CPU or with DEVICE=cuda for NVIDIA GPUs
	@:

.venv/.installed-$(DEVICE) build/rehearsal/.installed-cuda: pyproject.toml scripts/install.py scripts/torchvision_operators.py
	$(PYTHON) scripts/install.py --venv $(@D) --device $(lastword $(subst -, ,$@))
	@touch $@

build/lint/.installed-tools: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet 'pip>=25.1'
	$(@D)/bin/python -m pip install --quiet --upgrade --group lint
	@touch $@

.PHONY: serve
serve: install ## Serve MODEL (a small demo model when none is named); ARGS are the server's flags
	$(RUN) -m duet_server.cli serve $(MODEL) $(ARGS)

.PHONY: check
check: lint install ## Lint, then run the tests that start no engine, except the slow ones (two minutes on two cores)
	$(RUN) -m pytest --numprocesses logical --maxprocesses 4 -m 'not engine and not slow' $(ARGS)

.PHONY: test
test: install ## Run all tests; ARGS are pytest's, as in ARGS='tests/plan -k budget'
	$(RUN) -m pytest $(ARGS)

.PHONY: test-tools
test-tools: ## Install the Debian packages that some tests drive, and skip without: Chromium, Prometheus (as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium prometheus

.PHONY: test-gpu
test-gpu: install ## Run what a CUDA device can prove: kernels, engine and a training step on it (with DEVICE=cuda)
	@if $(HAS_GPU); then $(RUN) -m pytest tests/kernels tests/engine tests/training $(ARGS); else echo $(NO_GPU); fi

.PHONY: rehearse-gpu
rehearse-gpu: $(call installed,build/rehearsal,cuda) ## Run the engine's tests on a pretended CUDA device (installs 9 GB in build)
	$(REHEARSE) tests/pretend_cuda $(or $(ARGS),tests/engine)

.PHONY: lint-tools
lint-tools: $(call installed,build/lint,tools)
	@:

.PHONY: lint
lint: lint-tools ## Check style, types, imports and the documentation; needs no vLLM
	$(LINT) -m ruff check $(CODE)
	$(LINT) -m ruff format --check $(CODE)
	$(LINT) -m mypy
	PYTHONPATH=server:.:training $(LINT) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' \
	    --no-logo --cache-dir build/imports
	$(LINT) -m mkdocs build --strict --site-dir build/site

.PHONY: format
format: lint-tools ## Rewrite the code in the house format
	$(LINT) -m ruff check --fix $(CODE)
	$(LINT) -m ruff format $(CODE)

.PHONY: bench
bench: install ## Measure the server with and without compression; ARGS are the benchmark's
	$(RUN) -m benchmarks.serving $(ARGS)

.PHONY: bench-gpu
bench-gpu: install ## Measure kernels and serving on a CUDA device (with DEVICE=cuda)
	@if $(HAS_GPU); then $(RUN) -m benchmarks.kernels && $(RUN) -m benchmarks.serving --gpu $(ARGS); \
	else echo $(NO_GPU); fi

.PHONY: demo-model
demo-model: install ## Build the demo model again, in build/demo (hours on two cores); ARGS are the builder's
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 MALLOC_TOP_PAD_=1000000000 \
	$(RUN) -m duet_training.demo build/demo $(ARGS)

.PHONY: clean
clean: ## Remove .venv and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
