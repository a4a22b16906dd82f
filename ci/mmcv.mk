# MMDetection and MMSegmentation, and the full mmcv that they need in place of mmcv-lite.
MMCV := mmcv==2.1.0
# A folder with a wheel of mmcv; without one it is built from source, once, into this folder.
OWN_WHEELHOUSE := $(PLACE)build/wheelhouse
WHEELHOUSE ?= $(OWN_WHEELHOUSE)
BUILT := $(OWN_WHEELHOUSE)/.built
BUILD := $(PLACE)build/mmcv

.PHONY: mmcv
# Both packages own the same folder, so neither may be there when the other comes.
mmcv: $(INSTALLED) $(if $(filter $(OWN_WHEELHOUSE),$(WHEELHOUSE)),$(BUILT))
	@$(PIP) install --dry-run --ignore-installed --no-deps --no-index \
	  --find-links "$(WHEELHOUSE)" $(MMCV) 2>/dev/null || { \
	  echo "error: WHEELHOUSE=$(WHEELHOUSE): no wheel of $(MMCV) for this" \
	  "Python; leave WHEELHOUSE out to build one" >&2; exit 2; }
	$(PIP) uninstall --yes mmcv-lite mmcv
	$(PIP) install --no-deps --no-index --find-links "$(WHEELHOUSE)" $(MMCV)
	$(call fetch,downstream)
	$(PY) -c "import mmcv.ops, mmdet, mmseg"

# Its setup.py asks for C++17 and torch's headers for C++20, and it imports the torch at hand.
$(BUILT): | $(INSTALLED)
	rm -rf $(BUILD)
	mkdir -p $(BUILD) $(@D)
	$(call fetch,downstream)
	$(PIP) download --no-deps --no-binary mmcv --no-build-isolation -d $(BUILD) \
	  --require-hashes -r $(ROOT)ci/locks/mmcv.txt
	tar -xzf $(BUILD)/mmcv-*.tar.gz -C $(BUILD) --strip-components 1
	sed -i.orig 's/c++17/c++20/g' $(BUILD)/setup.py
	MMCV_WITH_OPS=1 $(PIP) wheel --no-deps --no-build-isolation -w $(@D) $(BUILD)
	touch $@
