# Every target prepares what it needs the first time and nothing the second. `make help` lists them.

PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.ready

# Where torch comes from. The CPU build by default on a machine without an NVIDIA driver (the package index's own build
# brings several GB of CUDA), the package index's build otherwise. To choose: make setup TORCH_INDEX=URL, or empty.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,https://download.pytorch.org/whl/cpu)

SCALE   ?= auto
TASK    ?=
QUESTION ?=
WORKERS ?=
STUDY   ?=
ARGS    ?=
PRESET_BENCH ?= small
PEERS   := $(VENV)/.peers
DASHBOARD := $(VENV)/.dashboard
STUDY_FLAGS = --scale $(SCALE) $(if $(TASK),--task $(TASK)) $(if $(STUDY),--study $(STUDY))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup ablation studies smoke speed bench search summary report dashboard status data fit finetune table1 signal test test-all lint types check tensorboard lock clean

help: ## list the targets and variables
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nVariables: SCALE=smoke|small|base|paper (auto: base with a GPU, else small)  TASK=clm|mlm  WORKERS=N\n'
	@printf 'QUESTION=he2024/fig06-depth|mine.yaml (make ablation; default: the grid)\n'
	@printf 'PRESET_BENCH=small|paper|crammed|long (make bench)\n'
	@printf 'STUDY=NAME  ARGS="further flags of the command"  TORCH_INDEX=URL (where torch comes from)  PYTHON=python3.11\n'

setup: $(STAMP) ## make the virtual environment with the pinned packages

# pip is called through python: scripts of a virtual environment break in a path with spaces. A half-made
# environment has no stamp and is completed, or made anew where not even pip works.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; set another: make setup PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "error: no virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing torch and the other pinned packages into $(VENV) (some minutes, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

ablation: $(STAMP) ## train a study (QUESTION=FILE; default: every combination of the switches), measure speed, sum up
	@$(BIN)/python -m ablations run $(QUESTION) $(STUDY_FLAGS) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

studies: $(STAMP) ## list the questions that come with the suite, with cells and estimated time
	@$(BIN)/python -m ablations studies --scale $(SCALE) $(ARGS)

smoke: $(STAMP) ## the whole pipeline on tiny models, in under two minutes
	@$(MAKE) --no-print-directory ablation SCALE=smoke

speed: $(STAMP) ## measure the speed of every row against the baseline again
	@$(BIN)/python -m ablations speed $(STUDY_FLAGS) --redo $(ARGS)

# Peers are only installed where they are asked for. litgpt wants an older huggingface-hub than transformers, which its
# model does not use: it goes without its dependencies. Where the peers cannot be had, the rest is measured.
$(PEERS): $(STAMP)
	@echo "installing the benchmark's peers into $(VENV) (once; without them: make bench ARGS=--no-peers) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt litgpt && \
		touch $(PEERS) || echo "the peers could not be installed; measuring those that are there"

$(DASHBOARD): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dashboard]'
	@touch $(DASHBOARD)

bench: $(if $(findstring --no-peers,$(ARGS)),$(STAMP),$(PEERS)) ## time blocks, peers, lengths (PRESET_BENCH=paper, ARGS="--only blocks")
	@$(BIN)/python -m ablations.bench --preset $(PRESET_BENCH) $(ARGS)

search: $(STAMP) ## tune pre_ln and sas_p with equal budgets and compare them (ARGS="--presets sas --trials 50")
	@$(BIN)/python -m ablations search $(STUDY_FLAGS) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

report: $(STAMP) ## one HTML file of a study, which opens without a network
	@$(BIN)/python -m ablations report $(STUDY_FLAGS) $(ARGS)

dashboard: $(DASHBOARD) ## Optuna's own pages on the latest study, or another (STUDY=NAME, ARGS="--storage URL --port 8081")
	@$(BIN)/python -m ablations.viewers.dashboard $(if $(STUDY),--study $(STUDY)) $(ARGS)

summary: $(STAMP) ## tables and plots of a study, as far as it got
	@$(BIN)/python -m ablations summary $(STUDY_FLAGS) $(ARGS)

status: $(STAMP) ## what of a study is done, running, failed, left
	@$(BIN)/python -m ablations status $(STUDY_FLAGS) $(ARGS)

data: $(STAMP) ## prepare the default corpus and print its data card (ARGS="--recipe installed")
	@$(BIN)/python -m lit_simplified data $(ARGS)

fit: $(STAMP) ## train one model (ARGS="--preset sas_p")
	@$(BIN)/python -m lit_simplified fit $(ARGS)

finetune: $(STAMP) ## fine-tune trained encoders (ARGS="--checkpoint RUN --task docstrings", or glue/sst2, glue/all)
	@$(BIN)/python -m lit_simplified finetune $(ARGS)

table1: $(STAMP) ## the paper's Table 1 on this machine: masked models' score, parameters, speed and memory, by block
	@$(BIN)/python -m ablations table1 --scale $(SCALE) $(if $(STUDY),--study $(STUDY)) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

signal: $(STAMP) ## follow a signal through deep stacks of each block, untrained (ARGS="--depth 100 --seeds 0")
	@$(BIN)/python -m lit_simplified signal $(ARGS)

# The tests on two cores, those of a file together, which share their fixtures; then those that measure, alone. Both
# halves run, whatever the first gives. Status 5 is "no tests": ARGS may choose from one half only, but not from none.
test: $(STAMP) ## the test suite without its slow tests (ARGS="-k resumed")
	@first=0; $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not timed" $(ARGS) || first=$$?; \
	second=0; $(BIN)/python -m pytest -m "not slow and timed" $(ARGS) || second=$$?; \
	[ $$first = 5 ] && first=$$second; [ $$second = 5 ] && second=$$first; \
	exit $$((first ? first : second))

test-all: $(STAMP) ## the whole test suite (its slow tests alone: ARGS="-m slow")
	@$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## ruff
	@$(BIN)/python -m ruff check .

types: $(STAMP) ## mypy
	@$(BIN)/python -m mypy

check: lint types test ## lint, types and tests

tensorboard: $(STAMP) ## TensorBoard on the latest study or run, or another (STUDY=NAME)
	@$(BIN)/python -m ablations.viewers.tensorboard $(if $(STUDY),--study $(STUDY)) $(ARGS)

lock: $(PEERS) $(DASHBOARD) ## write constraints.txt anew from the environment
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pile]'
	@$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| grep -v '^nvidia-\|^triton\|^cuda-' | sed 's/+cpu$$\|+cu[0-9]*$$//' > constraints.new && mv constraints.new constraints.txt

clean: ## remove environment, caches and build files; results and corpora stay
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .mypy_cache
