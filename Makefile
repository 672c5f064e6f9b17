# Each target makes what it needs: the environment is a folder of this checkout, rebuilt when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1

.DELETE_ON_ERROR:
.PHONY: help generate demo test test-slow lint docs dist benchmark clean

help:
	@echo "make generate   stream a short video from a text with the packaged checkpoint"
	@echo "make demo       the same in a browser"
	@echo "make test       the tests, but for the slow ones"
	@echo "make test-slow  those"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation site, in build/site"
	@echo "make dist       sdist and wheel for a package index: make dist REPOSITORY=https://github.com/OWNER/NAME"
	@echo "make benchmark  how fast the cascade and its attention are on this machine, and how time grows"
	@echo "make clean      remove the environment and everything that was made"

$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) --editable '.[dev,demo,train,triton,fp8,gguf]'
	@touch $@

$(VENV)/docs: $(VENV)/core
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/demo: $(VENV)/core
	$(PIP) --editable '.[demo]'
	@touch $@

generate: $(VENV)/core
	$(BIN)/python examples/generate.py

demo: $(VENV)/demo
	$(BIN)/ultraflash demo

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/dev
	$(BIN)/python release/distribution.py --repository '$(REPOSITORY)'

benchmark: $(VENV)/dev
	mkdir -p outputs
	$(BIN)/ultraflash benchmark --output outputs/speed.json --plot outputs/speed.svg
	$(BIN)/python -m benchmarks.linearity --json outputs/linearity.json --plot outputs/linearity
	$(BIN)/python benchmarks/attention.py --json outputs/attention.json

clean:
	rm -rf $(VENV) build dist outputs src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
