# The virtual environment that every Makefile of the repository shares.
ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)
PYTHON ?= python3
VENV ?= $(ROOT)/.venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PACKAGES := core resnet san pvt swin
METADATA := $(foreach package,$(PACKAGES),$(ROOT)/$(package)/pyproject.toml)

$(INSTALLED): $(ROOT)/ci/constraints.txt $(METADATA)
	$(PYTHON) $(ROOT)/ci/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c $(ROOT)/ci/constraints.txt \
	  -e '$(ROOT)/core[mm,dev,onnx]' $(foreach p,$(filter-out core,$(PACKAGES)),-e $(ROOT)/$(p))
	touch $@
