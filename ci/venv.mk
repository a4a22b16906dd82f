# The virtual environment that every Makefile of the repository shares. Paths are relative: a folder
# with a space in its name would be two targets to make.
ROOT := $(or $(patsubst %ci/,%,$(dir $(lastword $(MAKEFILE_LIST)))),./)
PYTHON ?= python3
# Where the tree can't be written, what is installed and built is kept in the user's cache.
WRITABLE := $(shell test -w $(ROOT) && echo yes)
PLACE := $(if $(WRITABLE),$(ROOT),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/acmix/)
VENV ?= $(PLACE).venv
ifneq ($(words $(VENV)),1)
$(error VENV=$(VENV): give a path without spaces, relative to this folder if need be)
endif
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PACKAGES := core resnet san pvt swin
METADATA := $(foreach package,$(PACKAGES),$(ROOT)$(package)/pyproject.toml)

PIP := $(PY) -m pip --quiet --disable-pip-version-check
# What comes from outside is known by its hash. A mirror that builds packages itself has others:
# HASHES=no takes any file of the same versions.
HASHES ?= yes
# Install a lock into the environment of a Python.
unhashed = sed -e 's/ \\$$//' -e '/--hash=/d' $(ROOT)ci/locks/$(1).txt > $(VENV)/$(1).txt
fetch = $(if $(filter no,$(HASHES)),$(call unhashed,$(1)) && $(PIP) install --no-deps \
  -r $(VENV)/$(1).txt,$(PIP) install --no-deps --require-hashes -r $(ROOT)ci/locks/$(1).txt)
# An installation of its own leaves files in the tree.
install_packages = $(if $(WRITABLE),$(PIP) install --no-deps --no-build-isolation \
  $(foreach p,$(PACKAGES),-e $(ROOT)$(p)),$(PY) $(ROOT)ci/link_packages.py)

$(INSTALLED): $(ROOT)ci/constraints.txt $(ROOT)ci/locks/install.txt $(METADATA)
	"$(PYTHON)" $(ROOT)ci/check_python.py
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) uninstall --yes opencv-python
	$(call fetch,install)
	$(install_packages)
	touch $@
