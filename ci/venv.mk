# The virtual environment that every Makefile of the repository shares.
ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)
PYTHON ?= python3
VENV ?= $(ROOT)/.venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PACKAGES := core resnet san pvt swin
# What `make install` brings, and what the lock of that name has.
CORE := $(ROOT)/core[mm,dev,onnx]
METADATA := $(foreach package,$(PACKAGES),$(ROOT)/$(package)/pyproject.toml)

PIP := $(PY) -m pip --quiet --disable-pip-version-check
# What comes from outside is known by its hash. A mirror that builds packages itself has others:
# HASHES=no takes any file of the same versions.
HASHES ?= yes
# Install a lock, or without hashes these requirements.
fetch = $(PIP) install $(if $(filter no,$(HASHES)),-c $(ROOT)/ci/constraints.txt $(2),--no-deps \
  --require-hashes -r $(ROOT)/ci/locks/$(1).txt)

$(INSTALLED): $(ROOT)/ci/constraints.txt $(ROOT)/ci/locks/install.txt $(METADATA)
	$(PYTHON) $(ROOT)/ci/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(call fetch,install,-e '$(CORE)')
	$(PIP) install --no-deps --no-build-isolation $(foreach p,$(PACKAGES),-e $(ROOT)/$(p))
	touch $@
