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

demo: $(VENV)/.ready  ## the main job on generated images, then where its report is
	$(VENV)/bin/tuplet demo

test: $(VENV)/.ready  ## every test
	$(RUN) -m pytest --quiet -n auto

check: $(VENV)/.ready  ## style, types and the direction of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.ready  ## the results that README quotes, from images in $(DATA); about an hour on two cores
	$(RUN) benchmarks/real_images.py omniglot --data-root $(DATA)/omniglot_small --title omniglot_small
	$(RUN) benchmarks/raw_pixels.py omniglot --data-root $(DATA)/omniglot_small
	$(RUN) benchmarks/real_images.py folder --data-root $(DATA)/caltech40 --title caltech40 \
		--set model.backbone=tf_efficientnet_lite0 model.weights=$(WEIGHTS)/tf_efficientnet_lite0.safetensors

bench-scale: $(VENV)/.ready  ## what the loss costs against the number of classes; about 20 minutes on two cores
	$(RUN) benchmarks/loss_step.py --threads 2 --json docs/results/loss_step/cpu.json
	$(RUN) benchmarks/scale_page.py docs/results/loss_step/cpu.json

bench-evaluation: $(VENV)/.ready  ## what retrieval and clustering metrics cost; about half an hour on two cores
	$(RUN) benchmarks/evaluation.py --threads 2 --json docs/results/evaluation/cpu.json

bench-throughput: $(VENV)/.ready  ## what a training step costs; about a quarter of an hour on two cores
	$(RUN) benchmarks/train_step.py --threads 2 --json docs/results/train_step/cpu.json
	$(RUN) benchmarks/throughput_page.py docs/results/train_step/cpu.json

docs: $(VENV)/.ready  ## run the examples in docstrings
	$(RUN) -m pytest --quiet --doctest-modules src

clean:  ## remove .venv; runs/ stays
	rm -rf $(VENV)

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'
