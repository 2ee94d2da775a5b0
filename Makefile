# Two commands for a newcomer: `make demo` and `make test`. Both set themselves up.
#
# Needed beforehand: Python 3.11 or later, Rust (cargo), a C compiler, make, git. Everything else
# goes into .venv and target/ in this checkout; nothing is installed outside, no root is needed.
#
#   make setup                               .venv with hybridps (release build), hybridps_torch, tests
#   make setup TORCH_FROM=/site-packages     the same, with a torch that is already on this machine
#   make setup TENSORFLOW_FROM=...           the same for TensorFlow; "no" leaves it out
#   make demo ARGS="--scale 5000000"         the demonstration; ARGS go to `hybridps demo`
#   make test                                everything that should pass before a commit
#   make test-long  make bench  make check   campaigns, benchmarks, formatters and linters
#   make wheel  make test-wheel              dist/ with wheels; tried in bare environments

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 2
PYTEST_JOBS ?= 2
# A directory that holds an installed torch; the environment may name it for every command.
TORCH_FROM ?= $(HYBRIDPS_TORCH_SITE)
TENSORFLOW_FROM ?= $(HYBRIDPS_TENSORFLOW_SITE)

RUST := $(shell find rust schemas -type f -not -path '*/target/*' 2>/dev/null) Cargo.toml Cargo.lock
TOOLS := 'maturin>=1.8,<2' 'pytest>=8' 'pytest-asyncio>=0.24' 'hypothesis>=6.100' 'tqdm>=4.66' 'trustme>=1.1' 'pytest-xdist>=3.6'
PIP := $(BIN)/python -m pip --disable-pip-version-check
export CARGO_TERM_PROGRESS_WHEN := never
export PIP_QUIET := 1

.PHONY: setup demo test test-long bench check wheel test-wheel clean
.DELETE_ON_ERROR:

setup: $(VENV)/.torch $(VENV)/.tensorflow $(VENV)/.engine $(VENV)/.torch-client $(VENV)/.tensorflow-client
	@$(BIN)/python -c 'import hybridps, sys; print("ready: hybridps", hybridps.__version__, "in", sys.prefix)'

$(VENV)/.created:
	@echo "setup: $(VENV) of $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hybridps needs Python 3.11 or later: make setup PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.tools: $(VENV)/.created Makefile
	@echo "setup: build and test tools"
	@$(PIP) install --quiet $(TOOLS)
	@touch $@

# torch is large: one that is here already is used, and only then is one installed.
$(VENV)/.torch: $(VENV)/.tools
	@PYTHON="$(PYTHON)" FROM="$(TORCH_FROM)" sh .ci/framework $(BIN)/python torch 'torch>=2.3'
	@touch $@

# Large too, and not needed: where it does not install, its tests are skipped.
$(VENV)/.tensorflow: $(VENV)/.torch
	@PYTHON="$(PYTHON)" FROM="$(TENSORFLOW_FROM)" OPTIONAL=yes \
	sh .ci/framework $(BIN)/python tensorflow 'tensorflow-cpu>=2.16'
	@touch $@

$(VENV)/.engine: $(VENV)/.tools pyproject.toml $(RUST)
	@echo "setup: hybridps, release build (a few minutes the first time)"
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust, https://rustup.rs" >&2; exit 1; }
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" PATH="$(CURDIR)/$(BIN):$$PATH" maturin develop --release --quiet
	@touch $@

$(VENV)/.torch-client: $(VENV)/.engine $(VENV)/.torch clients/torch/pyproject.toml
	@echo "setup: hybridps_torch"
	@$(PIP) install --quiet --no-deps --editable clients/torch
	@touch $@

$(VENV)/.tensorflow-client: $(VENV)/.engine $(VENV)/.tensorflow clients/tensorflow/pyproject.toml
	@echo "setup: hybridps_tf"
	@$(PIP) install --quiet --no-deps --editable clients/tensorflow
	@touch $@

demo: setup
	@$(BIN)/python -m hybridps.demo $(ARGS)

# Only the engine's crates: the extension module itself is tested from Python. Two processes of
# pytest: most tests wait for a server to start, or for time to pass. `PYTEST_JOBS=0` is one alone.
test: setup
	@if cargo nextest --version >/dev/null 2>&1; \
	then cargo nextest run --cargo-quiet -j$(JOBS) -p hybridps-core -p hybridps-wire -p hybridps-serve; \
	else cargo test --quiet -j$(JOBS) -p hybridps-core -p hybridps-wire -p hybridps-serve; fi
	@$(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist worksteal $(ARGS)

# The same campaigns with more rounds; tests read HYBRIDPS_LONG.
test-long: setup
	@HYBRIDPS_LONG=1 cargo test --quiet -p hybridps-core --features schedules schedules
	@HYBRIDPS_LONG=1 PROPTEST_CASES=2000 cargo test --quiet -j$(JOBS) -p hybridps-core -p hybridps-wire -p hybridps-serve
	@HYBRIDPS_LONG=1 $(BIN)/python -m pytest -n $(PYTEST_JOBS) --dist worksteal $(ARGS)

bench: setup
	@for script in inprocess tier device tiers stalls opening wire pooled redis; do \
	  echo "== benchmarks/$$script.py"; $(BIN)/python benchmarks/$$script.py || exit 1; done

check:
	@sh .ci/check $(BIN)

# dist/: wheels to install elsewhere.
wheel: setup
	@sh .ci/wheel $(BIN)

# Installs them into bare environments of every Python that is here, and tries them.
test-wheel: wheel
	@HYBRIDPS_WHEELS=$(CURDIR)/dist $(BIN)/python -m pytest tests/wheels $(ARGS)

clean:
	rm -rf $(VENV) target dist .pytest_cache .mypy_cache .ruff_cache
