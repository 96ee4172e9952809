# Every target first makes .venv and installs headkit into it; nothing but Python and make is needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow lint coverage bench bench-full docs clean wheel-files

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,dev]"
	@touch $@

demo: $(INSTALLED)  ## digits as PNG files -> head -> verified ONNX -> predictions
	$(BIN)/headkit demo

test: $(INSTALLED)  ## the tests that are not marked slow, on all cores
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(INSTALLED)  ## all tests, the slow ones too
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(INSTALLED)  ## format, lint, order of imports, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy -p headkit -p tests

coverage: $(INSTALLED)  ## the adapter layer's contract: all architectures, and numbers for the smallest of each family
	mkdir -p build
	$(BIN)/headkit coverage --structure --fresh --out build/coverage.jsonl
	$(BIN)/headkit coverage --numeric --smallest --fresh --out build/coverage.jsonl

bench: $(INSTALLED)  ## two architectures on all runtimes: a table, bench.csv and plots in build/bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/headkit bench mobilenetv4_conv_small vit_tiny_patch16_224 --rounds 1 --out build/bench

bench-full: $(INSTALLED)  ## all that docs/benchmarks.md shows, measured anew (hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench,peers]"
	for what in speed peers tasks growth; do $(BIN)/python -m headkit.benchmarks.studies.$$what || exit 1; done
	$(BIN)/python -m headkit.benchmarks.pages.render

wheel-files: $(INSTALLED)  ## write the list of files in the wheel, which a test compares
	$(BIN)/python -m tests.wheel

docs: $(INSTALLED)  ## write the committed measurements into README and docs
	$(BIN)/python -m headkit.benchmarks.pages.render

clean:
	rm -rf .venv build demo *.egg-info
