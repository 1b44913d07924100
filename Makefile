# make run: the daemon on 127.0.0.1:6000, its state in ./var.  make test: the tests.  make check: lint and types.
# make torture: a real daemon under faults, while clients check what it promises.
# make bench: ours and other engines, and the daemon and the bare engine, side by side.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More options for the daemon: make run ARGS="--model embedded"
ARGS ?=
# Which tests: make test TESTS=tests.test_wire
TESTS ?= tests

# One part of the benchmarks, with options: make bench BENCH="engines --model base"
BENCH ?=

# Options of the faults: make torture TORTURE="--quick --seed 2"
TORTURE ?=

.PHONY: run install test check torture bench clean

run: install
	$(BIN)/twistd -n --pidfile= transcribed $(ARGS)

install: $(VENV)/.installed

# In the development mode that puts the tree itself on the path: twistd finds the plugin by it.
$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.txt: this takes some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	touch $@

test: $(VENV)/.checkers
	$(BIN)/trial $(TESTS)

check: $(VENV)/.checkers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.checkers: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

torture: $(VENV)/.checkers
	$(BIN)/python -m torture $(TORTURE)

bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks $(BENCH)

# Under the daemon's own pins: the peers may not bring other versions of what both use.
$(VENV)/.peers: $(VENV)/.installed benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info _trial_temp*
