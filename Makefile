# Two commands do everything: `make up` runs the system, `make test` proves it.
# PYTHON may name another interpreter (3.11 or later); ARGS goes to the command.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
UV_VERSION := 0.13.8

# Processes are started by the dozen, and without bytecode each compiles Ray and all the rest again, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install up down test test-long faults check lock bench clean

install: $(VENV)/.runtime

up: $(VENV)/.runtime
	$(BIN)/analytics-actors up $(ARGS)

down: $(VENV)/.runtime
	$(BIN)/analytics-actors down $(ARGS)

# Unit and contract tests side by side; then those of whole systems, two at a time: their servers and actors run beside.
# Some ten minutes on two cores; what takes long and rarely finds anything is in test-long.
test: check
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	$(BIN)/pytest -n 3 --dist loadfile tests/unit tests/contract
	$(BIN)/pytest -n 2 --dist loadfile tests/integration tests/faults
endif

# What `make test` leaves out: many more seeds of the models, and repetitions of a fault at another place.
test-long: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadfile -m long $(ARGS)

# All faults, with services away for a minute instead of seconds.
faults: $(VENV)/.dev
	FAULT_SECONDS=60 $(BIN)/pytest -m "long or not long" tests/faults $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m load_tests.bench $(ARGS)

lock: $(VENV)/.uv
	$(BIN)/uv pip compile pyproject.toml --extra test --extra load --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --upgrade -q -o requirements/dev.lock
	$(BIN)/uv pip compile pyproject.toml -c requirements/dev.lock --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url -q -o requirements/runtime.lock

$(VENV)/.uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@

# The test environment holds all of the runtime one: whichever is asked for, the other's packages stay.
$(VENV)/.runtime: requirements/runtime.lock pyproject.toml | $(VENV)/.uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/runtime.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml | $(VENV)/.uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
