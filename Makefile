# The commands of metalib. `make` alone lists them.
#
#   make setup PYTHON=python3.12      another interpreter
#   make run ARGS="--help"            more words for the command line
#   make lock LOCK_ARGS=--upgrade     newer versions, not just a lock that fits pyproject.toml

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
LOCK_ARGS ?=
DATA ?=
MODEL ?=

LOCK := requirements.lock
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
STAMP := $(VENV)/.metalib-stamp
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run results family phase real bench bench-gpu test test-gpu test-all notebooks check lab lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r target text; do printf '  make %-10s %s\n' "$$target" "$$text"; done

setup: $(STAMP) ## make .venv with the locked versions and metalib itself (quick when nothing changed)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "No $(PYTHON) here. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "metalib needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(LOCK) pyproject.toml | $(BIN)/python
	$(PIP) install -q --disable-pip-version-check -r $(LOCK)
	$(PIP) install -q --disable-pip-version-check --no-deps -e .
	@touch $@

run: setup ## train the world of configs/world.yaml with two processes; more words in ARGS="..."
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m metalib train configs/world.yaml $(ARGS)

SEEDS := 0 1 2
KEPT := config.yaml evaluation.json curves.json

results: setup ## make results/world again: configs/world.yaml with three seeds
	for seed in $(SEEDS); do \
		OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m metalib train configs/world.yaml \
			--seed $$seed --out runs/results/world-$$seed --resume && \
		mkdir -p results/world/seed-$$seed && \
		for file in $(KEPT); do cp runs/results/world-$$seed/$$file results/world/seed-$$seed || exit 1; done || exit 1; \
	done
	$(BIN)/metalib seeds $(SEEDS:%=results/world/seed-%) > results/world/seeds.md
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m metalib evaluate runs/results/world-0
	cp runs/results/world-0/curves.json results/world/seed-0
	cp runs/results/world-0/*.png results/world

family: setup ## make results/family again: all learners of configs/family.yaml on the same episodes
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m metalib train configs/family.yaml \
		--out runs/results/family --resume
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m metalib evaluate runs/results/family
	mkdir -p results/family
	for file in $(KEPT); do cp runs/results/family/$$file results/family || exit 1; done

GRID := conflict=0,0.4,0.75,1 cue=0,1 shots=1,5,20

phase: setup ## make results/phase again: learners over a grid of worlds and shots (goes on where it was stopped)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m metalib phase configs/phase.yaml \
		--out runs/results/phase --resume --grid $(GRID)
	mkdir -p results/phase
	for file in config.yaml phase.json phase.md phase.png; do cp runs/results/phase/$$file results/phase || exit 1; done

bench: setup ## measure what everything costs: make bench DATA=reviews.json MODEL=all-MiniLM-L6-v2 (without: tiny only)
	$(BIN)/python benchmarks/bench.py --data "$(DATA)" --model "$(MODEL)"

bench-gpu: setup ## tasks a second on a GPU, for 1, 4 and 16 tasks at a time
	$(BIN)/python benchmarks/gpu.py $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model "$(MODEL)")

REAL := OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real.py

real: setup ## make RESULTS.md again from a folder with amazon22.json and arsc.parquet: DATA=path MODEL=path
	@test -n "$(DATA)" -a -n "$(MODEL)" || \
		{ echo "Name the folder of the reviews and the encoder: make real DATA=path/to/folder MODEL=path/to/model" >&2; exit 1; }
	$(REAL) run amazon_original --data $(DATA)/amazon22.json --model $(MODEL)
	$(REAL) run amazon_original --data $(DATA)/amazon22.json --model $(MODEL) --whole --only finetuned joint
	$(REAL) run arsc --data $(DATA)/arsc.parquet --model $(MODEL)
	$(REAL) tables

# Tests use nothing from the network, compute where everyone can, and draw to no screen.
test test-all: export HF_HUB_OFFLINE = 1
test test-all: export ACCELERATE_USE_CPU = true
test test-all: export TOKENIZERS_PARALLELISM = false
test test-all: export MPLBACKEND = Agg

check: setup
	$(BIN)/ruff check -q
	$(BIN)/mypy

NBVAL := $(BIN)/python -m pytest --nbval --nbval-current-env -x --nbval-cell-timeout 300 -p no:cacheprovider notebooks

test: check ## ruff, mypy, the quick tests and the notebooks
	$(BIN)/python -m pytest -m "not slow"
	OMP_NUM_THREADS=1 $(NBVAL)

test-gpu: setup ## what holds on a GPU alone
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_gpu.py

test-all: check ## ruff, mypy, all tests and the notebooks
	$(BIN)/python -m pytest
	OMP_NUM_THREADS=1 $(NBVAL)

notebooks: setup ## run the notebooks anew and store their outputs
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py notebooks/*.ipynb

lab: setup ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

# The CUDA packages that torch asks for on Linux. torch pins them itself, and a torch without CUDA
# needs none of them, so the lock leaves them out.
CUDA := cuda-bindings cuda-pathfinder cuda-toolkit triton $(addprefix nvidia-, \
	cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
	cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

lock: $(BIN)/python ## make requirements.lock again from pyproject.toml
	$(PIP) install -q --disable-pip-version-check uv==$(UV_VERSION)
	@if [ -f $(LOCK) ]; then cp $(LOCK) $(LOCK).new; fi
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest \
		--no-header --no-emit-index-url $(CUDA:%=--no-emit-package %) $(LOCK_ARGS) -o $(LOCK).new >/dev/null
	@{ echo '# The exact versions of everything metalib uses, with all its extras. One lock for Linux, macOS'; \
	   echo '# (Apple silicon, 14 or newer) and Windows, and for Python 3.11 to 3.14, as far as torch has wheels.'; \
	   echo '# Made from pyproject.toml by `make lock`, which runs'; \
	   echo '#   uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest'; \
	   echo '# and leaves out the CUDA packages (nvidia-*, cuda-*, triton): torch pins those itself where it'; \
	   echo '# needs them. Do not edit by hand.'; \
	   grep -v '^#' $(LOCK).new; } > $(LOCK)
	@rm -f $(LOCK).new

clean: ## remove the environment and all caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
