# Each target sets itself up: nothing but Python 3.11 and make is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
OLDEST ?= .venv-oldest
PY := $(VENV)/bin/python
CRF_REFERENCE := pydensecrf2==1.1
TASK ?= biomass
RUN := demo-$(TASK)
OUT := demo/$(TASK)
# the models of a task's demo, their options and their views at inference
MEMBERS_biomass := net ridge
MEMBERS_glacier := net
MEMBERS_rts := net
MEMBERS_landslide := net
MEMBERS := $(MEMBERS_$(TASK))
ARGS_ridge := --head ridge
TTA_biomass_net := --tta hflip vflip swap
TTA_glacier_net := --tta hflip vflip rot90
TTA_landslide_net := --tta hflip vflip rot90
# what a task's demo does beside: one look at the test rows (one view, as thresholds were fitted), a map of a scene
FINAL_rts := --final-test $(OUT)/net --again
SCENE_rts := --scene demo/scenes --truth demo/hidden/scene_truth.tif
SCENE_landslide := --scene demo/scenes --truth demo/hidden/area.tif
FOLDS_landslide := --folds 3
GATES_landslide := --gates production

.PHONY: install demo demo-shuffled test soak bench clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -q -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@# the reference of the dense CRF is built from source, which needs a C++ compiler
	$(VENV)/bin/pip install --disable-pip-version-check -q $(CRF_REFERENCE) || echo "$(CRF_REFERENCE) cannot be built here: comparisons with it are skipped"
	touch $@

# the whole way on a set that the project draws itself: folds, models, their blend, test predictions, report; a map of
# the model before goes, since none is ever replaced
demo: install
	$(PY) make_folds.py --task $(TASK) --data demo $(FOLDS_$(TASK)) --force
	$(foreach m,$(MEMBERS),$(PY) train.py --task $(TASK) --data demo --run $(RUN)-$(m) $(ARGS_$(m)) --force &&) true
	$(foreach m,$(MEMBERS),$(PY) infer.py --runs $(RUN)-$(m) --data demo $(TTA_$(TASK)_$(m)) --out $(OUT)/$(m) &&) true
	$(PY) ensemble.py --runs $(addprefix $(RUN)-,$(MEMBERS)) --data demo --save-blend $(OUT)/blend.json --out $(OUT) $(GATES_$(TASK))
	$(PY) ensemble.py --preds $(addprefix $(OUT)/,$(MEMBERS)) --data demo --blend $(OUT)/blend.json --out $(OUT)
	$(if $(FINAL_$(TASK)),$(PY) ensemble.py --runs $(RUN)-net --data demo $(FINAL_$(TASK)) --out $(OUT))
	$(if $(SCENE_$(TASK)),rm -rf $(OUT)/map)
	$(if $(SCENE_$(TASK)),$(PY) infer.py --runs $(RUN)-net $(SCENE_$(TASK)) --out $(OUT)/map)
	@echo "report: $(OUT)/report.html"

# the same with the images exchanged between rows: the score must fall to a constant's
demo-shuffled: install
	$(foreach m,$(MEMBERS),$(PY) train.py --task $(TASK) --data demo --run $(RUN)-shuffled-$(m) $(ARGS_$(m)) \
	  --shuffle-images --collapse-epochs 0 --force &&) true
	$(PY) ensemble.py --runs $(addprefix $(RUN)-shuffled-,$(MEMBERS)) --data demo --no-report --out $(OUT)-shuffled

test: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not soak"

soak: install $(OLDEST)/.installed
	LANDFOLD_OLDEST=$(OLDEST)/bin/python $(PY) -m pytest -q -m soak

# the oldest versions that requirements.txt allows, for the long form of the kernels' tests
$(OLDEST)/.installed: requirements.txt
	$(PYTHON) -m venv $(OLDEST)
	sed -nE 's/^([A-Za-z0-9_.-]+)>=([0-9.]+).*/\1==\2.*/p' requirements.txt > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/pip install --disable-pip-version-check -q -r $(OLDEST)/requirements.txt
	touch $@

bench: install
	$(PY) benchmarks/run_all.py

clean:
	rm -rf cache runs preds out demo .pytest_cache .ruff_cache
