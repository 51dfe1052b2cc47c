# `make` lists what there is. Everything runs from a bare clone with python3 >= 3.10 and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help install run test lint types tests test-all ui clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The environment is made again when the dependencies change. Modules are compiled when first imported: most never are.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("tinychat needs python >= 3.10, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11") if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test,gpt2]'
	touch $@

install: $(VENV)/.installed ## make .venv and install tinychat with its dependencies

run: install ## the whole recipe on generated data: tokenizer, pretraining, SFT, reward model, PPO, report
	HF_HUB_OFFLINE=1 $(BIN)/python -m tinychat.pipeline stages=tokenizer,pretrain,sft,reward,ppo

test: lint ## lint, types and all tests that need neither minutes nor a GPU
	$(MAKE) --no-print-directory --jobs=2 types tests

lint: install ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy
	$(BIN)/mypy

tests: install ## the quick tests alone
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu and not ui and not smollm2 and not export and not serve and not lm_eval and not trackers'

test-all: test ## and those that take minutes or draw pages in a browser; a GPU's where there is one
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'slow or gpu or ui or smollm2 or export or serve or lm_eval or trackers'

ui: install ## open MLflow's pages on the runs under outputs/
	MLFLOW=$(BIN)/mlflow launchers/mlflow_ui.sh

clean: ## remove the environment and build leftovers (outputs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
