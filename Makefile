# Two commands, each doing all its own set-up in .venv: `make run` and `make test`. Nothing outside this folder is touched.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet install

# TORCH is what pip is given to install torch with: a requirement and, if need be, options.
#
#   make run                                         the release this project is tested with
#   make run TORCH="torch==2.13.0 --index-url URL"   another build, where URL is PyTorch's index for CPU, CUDA or ROCm
#
# On macOS and Windows the plain requirement is a CPU build. On Linux pip's usual source holds the CUDA build: several
# gigabytes, useless without an NVIDIA GPU. Whoever has none gives the URL of PyTorch's CPU index (README, "CPU only"), once:
# the choice is kept in .venv for later starts. torch goes first and by itself, so that its options touch nothing else; the
# installation after it finds torch there and leaves it alone. Another choice makes .venv anew, so that no CUDA stays behind.
DEFAULT_TORCH := torch==2.13.0
CHOICE := $(VENV)/torch-choice
CHOSEN := $(shell cat $(CHOICE) 2>/dev/null)
ifndef TORCH
TORCH := $(or $(CHOSEN),$(DEFAULT_TORCH))
endif

.PHONY: help run test lint probes install install-dev clean
.DELETE_ON_ERROR:

help:
	@echo "make run     install what serving needs, then start the service   (ARGS=\"--port 8001\" is passed to 'introspect serve')"
	@echo "make test    install what development needs, then run every test  (ARGS=\"-k arena\" is passed to pytest)"
	@echo "make lint    ruff, its formatter and mypy, as CI runs them"
	@echo "make probes  record, train and evaluate the embedded model's probes again"
	@echo "make clean   remove .venv, caches and builds"
	@echo "PYTHON=python3.12 chooses the Python, TORCH=\"...\" the torch build (see the top of the Makefile)"

run: install
	@$(VENV)/bin/introspect serve $(ARGS)

test: install-dev
	@$(VENV)/bin/pytest $(ARGS)

lint: install-dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

# The embedded probe set from nothing but the embedded model: traces of three pools of handwriting under six conditions, causal
# labels for strategy states, prompts from outside the world; then fit, and evaluate on the pool that no fit reads. Interrupted, it
# goes on where it was. `make -j2 probes OMP_NUM_THREADS=1` uses two cores best.
RUNS := runs
MIX := $(foreach w,digit_at=2 color_at=1 where=1 color_of=1 digit_of=1.5 exists=1 count=1 sum_row=1 add_row=1.5 describe=2 fact=1 \
  fact_note=1 fact_unknown=1,--weight $w)
RECORD := $(VENV)/bin/introspect record
ANSWERED := --seed 1 $(MIX) --budget full --budget snapkv:20%
REDUCED := --seed 1 $(MIX) --budget snapkv:12% --budget coverage:20% --budget coverage:12% --budget random:40%
EXPLAINED := --seed 2 $(MIX) --budget full --budget snapkv:20% --interventions
WHOLE := --seed 5 $(MIX) --budget full
RESAMPLED := --seed 4 $(MIX) --budget full --budget snapkv:20% --samples 10 --influence
FACTS := --seed 3 --weight fact=1 --weight fact_unknown=1 --weight fact_note=0.5 --budget full --budget snapkv:20% --interventions
POOLS := probe calibration test

.PHONY: $(addprefix traces-,$(POOLS))
traces-probe: CASES := 1500
traces-probe: EXPLAIN := 260
traces-probe: MORE := 6000
traces-probe: FACT := 500
traces-probe: REDUCE := 600 --hidden
traces-calibration: CASES := 700
traces-calibration: EXPLAIN := 120
traces-calibration: MORE := 2000
traces-calibration: FACT := 120
traces-calibration: REDUCE := 300
traces-test: CASES := 1200
traces-test: EXPLAIN := 120
traces-test: FACT := 120
traces-test: SAMPLED := 300
traces-test: REDUCE := 300 --hidden
$(addprefix traces-,$(POOLS)): traces-%: install-dev
	$(RECORD) --out $(RUNS)/$* --world digits --pool $* --n $(CASES) $(ANSWERED)
	$(if $(filter calibration,$*),,$(RECORD) --out $(RUNS)/$* --world outside --pool $* --seed 1 --n 240)
	$(RECORD) --out $(RUNS)/$* --world digits --pool $* --n $(EXPLAIN) $(EXPLAINED)
	$(RECORD) --out $(RUNS)/$* --world digits --pool $* --n $(FACT) $(FACTS)
	$(RECORD) --out $(RUNS)/$* --world digits --pool $* --n $(REDUCE) $(REDUCED)
	$(if $(SAMPLED),$(RECORD) --out $(RUNS)/$* --world digits --pool $* --n $(SAMPLED) $(RESAMPLED))
	$(if $(MORE),$(RECORD) --out $(RUNS)/$* --world digits --pool $* --n $(MORE) $(WHOLE))

probes: $(addprefix traces-,$(POOLS))
	$(VENV)/bin/introspect train --traces $(RUNS)/probe --traces $(RUNS)/calibration --target-risk 0.05 --delta 0.1 \
	  --out probes/introspect_probes/embedded/probes --name embedded-4
	$(VENV)/bin/introspect evaluate --probes embedded $(foreach p,$(POOLS),--traces $(RUNS)/$p) --out probes/results/embedded-4

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find introspect kernels probes service tests -name __pycache__ -type d -prune -exec rm -rf {} +

# From here on each file is the stamp of a step, newer than what the step read.

ifneq ($(TORCH),$(CHOSEN))
.PHONY: $(CHOICE)
endif

$(CHOICE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1) || found="not found"; \
	  echo "Python 3.11 or newer is needed, '$(PYTHON)' is $$found. Install one and name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: sudo apt install python3-venv; then again: make $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "[1/3] making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@printf '%s\n' '$(TORCH)' > $@

# xargs, not the shell, splits the choice into arguments: `torch>=2.11` redirects nothing.
$(VENV)/torch-installed: $(CHOICE)
	@echo "[2/3] installing $(TORCH), the largest part: minutes, without a word from pip"
	@if [ '$(TORCH)' = '$(DEFAULT_TORCH)' ] && [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia ]; then \
	  echo "      no NVIDIA driver here: unless pip is set up for a CPU build it now fetches gigabytes of CUDA."; \
	  echo "      To avoid that: Ctrl-C, and see \"CPU only\" in README.md"; fi
	@xargs $(PIP) < $(CHOICE)
	@touch $@

$(VENV)/installed: $(VENV)/torch-installed pyproject.toml
	@echo "[3/3] installing introspect-mllm and what serving needs"
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/torch-installed pyproject.toml
	@echo "[3/3] installing introspect-mllm and what development needs"
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/installed $@
