# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
# The environment, and what fixes the versions in it: empty for the newest that pyproject.toml admits.
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin
INSTALL = install -e '.[all]' $(if $(CONSTRAINTS),-c $(CONSTRAINTS),--upgrade)
IMAGES ?=
VARIANTS ?= 4

.PHONY: help setup demo test style types newest constraints bench recipe docs clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.installed  ## .venv with everything installed, in the versions of constraints.txt

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@echo "Installing every dependency into $(VENV): about 7 GB on Linux, most of it torch with CUDA. This takes some minutes."
ifneq ($(UV),)
	test -x $(BIN)/python || $(UV) venv --seed --python $(PYTHON) $(VENV)
	$(UV) pip $(INSTALL) --python $(BIN)/python
else
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip $(INSTALL) $(if $(CONSTRAINTS),,--upgrade-strategy eager)
endif
	touch $@

demo: setup  ## demo/augmentations.png: sources and their variants (IMAGES=folder for your own)
	$(BIN)/gentransforms demo $(if $(IMAGES),--images "$(IMAGES)") --columns --variants $(VARIANTS) --output demo/augmentations.png

test: export PYTHONDONTWRITEBYTECODE =  # the processes that tests start would compile every module again
test: setup  ## ruff, mypy --strict, pytest with doctests
	$(MAKE) --jobs=2 style types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not network"

style: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy --strict
	$(BIN)/mypy --strict gentransforms

newest:  ## the same tests with the newest version of every dependency, in .venv-newest
	rm -f .venv-newest/.installed
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

constraints:  ## constraints.txt of what .venv-newest has; CONTRIBUTING.md says when
	grep '^#' constraints.txt > constraints.new
	.venv-newest/bin/python -m pip list --format=freeze --exclude pip --exclude gentransforms >> constraints.new
	mv constraints.new constraints.txt

bench: setup  ## the table of ratios of benchmarks/
	$(BIN)/python -m benchmarks.report

recipe: setup  ## the SSL recipes in miniature, in recipe/: toy images, bank, two arms, probe, table and curves, segmentation
	OMP_NUM_THREADS=1 $(BIN)/python examples/ssl/miniature.py recipe/toy
	OMP_NUM_THREADS=1 $(BIN)/python examples/ssl/reproduce.py --configs examples/ssl/configs/folder --methods simclr \
	  --generators baseline icgan --seeds 0 --make-bank icgan-cifar10-32 --variants 4 --encoder icgan-cifar10-32 --probe-epochs 50 \
	  --out recipe/runs data.train=recipe/toy/train data.test=recipe/toy/test generative.bank=recipe/bank \
	  trainer.epochs=10 trainer.batch_size=100 trainer.log_every=1 optimizer.warmup_epochs=1 probe.every=2
	OMP_NUM_THREADS=1 $(BIN)/python examples/ssl/segment.py recipe/runs/simclr-icgan-seed0 --images 200 --epochs 5

docs: setup  ## the documentation site, in site/
	$(BIN)/mkdocs build --strict

clean:  ## forget the environments and what was made
	rm -rf .venv .venv-newest demo dist recipe site .pytest_cache .mypy_cache .ruff_cache
