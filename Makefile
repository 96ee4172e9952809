# Every target first makes .venv and installs headkit into it; nothing but Python and make is needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PACKAGES := adapters registry export benchmarks

.PHONY: demo test lint coverage bench bench-full docs clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,dev]"
	@touch $@

demo: $(INSTALLED)  ## digits as PNG files -> head -> verified ONNX -> predictions
	$(BIN)/headkit demo

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest

lint: $(INSTALLED) build/types  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=build/types $(BIN)/mypy -p headkit
	MYPYPATH=build/types $(BIN)/mypy tests

coverage: $(INSTALLED)  ## the adapter layer's contract: all architectures, and numbers for the smallest of each family
	mkdir -p build
	$(BIN)/headkit coverage --structure --fresh --out build/coverage.jsonl
	$(BIN)/headkit coverage --numeric --smallest --fresh --out build/coverage.jsonl

bench: $(INSTALLED)  ## two architectures on all runtimes: a table, bench.csv and plots in build/bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/headkit bench mobilenetv4_conv_small vit_tiny_patch16_224 --rounds 1 --out build/bench

bench-full: $(INSTALLED)  ## all that docs/benchmarks.md shows, measured anew (hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench,peers]"
	for what in speed peers tasks growth; do $(BIN)/python -m headkit.benchmarks.$$what || exit 1; done
	$(BIN)/python -m headkit.benchmarks.report

docs: $(INSTALLED)  ## write the committed measurements into README and docs
	$(BIN)/python -m headkit.benchmarks.report

# mypy reads packages by path; this tree of links shows it the layout that is installed.
build/types: $(wildcard headkit/*) Makefile
	rm -rf $@ && mkdir -p $@/headkit
	ln -s $(addprefix $(CURDIR)/,$(wildcard headkit/*.py headkit/py.typed) $(PACKAGES)) $@/headkit/

clean:
	rm -rf .venv build demo *.egg-info
