# Every target prepares what it needs the first time and nothing the second. `make help` lists them.

PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.ready

# Where torch comes from. The CPU build by default on a machine without an NVIDIA driver (the package index's own build
# brings several GB of CUDA), the package index's build otherwise. To choose: make setup TORCH_INDEX=URL, or empty.
TORCH_CPU   := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,$(TORCH_CPU))

# pip is called through python: scripts of a virtual environment break in a path with spaces.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Every file must have a SHA-256 that the lock names. Wheels only: to build, pip would fetch what no lock names.
LOCKED := $(PIP) --no-deps --only-binary :all: --require-hashes
TORCH  := $(if $(filter-out $(TORCH_CPU),$(TORCH_INDEX)),$(PIP) --no-deps -c constraints.txt torch,$(LOCKED) -r torch-cpu.lock)
PROJECT := $(PIP) --no-build-isolation -c constraints.txt

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
.PHONY: help setup ablation studies smoke speed bench search summary report judge dashboard status data fit finetune table1 signal test test-all lint types check tensorboard lock clean

help: ## list the targets and variables
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nVariables: SCALE=smoke|small|medium|base|paper (auto: base with a GPU, else small)  TASK=clm|mlm  WORKERS=N\n'
	@printf 'QUESTION=he2024/fig06-depth|mine.yaml (make ablation; default: the grid)\n'
	@printf 'PRESET_BENCH=small|paper|crammed|long (make bench)\n'
	@printf 'STUDY=NAME  ARGS="further flags of the command"  TORCH_INDEX=URL (where torch comes from)  PYTHON=python3.11\n'

setup: $(STAMP) ## make the virtual environment with the pinned packages

# A half-made environment has no stamp and is completed, or made anew where not even pip works. torch that the first
# line gave is left alone by the second. Two things are not checked by hash: torch from an index of the user's own
# choice, and CUDA's packages, which torch names by version: the project's own line finds all but these installed.
$(STAMP): pyproject.toml constraints.txt requirements.lock torch-cpu.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; set another: make setup PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "error: no virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing torch and the other pinned packages into $(VENV) (some minutes, once) ..."
	@$(if $(TORCH_INDEX),$(TORCH) --retries 1 --extra-index-url $(TORCH_INDEX) || \
		echo "torch could not be had from $(TORCH_INDEX); taking the build of the package index (several GB on Linux)")
	@$(LOCKED) -r requirements.lock
	@$(PROJECT) -e '.[dev]'
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
	@$(PROJECT) -e '.[bench]' && $(PROJECT) --no-deps litgpt==0.5.13 && \
		touch $(PEERS) || echo "the peers could not be installed; measuring those that are there"

$(DASHBOARD): $(STAMP)
	@$(PROJECT) -e '.[dashboard]'
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

judge: $(STAMP) ## how sure the answer of a study is, and how many seeds would make it sure (STUDY=NAME)
	@$(BIN)/python -m ablations judge $(STUDY) $(ARGS)

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

# constraints.txt: every package of every extra; requirements.lock: of those, what `make setup` installs, with the hashes
# of all its files on the package index; torch-cpu.lock: the CPU builds' hashes. Pins stay unless pyproject.toml asks for
# others. CUDA's packages are in none, since they differ by build of torch.
lock: LOCKS   := $(VENV)/lock
lock: CUDA    := ^(nvidia-|triton|cuda-)
lock: COMPILE := $(VENV)/lock/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--no-annotate --custom-compile-command 'make lock'
lock: ## write constraints.txt and the locks anew (ARGS=--upgrade: with the newest versions)
	@$(PYTHON) -m venv $(LOCKS) && $(LOCKS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@cp constraints.txt $(LOCKS)/all.txt
	@$(COMPILE) --all-extras $(ARGS) pyproject.toml -o $(LOCKS)/all.txt
	@$(COMPILE) --extra dev --generate-hashes -c $(LOCKS)/all.txt pyproject.toml -o $(LOCKS)/dev.txt
	@grep -vE '$(CUDA)' $(LOCKS)/all.txt > constraints.txt
	@awk '/^[a-z]/ {kept = !/$(CUDA)/} kept || /^#/' $(LOCKS)/dev.txt > requirements.lock
	@echo torch | $(COMPILE) --generate-hashes --no-deps -c constraints.txt --default-index $(TORCH_CPU) - \
		> $(LOCKS)/cpu.txt && cp $(LOCKS)/cpu.txt torch-cpu.lock || \
		echo "warning: $(TORCH_CPU) did not answer; torch-cpu.lock is as it was: right only for the same torch" >&2

clean: ## remove environment, caches and build files; results and corpora stay
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .mypy_cache
