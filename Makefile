# Everything here sets itself up in .venv. TORCH=cpu (default) pins the torch of constraints/cpu.txt;
# TORCH=cuda takes whatever build of torch the package index serves (in a new environment: `make clean` first).
PYTHON ?= python3
VENV ?= .venv
TORCH ?= cpu
BIN := $(VENV)/bin

ifeq ($(TORCH),cpu)
CONSTRAINT := -c constraints/cpu.txt
else ifeq ($(TORCH),cuda)
CONSTRAINT :=
else
$(error TORCH must be cpu or cuda, got "$(TORCH)")
endif

.PHONY: run test test-julia falsify bench lint type docs clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras, so that `make run` does not wait for the test tools.
$(VENV)/.run-$(TORCH): $(BIN)/python pyproject.toml constraints/cpu.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINT) -e '.[train,plot]'
	@touch $@

$(VENV)/.dev-$(TORCH): $(BIN)/python pyproject.toml constraints/cpu.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINT) -e '.[train,plot,graph,dev]'
	@touch $@

$(VENV)/.docs-$(TORCH): $(BIN)/python pyproject.toml constraints/cpu.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINT) -e '.[docs]'
	@touch $@

## train a certified model on handwritten digits and show its certificate
run: $(VENV)/.run-$(TORCH)
	$(BIN)/subdeq train digits --out runs/digits --json runs/digits/result.json
	$(BIN)/subdeq certify runs/digits/checkpoint.safetensors

## the whole test suite; two processes, one thread each
test: $(VENV)/.dev-$(TORCH)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

## the tests of the Julia package, in the Julia that `subdeq doctor --use-julia` chose; says so where there is none
test-julia: $(VENV)/.dev-$(TORCH)
	$(BIN)/python tests/julia_package.py

## attack the certificates of 100,000 layers: most of an hour on two cores; resumes where it was interrupted
falsify: $(VENV)/.dev-$(TORCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/falsify.py --layers 100000 --seed 0 --processes 2 --out benchmarks/results/falsification.json

## time the solvers to the same guaranteed error, on an easy and a hard problem
bench: $(VENV)/.run-$(TORCH)
	$(BIN)/subdeq bench

lint: $(VENV)/.dev-$(TORCH)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev-$(TORCH)
	$(BIN)/mypy

docs: $(VENV)/.docs-$(TORCH)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis
