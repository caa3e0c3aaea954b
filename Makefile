# Every target works on a fresh clone with Python >= 3.11 and pip: the first one that runs makes .venv from constraints.txt.
#   make demo    questions about a real image and a real video
#   make test    the laws and everything else          make lint    ruff and mypy
#   make parity  a table of every published family against its reference implementation
#   make matrix  features x architectures: ten times the random cells of make test
#   make bench   kernels, plugins, whole models        make clean   forgets .venv and all build products
#   make cross   the kernels for ARM under an emulator, where a cross compiler and qemu are at hand
# PYTHON=python3.12 picks the interpreter. On Linux the package index's torch brings gigabytes of CUDA libraries;
# TORCH_INDEX=URL takes it from another index, such as PyTorch's own for CPU builds.
PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
ROOMS := models encoders engine adapters

.PHONY: demo test lint parity matrix bench cross clean types

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(READY) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(READY)
	@$(BIN)/python -m pytest tests/parity -s --tb=short 2>/dev/null | grep -oE 'parity  .*|(FAILED|ERROR) .*|[0-9]+ (passed|failed).*'

matrix: $(READY)
	@FLUVIAL_MATRIX=10 $(BIN)/python -m pytest -n $(WORKERS) -rP tests/composition/test_sessions.py 2>/dev/null \
	    | grep -oE '^composition  .*|(FAILED|ERROR) .*|[0-9]+ (passed|failed).*'

bench: $(READY)
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/matrices.py
	$(BIN)/python benchmarks/plugins.py
	$(BIN)/python benchmarks/cache.py --tokens 8000
	$(BIN)/python benchmarks/decode.py

# Compiles the kernels for 64-bit ARM and compares them under an emulator; without one they are only compiled.
cross: $(READY)
	@$(BIN)/python tests/kernels/arm/cross.py

# Constraints reach the isolated build too (PIP_BUILD_CONSTRAINT is what newer pips read).
$(READY): pyproject.toml constraints.txt $(wildcard adapters/kernels/*)
	@$(PYTHON) -c 'import sys; sys.exit("Fluvial needs Python >= 3.11, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) install -q -c constraints.txt --index-url $(TORCH_INDEX) torch)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt \
	    $(PIP) install -q -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'from fluvial.adapters import native; print(native.status().detail)'
	@touch $@

# mypy knows no mapped folders: this links them into the shape that an install has.
types:
	@rm -rf build/types && mkdir -p build/types/fluvial
	@ln -s $(CURDIR)/api/fluvial/* $(addprefix $(CURDIR)/,$(ROOMS)) build/types/fluvial/

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(ROOMS) api examples benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
