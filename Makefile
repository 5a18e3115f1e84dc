# Two commands for a newcomer: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

export HF_HUB_OFFLINE = 1
export TRANSFORMERS_OFFLINE = 1
export HF_DATASETS_OFFLINE = 1
# The tests start oomguard hundreds of times: its modules are compiled once, not each time.
export PYTHONDONTWRITEBYTECODE =

.PHONY: gpu faults slow extended soak fuzz quickstart test gates unit coverage frameworks environments overhead in-place recovery schema strategies-table options-table commands-page settings-table journeys clean

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.train: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	touch $@

# Make a tiny model and fine-tune it under a memory limit that it exceeds at first.
quickstart: $(VENV)/.train
	$(BIN)/python recipes/quickstart/run.py

# Number of test files that run at once; each takes one core and up to 4 GiB.
WORKERS ?= 2
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The gates, then all quick tests, real jobs of two frameworks among them: under 25 minutes on two
# cores the first time, when the frameworks' environments are built. They are cached.
test: gates
	$(PYTEST) -m "not slow and not extended and not gpu"

# Real jobs of all frameworks: up to an hour.
slow: $(VENV)/.dev
	$(PYTEST) -m "slow and not extended" --durations=25

# More of them: traces validated against real runs, probes of further frameworks.
extended: $(VENV)/.dev
	$(PYTEST) -m extended

gates: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture

# Everything that needs no real framework, without the faults: under 4 minutes on two cores.
unit: $(VENV)/.dev
	$(PYTEST) -m "not frameworks and not faults"

# Every fault at every phase of a run: killed, stopped, out of disk, out of processes, and more.
faults: $(VENV)/.dev
	$(PYTEST) -m faults

# Branch coverage of the same tests, in the processes that they start as well; then by package.
COVERAGE := $(BIN)/coverage
coverage: $(VENV)/.dev
	$(COVERAGE) erase
	$(COVERAGE) run -m pytest -n $(WORKERS) --dist loadfile -m "not frameworks and not gpu"
	$(COVERAGE) combine --quiet
	$(COVERAGE) report --sort=cover
	@for package in src/oomguard/*/; do \
	  printf '%-26s %s %%\n' $$package $$($(COVERAGE) report --include="$$package*" --format=total); \
	done

# All that runs a real framework.
frameworks: $(VENV)/.dev
	$(PYTEST) -m "frameworks and not extended"

environments: $(VENV)/.dev
	$(BIN)/python tests/frameworks/environments.py

# Kill a job, stop it and fill its disk at random until it has trained.
SOAK_SECONDS ?= 600
SOAK_SEED ?= 1
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak/run.py --seconds $(SOAK_SECONDS) --seed $(SOAK_SEED)

# Coverage-guided, where atheris installs; new inputs are kept in the corpus.
FUZZ_SECONDS ?= 120
fuzz: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet atheris
	$(BIN)/python tests/fuzz/atheris_log.py tests/fuzz/corpus -max_total_time=$(FUZZ_SECONDS) -max_len=4096

# On an NVIDIA card, with a Python that has torch with CUDA, transformers, peft and bitsandbytes:
# real CUDA failures, then 47 configurations predicted and measured. Skips what the card cannot run.
GPU_PYTHON ?= $(BIN)/python
gpu: $(VENV)/.dev
	OOMGUARD_GPU_PYTHON=$(GPU_PYTHON) $(BIN)/python -m pytest -m gpu tests/gpu
	$(GPU_PYTHON) benchmarks/prediction/gpu/measure.py

overhead: $(VENV)/.dev
	$(BIN)/python benchmarks/overhead/run.py

# Steps in smaller parts and restarts on the same jobs, interleaved: 3 minutes a pair.
PAIRS ?= 3
in-place: $(VENV)/.dev
	$(BIN)/python benchmarks/in_place/run.py --pairs $(PAIRS)

# Eight ways to recover from an OOM on one job in three situations, under real limits: a turn starts
# 30 jobs, of a minute each beside other work. Lightning and NVRx are installed the first time.
TURNS ?= 1
recovery: $(VENV)/.dev
	$(BIN)/python benchmarks/recovery/run.py --turns $(TURNS)

# Files and functions that plan, launch and an OOM pass through; before.json is the first measurement.
journeys: $(VENV)/.dev
	$(BIN)/python benchmarks/journeys/measure.py --out benchmarks/journeys/after.json

# Regenerate the published schema of the fit-report.
schema: $(VENV)/.dev
	$(BIN)/python -c "import json; from oomguard.run.report import schema; print(json.dumps(schema(), indent=2))" \
	  > src/oomguard/fit-report.schema.json

# Regenerate the table in docs/strategies.md.
strategies-table: $(VENV)/.dev
	sed -i '/^<!-- made by/q' docs/strategies.md
	$(BIN)/oomguard ladder --markdown >> docs/strategies.md

# Regenerate the table in docs/options.md.
options-table: $(VENV)/.dev
	sed -i '/^<!-- made by/q' docs/options.md
	$(BIN)/python -c "from oomguard.cli.options import options_table; print(options_table())" \
	  >> docs/options.md

# Regenerate docs/commands.md.
commands-page: $(VENV)/.dev
	sed -i '/^<!-- made by/q' docs/commands.md
	$(BIN)/python -c "from oomguard.cli.help_pages import help_pages; from oomguard.cli.main import cli; print(help_pages(cli))" \
	  >> docs/commands.md

# Regenerate the tables in docs/settings.md.
settings-table: $(VENV)/.dev
	sed -i '/^<!-- made by/q' docs/settings.md
	$(BIN)/python -c "from oomguard.adapters.settings.page import settings_tables; print(settings_tables())" \
	  >> docs/settings.md

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
