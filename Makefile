# Each target sets up .venv by itself. PYTHON picks the interpreter, 3.11 or newer.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DATA ?= ../shared/data
WEIGHTS ?= ../shared/weights

.PHONY: demo test check bench bench-scale bench-evaluation bench-throughput docs clean help

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; want Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.ready  ## train on generated characters and print where the report is
	$(VENV)/bin/tuplet demo

test: $(VENV)/.ready  ## run all tests
	$(RUN) -m pytest --quiet -n auto --dist worksteal

check: $(VENV)/.ready  ## check style, types and the direction of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.ready  ## measure the results in README, with images in $(DATA); about an hour on two cores
	$(RUN) -m benchmarks.real_images omniglot --data-root $(DATA)/omniglot_small --title omniglot_small
	$(RUN) -m benchmarks.raw_pixels omniglot --data-root $(DATA)/omniglot_small
	$(RUN) -m benchmarks.real_images folder --data-root $(DATA)/caltech40 --title caltech40 \
		--set model.backbone=tf_efficientnet_lite0 model.weights=$(WEIGHTS)/tf_efficientnet_lite0.safetensors

bench-scale: $(VENV)/.ready  ## measure the loss by number of classes; about 20 minutes on two cores
	$(RUN) -m benchmarks.loss_step --threads 2 --json docs/results/loss_step/cpu.json
	$(RUN) -m benchmarks.scale docs/results/loss_step/cpu.json

bench-evaluation: $(VENV)/.ready  ## measure the time of retrieval and clustering metrics; about half an hour on two cores
	$(RUN) -m benchmarks.evaluation --threads 2 --json docs/results/evaluation/cpu.json

bench-throughput: $(VENV)/.ready  ## measure a training step; about a quarter of an hour on two cores
	$(RUN) -m benchmarks.train_step --threads 2 --json docs/results/train_step/cpu.json
	$(RUN) -m benchmarks.throughput docs/results/train_step/cpu.json

docs: $(VENV)/.ready  ## build the documentation site in build/site; TUTORIALS=0 skips running the tutorials
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean:  ## remove .venv; keep runs/
	rm -rf $(VENV)

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'
