PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types tests test-lm-eval clean
demo: $(READY)  ## the whole loop on the plain corpus and the default model
	$(BIN)/docward run recipes/quickstart.yaml --output-dir runs/quickstart

test: lint types tests  ## what CI runs

lint: $(READY)
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

types: $(READY)
	$(BIN)/mypy

tests: $(READY)  ## by two processes of one thread each, which is faster than one of two; pytest alone does as well
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-lm-eval: $(READY)  ## an exported model in lm-evaluation-harness, which `make test` skips without it
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,lm-eval]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/serving/test_lm_eval.py

# torch by its exact version first: other requests for it may take a build that is several GB larger.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Docward needs Python 3.11 or later, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build src/docward.egg-info .pytest_cache .mypy_cache .ruff_cache
