# Each target sets itself up: nothing but Python 3.11 and make is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
TASK ?= biomass
RUN := demo-$(TASK)
OUT := demo/$(TASK)

.PHONY: install demo demo-shuffled test soak bench clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -q -r requirements.txt -r requirements-dev.txt -c constraints.txt
	touch $@

# the whole way on a set that the project draws itself: folds, two models, their blend, test predictions, report
demo: install
	$(PY) make_folds.py --task $(TASK) --data demo
	$(PY) train.py --task $(TASK) --data demo --run $(RUN)-net --force
	$(PY) train.py --task $(TASK) --data demo --run $(RUN)-ridge --head ridge --force
	$(PY) infer.py --runs $(RUN)-net --data demo --tta hflip vflip swap --out $(OUT)/net
	$(PY) infer.py --runs $(RUN)-ridge --data demo --out $(OUT)/ridge
	$(PY) ensemble.py --runs $(RUN)-net $(RUN)-ridge --data demo --save-blend $(OUT)/blend.json --out $(OUT)
	$(PY) ensemble.py --preds $(OUT)/net $(OUT)/ridge --data demo --blend $(OUT)/blend.json --out $(OUT)
	@echo "report: $(OUT)/report.html"

# the same with the photos exchanged between rows: the score must fall to a constant's
demo-shuffled: install
	$(PY) train.py --task $(TASK) --data demo --run $(RUN)-shuffled-net --shuffle-images --force
	$(PY) train.py --task $(TASK) --data demo --run $(RUN)-shuffled-ridge --head ridge --shuffle-images --force
	$(PY) ensemble.py --runs $(RUN)-shuffled-net $(RUN)-shuffled-ridge --data demo --no-report --out $(OUT)-shuffled

test: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m pytest -q -n 2 -m "not soak"

soak: install
	$(PY) -m pytest -q -m soak

bench: install
	for file in benchmarks/*.py; do echo "== $$file"; $(PY) $$file || exit 1; done

clean:
	rm -rf cache runs preds out demo .pytest_cache .ruff_cache
