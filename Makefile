# `make demo` and `make test` do everything on a fresh machine with Python 3.10 or newer.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin
IMAGES ?=
VARIANTS ?= 7

.PHONY: help setup demo test bench recipe docs clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: .venv/.installed  ## .venv with everything installed

.venv/.installed: pyproject.toml
ifneq ($(UV),)
	test -x $(BIN)/python || $(UV) venv --python $(PYTHON) .venv
	$(UV) pip install --python $(BIN)/python -e '.[all]'
else
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[all]'
endif
	touch $@

demo: setup  ## demo/augmentations.png: sources and their variants (IMAGES=folder for your own)
	$(BIN)/gentransforms demo $(if $(IMAGES),--images "$(IMAGES)") --variants $(VARIANTS) --output demo/augmentations.png

test: setup  ## ruff, mypy --strict, pytest with doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict gentransforms
	$(BIN)/python -m pytest -m "not slow and not gpu and not network"

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

clean:  ## forget .venv and what was made
	rm -rf .venv demo recipe site .pytest_cache .mypy_cache .ruff_cache
