# `make test` and `make demo` each set everything up: a virtual environment of its own, the pinned packages.
PYTHON ?= python3
VENV ?= .venv
UV := uv==0.13.8
# One thread per test process: two-thread OpenMP collapses when the machine is shared.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: test lint setup demo demo-seeds figures fusion-figures speech-figures kill fuzz lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, PYTHON is {v[0]}.{v[1]}")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python -r requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps -e .
	touch $@

test: setup
	$(THREADS) $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(TESTS)

# Drawn clips, features, a fitted run, its table: demo/, with demo/metrics.json. No weights, no network, no GPU.
demo: setup
	$(VENV)/bin/python tools/demo.py $(if $(V),-v)

# The same for other seeds of the generator, and the table over them.
SEEDS ?= 1 2 3
demo-seeds: setup
	$(VENV)/bin/python tools/demo.py $(SEEDS)

# The figures of docs/benchmarks.md, on this CPU (a quarter of an hour; leave the machine alone meanwhile).
figures: setup
	$(VENV)/bin/python -m benchmarks.pipeline --device cpu --text docs/pipeline-cpu.txt -o docs/pipeline-cpu.json

# Those of the fusion network (a few minutes).
fusion-figures: setup
	$(THREADS) $(VENV)/bin/python -m benchmarks.fusion --device cpu --text docs/fusion-cpu.txt -o docs/fusion-cpu.json

# Those of speech and words (a minute).
speech-figures: setup
	$(THREADS) $(VENV)/bin/python -m benchmarks.speech --device cpu --pairs 21 --text docs/speech-cpu.txt -o docs/speech-cpu.json

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# 30 kills and 30 stops by signal at random moments; MEDIA is a folder of clips (minutes).
kill: setup
	$(VENV)/bin/python tools/kill_run.py --media $(MEDIA)

# 300 damaged media files and over 100 broken small ones, made of the real clips in ../shared/media (half an hour).
fuzz: setup
	$(THREADS) $(VENV)/bin/python -m tools.fuzz

# Newer versions within pyproject.toml's ranges.
lock: setup
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 --extra dev --extra demo --extra google pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV)
