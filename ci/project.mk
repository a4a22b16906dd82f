# What the Makefile of every project does; a project sets DEFAULT_CONFIG and includes this file.
include $(dir $(lastword $(MAKEFILE_LIST)))venv.mk

CONFIG ?= $(DEFAULT_CONFIG)
GPUS ?= 1
NNODES ?= 1
MASTER_PORT ?= 29500
MAX_RESTARTS ?= 0
# A path may be given from this folder or from where make was called, and may have spaces.
found = $(shell test -e "$(1)" -o ! -e "$(PWD)/$(1)" && echo "$(2)" || echo "$(PWD)/$(1)")
find = "$(call found,$(1),$(1))"
outside = "$(if $(filter /%,$(1)),,$(PWD)/)$(1)"
absolute = "$(if $(filter /%,$(1)),$(1),$(call found,$(1),$(CURDIR)/$(1)))"
several := $(filter-out 0 1,$(GPUS))
machines := $(filter-out 1,$(NNODES))
restarts := $(filter-out 0,$(MAX_RESTARTS))
launched := $(or $(several),$(machines),$(restarts))
# Machines get the ranks that the user gave them; those that may come back meet each time anew.
fixed = --node_rank=$(NODE_RANK) --master_addr=$(MASTER_ADDR) --master_port=$(MASTER_PORT)
elastic = --rdzv_backend=c10d --rdzv_endpoint=$(MASTER_ADDR):$(MASTER_PORT) \
  --rdzv_conf=is_host=$(if $(filter 0,$(NODE_RANK)),1,0)
meeting = $(if $(machines),--nnodes=$(NNODES) $(if $(restarts),$(elastic),$(fixed)),--standalone)
torchrun = -m torch.distributed.run $(meeting) --nproc_per_node=$(or $(several),1) \
  $(if $(restarts),--max_restarts=$(MAX_RESTARTS))
# A store of its own for every start: in a shared one, workers would find their dead predecessors.
run = $(if $(restarts),TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1) $(PY) $(if $(launched),$(torchrun))
launcher = $(if $(launched),--launcher pytorch)
data = $(if $(DATA_ROOT),--cfg-options data_root=$(call absolute,$(DATA_ROOT)))
# The shell would take a bracket in a setting, as in a.scale=(320,240), for its own. ARGS that have
# quotes are written for the shell already.
special := ( ) [ ] { } * ? ; & | < >
has = $(strip $(foreach one,$(1),$(findstring $(one),$(2))))
quote = $(if $(call has,$(special),$(1)),'$(1)',$(1))
args = $(if $(call has,' " \,$(ARGS)),$(ARGS),$(foreach word,$(ARGS),$(call quote,$(word))))

.PHONY: help install train test predict analyze export check-launch
help:
	@echo "make train [CONFIG=configs/...py] [GPUS=8] [DATA_ROOT=folder] [ARGS='--resume ...']"
	@echo "make test CHECKPOINT=... [CONFIG=configs/...py] [GPUS=8] [DATA_ROOT=folder] [ARGS='...']"
	@echo "make predict CHECKPOINT=... IMAGES='cat.jpg folder' [OUT=folder] [CONFIG=configs/...py]"
	@echo "make analyze CHECKPOINT=... OUT=folder [IMAGES='cat.jpg'] [CONFIG=configs/...py]"
	@echo "make export CHECKPOINT=... OUT=file.onnx [CONFIG=configs/...py] [ARGS='--dynamic ...']"
	@echo "Without CONFIG: $(DEFAULT_CONFIG), a small model on embedded data."
	@echo "On each of several machines: NNODES=2 NODE_RANK=0 MASTER_ADDR=host [MASTER_PORT=29500]"
	@echo "MAX_RESTARTS=3: start the processes again when one of them ends early"

install: $(INSTALLED)

check-launch:
	@"$(PYTHON)" $(ROOT)ci/check_launch.py 'GPUS=$(GPUS)' 'NNODES=$(NNODES)' \
	  'NODE_RANK=$(NODE_RANK)' 'MASTER_ADDR=$(MASTER_ADDR)' 'MASTER_PORT=$(MASTER_PORT)' \
	  'MAX_RESTARTS=$(MAX_RESTARTS)'

train: check-launch $(INSTALLED)
	$(run) tools/train.py $(call find,$(CONFIG)) $(launcher) $(data) $(args)

test: check-launch $(INSTALLED)
	@test -n "$(CHECKPOINT)" || { echo "error: CHECKPOINT is empty; give CHECKPOINT=file.pth" >&2; exit 2; }
	$(run) tools/test.py $(call find,$(CONFIG)) $(call find,$(CHECKPOINT)) $(launcher) $(data) $(args)

# Images and folders to write to are named from where make was called.
predict: $(INSTALLED)
	@test -n "$(CHECKPOINT)" || { echo "error: CHECKPOINT is empty; give CHECKPOINT=file.pth" >&2; exit 2; }
	@test -n "$(IMAGES)" || { echo "error: IMAGES is empty; give IMAGES='cat.jpg folder'" >&2; exit 2; }
	$(PY) tools/predict.py $(call find,$(CONFIG)) $(call find,$(CHECKPOINT)) $(foreach one,$(IMAGES),$(call outside,$(one))) \
	  $(if $(OUT),--out-dir $(call outside,$(OUT))) $(args)

analyze: $(INSTALLED)
	@test -n "$(CHECKPOINT)" || { echo "error: CHECKPOINT is empty; give CHECKPOINT=file.pth" >&2; exit 2; }
	@test -n "$(OUT)" || { echo "error: OUT is empty; give OUT=folder" >&2; exit 2; }
	$(PY) tools/analyze.py $(call find,$(CONFIG)) $(call find,$(CHECKPOINT)) --out $(call outside,$(OUT)) \
	  $(if $(IMAGES),--image $(foreach one,$(IMAGES),$(call outside,$(one)))) $(args)

# A file name is taken from where make was called.
export: $(INSTALLED)
	@test -n "$(CHECKPOINT)" || { echo "error: CHECKPOINT is empty; give CHECKPOINT=file.pth" >&2; exit 2; }
	@test -n "$(OUT)" || { echo "error: OUT is empty; give OUT=file.onnx, .pt2, .aot.pt2 or .pt" >&2; exit 2; }
	$(PY) tools/export.py $(call find,$(CONFIG)) $(call find,$(CHECKPOINT)) $(call outside,$(OUT)) $(args)
