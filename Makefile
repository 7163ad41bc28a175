# Everything people and CI run. PYTHON chooses the interpreter, VENV where the development environment lives.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := .demo/venv
# Python compiles a module when it first imports it; compiling all of torch's and transformers' takes most of an install.
PIP := -m pip --disable-pip-version-check --quiet install --no-compile
# Tests run in so many processes of one thread each: threads that wait for a core taken by others take many times as long.
TEST_PROCESSES ?= 2
# Named first and alone: other packages would pull in a build for GPUs, gigabytes larger.
TORCH := torch==2.13.0

.PHONY: install check test demo bench docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --upgrade pip
	$(BIN)/python $(PIP) $(TORCH)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

check: $(STAMP)  ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: $(STAMP)  ## all tests, with branch coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal --cov --cov-report=term-missing:skip-covered --durations 20 $(TESTS)

demo: $(DEMO)/.installed  ## two tasks trained, served and asked in one batch, in an environment of its own
	rm -rf .demo/registry
	$(DEMO)/bin/python benchmarks/demo.py .demo

$(DEMO)/.installed: pyproject.toml constraints.txt $(shell find adapterhub -name '*.pyc' -o -type f -print)
	rm -rf .demo
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP) --upgrade pip
	$(DEMO)/bin/python $(PIP) $(TORCH)
	$(DEMO)/bin/python $(PIP) --constraint constraints.txt .
	touch $@

bench: $(STAMP)  ## the figures of benchmarks/RESULTS.md, hours on two cores
	$(BIN)/python benchmarks/accuracy.py trec6 --seeds 0 1 2
	$(BIN)/python benchmarks/accuracy.py trec6-minilm restaurant8k
	$(BIN)/python benchmarks/settings.py layers
	$(BIN)/python benchmarks/settings.py rates --rows 1000 --seeds 0
	$(BIN)/python benchmarks/estimate.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/peers.py --cases equal varied churn $(if $(VLLM),--vllm-python $(VLLM))
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/adapters.py
	$(BIN)/python benchmarks/registry.py
	$(BIN)/python benchmarks/soak.py --plot benchmarks/soak.png
	for part in flood sizes; do $(BIN)/python benchmarks/serving.py $$part; done
	$(BIN)/python benchmarks/structured.py
	$(BIN)/python benchmarks/serving.py latency --plot benchmarks/latency.png
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/corrected.py
	$(BIN)/python benchmarks/drift.py
	$(BIN)/python benchmarks/weak.py --out weak.jsonl
	$(BIN)/python benchmarks/forecast.py
	for part in features prune rule duplicates select influence adapters scale; do $(BIN)/python benchmarks/curation.py $$part; done
	for part in recovery clones; do $(BIN)/python benchmarks/label_models.py $$part; done

docs: $(STAMP)  ## docs/cli.md from the command line itself
	$(BIN)/python -m adapterhub.cli.reference > docs/cli.md

clean:
	rm -rf .demo .venv build dist .coverage .mypy_cache .pytest_cache .ruff_cache
