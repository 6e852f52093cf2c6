# Two commands do everything on a fresh machine: make run, make test. Each target is a python command or two (see the README).
# Variables: DATASET=demo|ucf101|<folder>  WEIGHTS=auto|torchvision|timm|packaged|none  RECIPE=recommended|seed
#            SPLIT=official1|official2|official3|group|random|given  CLASSES="A 'B with blanks'"  SEED=42  NAME=of the results
#            SKIP_BROKEN=1  ONE_FRAME=1  FOLDS=5  SEEDS=3  TRIALS=20  STORAGE=URL  CACHE_GB=20
#            RAY=local|auto|host:port  CACHE=s3://bucket/study|<folder>  CACHE_DIR=<folder>
#            BACKBONE="a network of frames, a network of volumes, or one of each", as in BACKBONE="convnext_tiny swin3d_t"

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST = $(PY) -m pytest -n logical --maxprocesses 8 --dist worksteal
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
READY_APP := $(VENV)/.ready-app
READY_CLUSTER := $(VENV)/.ready-cluster

# Names go to the commands by the environment, as they were written: a $ in them is no variable, a blank no end.
NAMES := DATASET NAME WEIGHTS BACKBONE RECIPE SPLIT CLASSES SEED FOLDS SEEDS TRIALS STORAGE CACHE_GB FROM MODE DATA CLIPS \
         SKIP_BROKEN ONE_FRAME VIDEO MODEL BUDGET RAY CACHE
$(foreach name,$(NAMES),$(if $(filter undefined,$(origin $(name))),,$(eval override $(name) := $$(value $(name)))))
export $(NAMES)
# threads that wait leave the cores to others
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo data data-check run tune report bench predict recipes curve faults soak reproduce app test test-all lint clean

help:  ## Explain every target
	@echo "make run and make test each do everything that they need, installation included."
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@sed -n '2,6s/^# */  /p' $(firstword $(MAKEFILE_LIST))

install: $(READY)  ## Create the virtual environment in .venv and install requirements.txt

$(READY): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make run PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@$(PY) -c 'import cv2' 2>/dev/null || { \
	  echo "OpenCV's window libraries are missing here: installing its build without them"; \
	  $(PY) -m pip uninstall --quiet --yes opencv-python; \
	  $(PY) -m pip install --quiet --disable-pip-version-check \
	    $$(sed -n 's/^opencv-python==/opencv-python-headless==/p' constraints.txt) && $(PY) -c 'import cv2'; }
	@touch $@

$(READY_DEV): $(READY) requirements-dev.txt requirements-app.txt requirements-export.txt requirements-cluster.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

$(READY_APP): $(READY) requirements-app.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-app.txt -c constraints.txt
	@touch $@

$(READY_CLUSTER): $(READY) requirements-cluster.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt -c constraints.txt
	@touch $@

demo: $(READY)  ## Render the embedded demo clips into dataset_info/demo
	$(PY) tools/data.py demo

data: $(READY)  ## Fetch the wanted UCF-101 clips and split them (FROM=DIR imports a local copy; MODE=link|copy|reference)
	$(PY) tools/data.py get
	DATASET=ucf101 $(PY) tools/data.py split

data-check: $(READY)  ## Decode every clip once (DATASET=ucf101 by default); report unreadable and duplicate ones
	$(PY) tools/data.py check

run: $(READY) $(if $(RAY),$(READY_CLUSTER))  ## Execute the notebooks (DATASET=...), train or reload, print the headline table
	$(PY) tools/run_notebooks.py

tune: $(READY)  ## Search hyperparameters longer (TRIALS=200, CUTS=head or "head stage", KIND="2d 3d", STORAGE=URL)
	$(PY) tools/tune.py --kind $(or $(KIND),2d 3d) --trials $(or $(TRIALS),200) --cuts $(or $(CUTS),head) \
	  $(if $(STORAGE),--storage "$$STORAGE") --test

report: $(READY)  ## Render the executed notebooks, model cards and an index page into results/<data set>/report
	$(PY) tools/report.py

predict: $(READY)  ## What a trained model sees in videos (VIDEO="a.mp4 'b c.mp4'", MODEL=2d|3d|fusion|..., DATASET=...)
	@$(PY) src/predict.py $(ARGS)

bench: $(READY_DEV)  ## Measure the study against the seed's pipeline (CLIPS=folder, REPEATS=3)
	$(PY) benchmarks/bench.py $(if $(CLIPS),--clips "$$CLIPS") --repeats $(or $(REPEATS),3)

recipes: $(READY_DEV)  ## Compare recipes by folds on real clips (DATA="folder folder"), into results/benchmarks/recipes.md
	$(PY) benchmarks/recipes.py

curve: $(READY_DEV)  ## Accuracy against the number of training groups (DATASET=...)
	$(PY) benchmarks/curve.py

faults: $(READY_DEV)  ## Kills, broken videos, full disks, broken files, with fixed seeds; goes on where it stopped (BUDGET=30m)
	$(PY) benchmarks/faults.py $(ARGS)

soak: $(READY_DEV)  ## Hours of notebooks, predictions and page requests after make run: does anything grow? (BUDGET=2h)
	$(PY) benchmarks/soak.py $(ARGS)

reproduce: $(READY)  ## Fetch UCF-101's three classes and compare the seed's recipe with ours under two splits
	$(PY) tools/reproduce.py $(ARGS)

app: $(READY_APP)  ## Serve a web page: drop a video, read what the trained models say (DATASET=..., ARGS="--port 8000")
	$(PY) src/app.py $(ARGS)

test: $(READY_DEV) lint  ## Run the lint and the tests that take minutes together (on all cores, eight at most)
	$(PYTEST) -m "not slow"

test-all: test  ## Run these, then the slow ones: browsers, exports, killed processes, whole command lines
	$(PYTEST) -m slow

lint: $(READY_DEV)  ## Check the code with ruff
	$(PY) -m ruff check

clean: $(READY)  ## Remove the cache, unfinished trainings and what failed notebooks left; clips, models and results stay
	$(PY) tools/data.py clean
