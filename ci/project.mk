# What the Makefile of every project does; a project sets DEFAULT_CONFIG and includes this file.
include $(dir $(lastword $(MAKEFILE_LIST)))venv.mk

CONFIG ?= $(DEFAULT_CONFIG)
GPUS ?= 1
# A path may be given from this folder or from where make was called.
find = $(firstword $(wildcard $(1) $(PWD)/$(1)) $(1))
several := $(filter-out 0 1,$(GPUS))
run = $(PY) $(if $(several),-m torch.distributed.run --standalone --nproc_per_node=$(GPUS))
launcher = $(if $(several),--launcher pytorch)
data = $(if $(DATA_ROOT),--cfg-options data_root=$(abspath $(call find,$(DATA_ROOT))))
# The shell would take a bracket in a setting, as in a.scale=(320,240), for its own. ARGS that have
# quotes are written for the shell already.
special := ( ) [ ] { } * ? ; & | < >
has = $(strip $(foreach one,$(1),$(findstring $(one),$(2))))
quote = $(if $(call has,$(special),$(1)),'$(1)',$(1))
args = $(if $(call has,' " \,$(ARGS)),$(ARGS),$(foreach word,$(ARGS),$(call quote,$(word))))

.PHONY: help install train test
help:
	@echo "make train [CONFIG=configs/...py] [GPUS=8] [DATA_ROOT=folder] [ARGS='--resume ...']"
	@echo "make test CHECKPOINT=... [CONFIG=configs/...py] [GPUS=8] [DATA_ROOT=folder] [ARGS='...']"
	@echo "Without CONFIG: $(DEFAULT_CONFIG), a small model on embedded data."

install: $(INSTALLED)

train: $(INSTALLED)
	$(run) tools/train.py $(call find,$(CONFIG)) $(launcher) $(data) $(args)

test: $(INSTALLED)
	@test -n "$(CHECKPOINT)" || { echo "error: CHECKPOINT is empty; give CHECKPOINT=file.pth" >&2; exit 2; }
	$(run) tools/test.py $(call find,$(CONFIG)) $(call find,$(CHECKPOINT)) $(launcher) $(data) $(args)
