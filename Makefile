include ci/venv.mk
include ci/mmcv.mk
.DEFAULT_GOAL := help
TOOLS := $(PLACE)build/tools
OLDEST := $(PLACE)build/oldest
DOCS := $(PLACE)build/docs
# Of what is released.
DIST ?= $(PLACE)dist

.PHONY: help install integrations test test-fast test-core test-oldest lint format tables check-tables docs docs-tools \
  info bench ablation gpu soak lock audit wheels check-wheels clean
help:
	@echo "make install       everything into .venv, pinned"
	@echo "make mmcv          also what detection and segmentation need; WHEELHOUSE=folder saves a build"
	@echo "make integrations  timm, Lightning, ultralytics and others, for tests of our layers in them"
	@echo "make test          all tests ('make test-fast' leaves out the slow ones)"
	@echo "make test-core     the core's alone, which needs torch, pytest and hypothesis; PY=python"
	@echo "make test-oldest   the same with the oldest torch allowed, in an environment of its own"
	@echo "make lint          style, format and types; 'make format' mends what it can"
	@echo "make check-tables  tables and plot of the pages against their sources; 'make tables' writes them"
	@echo "make docs          the pages as a site in build/site, which needs no network to be read"
	@echo "make info          versions and backends"
	@echo "make bench         timings on this machine"
	@echo "make ablation      the paper's Tables 6 and 7 on digits, half an hour on two cores; ARGS='--only ...'"
	@echo "make gpu           CUDA kernels tested and timed in eight minutes, with PYTHON as it is; OUT=folder"
	@echo "make soak          kills and hostile files; ARGS='--kills 50 --operations 1 --files 2000' for long"
	@echo "make lock          versions of ci/constraints.txt with their hashes; ARGS=--upgrade for the others"
	@echo "make wheels        the five packages as wheels and sources, in dist/"
	@echo "make check-wheels  install, train, test and export with them alone; after 'make wheels'"
	@echo "make audit         known vulnerabilities of what is installed"
	@echo "make -C swin train: train the embedded model; the same in resnet, san, pvt"

install: $(INSTALLED)

integrations: $(INSTALLED)
	$(call fetch,integrations)

# One thread a process: the processes already fill the cores.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal

test: $(INSTALLED)
	$(PYTEST) $(ARGS)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow" $(ARGS)

# Of the core, which needs torch alone, in any environment: make test-core PY=python
test-core: $(if $(filter $(VENV)/%,$(PY)),$(INSTALLED))
	OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/core" $(PY) -m pytest tests/core $(ARGS)

# The same with the oldest torch that the metadata allows.
test-oldest: $(OLDEST)/.installed
	$(MAKE) test-core PY=$(OLDEST)/bin/python

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
	$(PY) core/ablation/plot.py

check-tables: $(INSTALLED)
	$(PY) ci/tables.py

# Links and anchors that lead nowhere, and public names without a docstring, are errors.
SITE ?= $(PLACE)build/site
docs: docs-tools
	$(DOCS)/bin/interrogate --quiet --config pyproject.toml core/acmix
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --site-dir "$(abspath $(SITE))"
	@echo "open $(SITE)/index.html"

docs-tools: $(DOCS)/.installed

info: $(INSTALLED)
	$(PY) -m acmix.info

bench: $(INSTALLED)
	$(PY) core/benchmarks/ratios.py

ablation: $(INSTALLED)
	$(PY) core/ablation/run.py $(ARGS)

# A machine with a device needs torch, CuPy and pytest, and no network: nothing is installed.
OUT ?= build/gpu
gpu:
	PYTHONPATH="$(CURDIR)/core:$(PYTHONPATH)" "$(PYTHON)" core/benchmarks/gpu.py --out "$(OUT)"

soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) ci/soak.py $(ARGS)

# Environments that have needs of their own stay out of .venv.
$(TOOLS)/.installed $(OLDEST)/.installed $(DOCS)/.installed: $(PLACE)build/%/.installed: ci/locks/%.txt
	"$(PYTHON)" -m venv $(@D)
	$(@D)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps \
	  --require-hashes -r $<
	touch $@

lock: $(TOOLS)/.installed
	$(TOOLS)/bin/python ci/lock.py $(ARGS)

audit: $(INSTALLED) $(TOOLS)/.installed
	$(TOOLS)/bin/python ci/audit.py $(PY) $(ARGS)

wheels: $(TOOLS)/.installed
	$(TOOLS)/bin/python ci/wheels.py "$(DIST)"

# In an environment that has nothing else of ours.
check-wheels:
	"$(PYTHON)" ci/check_python.py
	"$(PYTHON)" ci/check_wheels.py "$(DIST)" $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -rf */build */dist */*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
