# A table of contents: the logic is in temper/ and commands/.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
MAIN := $(shell $(PYTHON) -m temper.envs path main)
export PATH := $(MAIN)/bin:$(PATH)
# Two at a time, on any machine: most of an engine's time is one core's, and each may take 8 GB. Waiting threads must not spin then.
PYTEST := OMP_WAIT_POLICY=passive python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help
STAGES := base ingest dedup quality pii split contamination mix audit datacard general sft preferences dpo kto orpo reward ppo grpo quantize retention draft bench evaluate judge rewardbench probes guard responses safety gate card scorecard

.PHONY: help setup repro test test-all test-fast gpu-test lint params lock summary chat doctor verify plan cost compare-bases launch deploy serve release promote rollback releases smoke-train ablation readme bench-data bench-train bench-serve bench-faults bench-eval bench-public contamination-drill synthesize canaries mine deps $(STAGES)

help: ## List the targets
	@grep -hE '^[a-z$$()%A-Z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/\$$\(STAGES\)/<stage>/; s/:[^#]*## /\t/' | awk -F '\t' '{printf "  make %-20s %s\n", $$1, $$2}'

setup: ## Build the environments that are missing, into the user cache, and link the main one as .venv
	@$(PYTHON) -m temper.envs build
	@ln -sfn $(MAIN) .venv

env-%: ## Build one environment: main, train, quantize, serve or deploy
	@$(PYTHON) -m temper.envs build $*
	@ln -sfn $(MAIN) .venv

repro: setup ## Run whatever changed, from raw data to the model card, and print a summary
	@python -m commands.check
	@dvc repro
	@python -m commands.summary

$(STAGES): setup ## Run one stage and what it needs: base, ingest, … card
	@python -m commands.check $@
	@dvc repro $@

test: setup ## Lint, and run every test that needs no GPU; says what it left out
	@$(MAKE) --no-print-directory lint
	@$(PYTEST) --durations=15 -m "not gpu and not exhaustive"

test-all: setup ## Run these and the exhaustive ones: a kill in every stage, more sweeps, trainings made twice
	@$(PYTEST) --durations=15 -m "not gpu"

test-fast: env-main ## Run the tests that need no heavy environment, in a few minutes
	@$(PYTEST) -m "not gpu and not engine and not slow"

gpu-test: setup ## Run the tests that need a GPU
	@python -m pytest -m gpu

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

serve: env-main env-serve ## The released model behind an OpenAI-compatible API (ARGS="serve=llama.cpp serve.port=8080")
	@python -m commands.serve $(ARGS)

doctor: ## What is installed, what is missing, what hardware this is and which preset fits it
	@$(PYTHON) -m commands.doctor

verify: setup ## Run the smoke preset in two clean clones and print the outs that differ
	@python -m commands.verify

plan: env-main ## Before a run: memory, tokens, time and cost of each stage (ARGS="model=llama3.1-8b hardware=gpu8")
	@python -m commands.plan $(ARGS)

cost: env-main ## Dollars for 1M output tokens, by variant and concurrency, beside APIs and other revisions (REVISIONS="exp-a v1.0.0")
	@python -m commands.cost $(REVISIONS)

launch: env-main ## Write a job for a cluster (ARGS="slurm hardware=gpu8"; skypilot, kubernetes, torchrun)
	@python -m commands.launch $(ARGS)

deploy: env-main ## Write what serves the released model: Helm values, settings of compose and systemd (ARGS="hardware=gpu1")
	@python -m commands.deploy $(ARGS)

release: env-main ## Tag HEAD as a release of the model, if its gate passed (VERSION=v1.0.0, or the next patch)
	@python -m commands.registry release $(VERSION)

promote: env-main ## Put a release in a stage of deployment (STAGE=prod VERSION=v1.0.0, or the last one)
	@python -m commands.registry promote $(STAGE) $(VERSION)

rollback: env-main ## Put back the release that was in a stage before (STAGE=prod)
	@python -m commands.registry rollback $(STAGE)

releases: env-main ## List the releases: stages, commit, hashes of data, model and parameters, scores
	@python -m commands.registry list

compare-bases: setup ## Candidate base models, prompted and untrained, on the same items (ARGS="compare.candidates=[smollm2-135m,qwen3-8b]")
	@python -m commands.compare_bases $(ARGS)

smoke-train: setup ## 100 steps on a tenth of the rows, with the real settings: speed, loss, memory, health
	@python -m commands.smoke_train $(ARGS)

ablation: setup ## Which training wins, over seeds, with intervals, time and memory (ARGS="--dry-run" says how long it takes)
	@python -m commands.ablation $(ARGS)

bench-data: env-main env-train ## Measure the data stages on labelled data (TEMPER_TEST_DATA names its folder)
	@for name in pii dedup contamination quality scale; do python -m benchmarks.$$name || exit 1; done

bench-train: setup ## Measure training: against plain TRL, against Axolotl by hand, what helps a CPU, GRPO's step, a sweep
	@python -m benchmarks.train $(ARGS)

bench-serve: setup ## Measure serving: ours against the bare engine, settings, speculation, llama.cpp's own loop, time to the first token
	@python -m benchmarks.serve $(ARGS)

bench-faults: setup ## Load `make serve` for ten minutes, then break it: kills, a full queue, bad requests, slow readers, 1,000 connections
	@python -m benchmarks.serve_faults $(ARGS)

bench-eval: setup ## Measure evaluation: scores and time beside lm_eval by hand, false verdicts, the gate, the openness class
	@python -m benchmarks.evaluation $(ARGS)

bench-public: setup ## The default job's models on public data: a judge held against people, XSTest, StrongREJECT, BBQ, GSM8K, IFEval
	@python -m benchmarks.public $(ARGS)

contamination-drill: setup ## Leak a share of the test into training: the gate must catch it; let pass, it must show (ARGS="--share 0.5 --let-pass")
	@python -m commands.contamination_drill $(ARGS)

synthesize: env-main env-serve ## Grow raw/seeds/seeds.jsonl with a teacher model (SET="synthesize=distil …" overrides conf/)
	@python -m commands.synthesize $(SET)

canaries: env-main ## Plant rows with random secrets in raw/canaries, to see what training makes a model remember
	@python -m commands.canaries

mine: env-main env-train ## Production logs into failures, drift and a queue to label (LOGS=logs), then into training data (LABELS=mined/queue.jsonl)
	@python -m commands.mine $(if $(LABELS),labels $(LABELS),logs $(LOGS)) $(SET)

deps: env-main ## Write into dvc.yaml the code that each stage imports
	@python -m commands.deps

readme: env-main ## Write the generated parts of README.md: results, stages, graph
	@python -m commands.readme
