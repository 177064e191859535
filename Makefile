# Every command does all the set-up: `make demo`, `make demo-full`, `make quick`, `make test`, `make test-simulated-gpu`,
# `make check`, `make build`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# An index of torch's wheels, such as that of those without CUDA; without one, pip takes its own. Where another
# torch is installed already, it stays: remove .venv first.
TORCH_INDEX ?=
TORCH = $(shell $(PYTHON) -c 'import tomllib; needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
print(*(repr(need) for need in needs if need.startswith(("torch>", "torchvision>"))))')

# Every worker holds the libraries in memory, 1.5 GB with the processes that it starts: 4 at most.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 4 ] && echo $$n || echo 4)
# Tests that are compiled once, and not by each worker in every run, save six seconds a worker.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo demo-full test quick test-simulated-gpu check build clean

demo: $(INSTALLED)
	$(BIN)/python -m amp.demo

demo-full: $(INSTALLED)
	$(BIN)/python -m amp.demo --full

test: $(INSTALLED)
	$(PYTEST)

quick: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu"

test-simulated-gpu: $(INSTALLED)
	$(BIN)/python tests/simulated_gpu/run.py -n $(WORKERS)

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

build: $(INSTALLED)
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build

clean:
	rm -rf out dist build

$(INSTALLED): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) $(TORCH))
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@
