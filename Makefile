include ci/venv.mk
include ci/mmcv.mk
.DEFAULT_GOAL := help

.PHONY: help install integrations test test-fast lint format tables check-tables info bench gpu soak lock audit clean
help:
	@echo "make install       everything into .venv, pinned"
	@echo "make mmcv          also what detection and segmentation need; WHEELHOUSE=folder saves a build"
	@echo "make integrations  timm, Lightning, ultralytics and others, for tests of our layers in them"
	@echo "make test          all tests ('make test-fast' leaves out the slow ones)"
	@echo "make lint          style, format and types; 'make format' mends what it can"
	@echo "make check-tables  README tables against metafile.yml; 'make tables' writes them"
	@echo "make info          versions and backends"
	@echo "make bench         timings on this machine"
	@echo "make gpu           CUDA kernels tested and timed in eight minutes, with PYTHON as it is; OUT=folder"
	@echo "make soak          kills and hostile files; ARGS='--kills 50 --operations 1 --files 2000' for long"
	@echo "make lock          versions of ci/constraints.txt with their hashes; ARGS=--upgrade for the others"
	@echo "make audit         known vulnerabilities of what is installed"
	@echo "make -C swin train: train the embedded model; the same in resnet, san, pvt"

install: $(INSTALLED)

integrations: $(INSTALLED)
	$(call fetch,integrations,-e './core[integrations]')

# One thread a process: the processes already fill the cores.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal

test: $(INSTALLED)
	$(PYTEST) $(ARGS)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow" $(ARGS)

CXX_SOURCES = $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(PY) -m mypy

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_SOURCES)

tables: $(INSTALLED)
	$(PY) ci/tables.py --write

check-tables: $(INSTALLED)
	$(PY) ci/tables.py

info: $(INSTALLED)
	$(PY) -m acmix.info

bench: $(INSTALLED)
	$(PY) core/benchmarks/ratios.py

# A machine with a device needs torch, CuPy and pytest, and no network: nothing is installed.
OUT ?= build/gpu
gpu:
	PYTHONPATH=$(ROOT)/core:$(PYTHONPATH) $(PYTHON) core/benchmarks/gpu.py --out $(OUT)

soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) ci/soak.py $(ARGS)

# Tools that have needs of their own stay out of .venv.
TOOLS := build/tools
$(TOOLS)/.installed: ci/locks/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps \
	  --require-hashes -r $<
	touch $@

lock: $(TOOLS)/.installed
	$(TOOLS)/bin/python ci/lock.py $(ARGS)

audit: $(INSTALLED) $(TOOLS)/.installed
	$(TOOLS)/bin/python ci/audit.py $(PY) $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
