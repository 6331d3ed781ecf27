# A table of contents: the logic is in temper/ and commands/.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
MAIN := $(shell $(PYTHON) -m temper.envs path main)
export PATH := $(MAIN)/bin:$(PATH)
.DEFAULT_GOAL := help
STAGES := base ingest dedup pii split contamination sft preferences dpo quantize bench evaluate card

.PHONY: help setup repro test test-fast lint params lock summary chat doctor verify ablation readme $(STAGES)

help: ## List the targets
	@grep -hE '^[a-z$$()%A-Z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/\$$\(STAGES\)/<stage>/; s/:[^#]*## /\t/' | awk -F '\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## Build the environments that are missing, into the user cache, and link the main one as .venv
	@$(PYTHON) -m temper.envs build
	@ln -sfn $(MAIN) .venv

env-%: ## Build one environment: main, train, quantize or serve
	@$(PYTHON) -m temper.envs build $*
	@ln -sfn $(MAIN) .venv

repro: setup ## Run whatever changed, from raw data to the model card, and print a summary
	@python -m commands.check
	@dvc repro
	@python -m commands.summary

$(STAGES): setup ## Run one stage and what it needs: base, ingest, … card
	@dvc repro $@

test: setup ## Lint, and run every test that needs neither a GPU nor a network
	@$(MAKE) --no-print-directory lint
	@python -m pytest -m "not gpu and not network"

test-fast: env-main ## Run the tests that need no heavy environment, in under a minute
	@python -m pytest -m "not gpu and not network and not engine and not slow"

lint: env-main ## Check style and types
	@ruff check . && ruff format --check . && mypy

params: env-main ## Compose conf/ into params.yaml
	@python -m commands.compose

lock: ## Resolve requirements/*.in again into exact locks
	@$(PYTHON) -m temper.envs lock

summary: env-main ## Print what the last run made
	@python -m commands.summary

chat: env-main env-quantize ## Talk to the released model in the terminal (TOOLS=file.json brings your own tools)
	@python -m temper.envs run quantize -m commands.chat $(TOOLS)

doctor: env-main ## What is installed, what is missing, what hardware this is and which preset fits it
	@python -m commands.doctor

verify: setup ## Run the smoke preset in two clean clones and print the outs that differ
	@python -m commands.verify

ablation: env-main ## Print and plot the experiments side by side
	@python -m commands.ablation

readme: env-main ## Write the generated parts of README.md: results, stages, graph
	@python -m commands.readme
