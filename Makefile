# Everything runs in .venv, which `make install` fills; CI calls these same targets.
PYTHON ?= python3
DEVICE ?= cpu
MODEL  ?=
ARGS   ?=

BIN   := .venv/bin
STAMP := .venv/.installed-$(DEVICE)
CODE  := $(wildcard server duet_kernels training benchmarks tests scripts)

HAS_GPU := $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
NO_GPU  := "no CUDA device here, or not vLLM's build for one (DEVICE=cuda): nothing was run"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

.PHONY: help
help: ## Show this list
	@echo "usage: make TARGET [PYTHON=python3.12] [DEVICE=cpu|cuda] [MODEL=...] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## Install everything into .venv, for the CPU or with DEVICE=cuda for NVIDIA GPUs
	@:

$(STAMP): pyproject.toml scripts/install.py scripts/torchvision_operators.py
	$(PYTHON) scripts/install.py --device $(DEVICE)
	@touch $@

.PHONY: serve
serve: install ## Serve MODEL (a small demo model when none is named); ARGS are the server's flags
	$(BIN)/duet-server serve $(MODEL) $(ARGS)

.PHONY: test
test: install ## Run the tests; ARGS are pytest's, as in ARGS='tests/plan -k budget'
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test-tools
test-tools: ## Install the Debian packages that some tests drive, and skip without: Chromium, Prometheus (as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium prometheus

.PHONY: test-gpu
test-gpu: install ## Run what a CUDA device can prove: kernels, engine and a training step on it (with DEVICE=cuda)
	@if $(HAS_GPU); then $(BIN)/python -m pytest tests/kernels tests/engine tests/training $(ARGS); else echo $(NO_GPU); fi

.PHONY: lint
lint: install ## Check style, formatting and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

.PHONY: format
format: install ## Rewrite the code in the house format
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: bench
bench: install ## Measure the server with and without compression; ARGS are the benchmark's
	$(BIN)/python -m benchmarks.serving $(ARGS)

.PHONY: bench-gpu
bench-gpu: install ## Measure kernels and serving on a CUDA device (with DEVICE=cuda)
	@if $(HAS_GPU); then $(BIN)/python -m benchmarks.kernels && $(BIN)/python -m benchmarks.serving --gpu $(ARGS); \
	else echo $(NO_GPU); fi

.PHONY: demo-model
demo-model: install ## Build the demo model again, in build/demo (hours on two cores); ARGS are the builder's
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 MALLOC_TOP_PAD_=1000000000 \
	$(BIN)/python -m duet_training.demo build/demo $(ARGS)

.PHONY: clean
clean: ## Remove .venv and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
