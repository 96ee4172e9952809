# Every target first makes .venv and installs headkit into it; nothing but Python and make is needed.
PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/pyvenv.cfg
DEMO := .venv/.installed-demo
DEV := .venv/.installed-dev
LOWEST := .venv-lowest/.installed
TOOLS := .venv-tools/.installed
LOCK := requirements-dev.txt
INSTALL := -m pip install --quiet --disable-pip-version-check
LOWEST_TESTS := tests/adapters/heads tests/adapters/fitting tests/adapters/test_older_timm.py tests/export/graph \
	tests/export/predict tests/headkit/test_demo.py tests/headkit/test_fit.py tests/headkit/test_measuring.py \
	tests/test_compatibility.py tests/test_lowest.py
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test fuzz test-slow lint coverage bench bench-full docs clean wheel-files test-lowest locked lock audit

$(VENV):
	$(PYTHON) -m venv .venv

$(DEMO): pyproject.toml | $(VENV)
	$(BIN)/python $(INSTALL) --editable ".[demo]"
	@touch $@

$(DEV): pyproject.toml | $(VENV)
	$(BIN)/python $(INSTALL) --editable ".[demo,dev]"
	@touch $@ $(DEMO)

$(LOWEST): pyproject.toml requirements-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python $(INSTALL) --requirement requirements-lowest.txt --editable ".[demo,plot]"
	@touch $@

$(TOOLS): Makefile
	$(PYTHON) -m venv --clear .venv-tools
	.venv-tools/bin/python $(INSTALL) "pip-audit>=2.7" "uv>=0.5"
	@touch $@

locked: $(LOCK) | $(VENV)  ## install the locked versions into .venv: Python 3.11 on Linux, x86-64
	$(BIN)/python $(INSTALL) --require-hashes --requirement $(LOCK)
	$(BIN)/python $(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $(DEMO) $(DEV)

lock: $(TOOLS)  ## write the lock; UPGRADE=--upgrade takes the newest versions
	UV_CUSTOM_COMPILE_COMMAND="make lock" .venv-tools/bin/uv pip compile --quiet --generate-hashes --no-annotate \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --extra demo --extra dev $(UPGRADE) \
		pyproject.toml --output-file $(LOCK)

audit: $(TOOLS)  ## look the locked versions up in the list of known vulnerabilities, which needs network access
	.venv-tools/bin/pip-audit --strict --require-hashes --disable-pip --requirement $(LOCK)

demo: $(DEMO)  ## digits as PNG files -> head -> verified ONNX -> predictions
	$(BIN)/headkit demo

test: $(DEV)  ## the tests that are not marked slow, on all cores
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

fuzz: $(DEV)  ## change valid files and requests, and pass them through every door for three minutes
	$(BIN)/python -m headkit.benchmarks.studies.security.fuzzing --minutes 3 --fresh --inputs 1000000 \
		--result build/fuzzing/result.json

test-slow: $(DEV)  ## all tests, the slow ones too
	$(BIN)/python -m pytest $(PARALLEL)

test-lowest: $(LOWEST)  ## what users run, on the lowest versions that pyproject.toml admits
	.venv-lowest/bin/python -m pytest $(PARALLEL) -m "not slow and not network" $(LOWEST_TESTS)
	mkdir -p build
	.venv-lowest/bin/headkit coverage --structure --numeric --fresh --out build/coverage-lowest.jsonl \
		--only "$$(.venv-lowest/bin/python -m tests.lowest)"

lint: $(DEV)  ## format, lint, order of imports, types, workflow
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy -p headkit -p tests
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/ci.yml

coverage: $(DEV)  ## the adapter layer's contract: all architectures, and numbers for the smallest of each family
	mkdir -p build
	$(BIN)/headkit coverage --structure --fresh --out build/coverage.jsonl
	$(BIN)/headkit coverage --numeric --smallest --fresh --out build/coverage.jsonl

bench: $(DEV)  ## two architectures on all runtimes: a table, bench.csv and plots in build/bench
	$(BIN)/python $(INSTALL) --editable ".[bench]"
	$(BIN)/headkit bench mobilenetv4_conv_small vit_tiny_patch16_224 --rounds 1 --out build/bench

bench-full: $(DEV)  ## all that docs/benchmarks.md shows, measured anew (hours)
	$(BIN)/python $(INSTALL) --editable ".[bench,peers]"
	for what in speed peers tasks growth; do $(BIN)/python -m headkit.benchmarks.studies.$$what || exit 1; done
	$(BIN)/python -m headkit.benchmarks.pages.render

wheel-files: $(DEV)  ## write the list of files in the wheel, which a test compares
	$(BIN)/python -m tests.wheel

docs: $(DEV)  ## write the committed measurements into README and docs
	$(BIN)/python -m headkit.benchmarks.pages.render

clean:
	rm -rf .venv .venv-lowest .venv-tools build demo *.egg-info
