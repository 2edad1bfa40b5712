# Each target sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# The package as it is installed, for mypy and editors: the folders' names here are not its names.
LINKS := .venv/links/emopipe
SHARED ?= ../shared
LANDMARKS68 = $(SHARED)/data/landmarks68/landmarks68.parquet
DATA := build/fer2013
FER2013 = $(DATA)/fer2013.csv

.PHONY: help demo test test-jobs test-others lint types check calibrate learn-faces pretrain finetune bench bench-memory bench-bookkeeping bench-ray chaos fuzz bench-data bench-landmarks

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	mkdir -p $(LINKS)
	ln -sfn $(foreach part,emopipe/__init__.py emopipe/py.typed emonet pipeline jobs pretrained,../../../$(part)) $(LINKS)
	touch $@

demo: $(INSTALLED)  ## make a sample video, analyze it with the bundled model, show the table
	$(BIN)/python -m emopipe.jobs.demo

# Two halves at once: those of jobs mostly wait for Ray's processes. (By make and not by the shell,
# whose background commands ignore Ctrl-C, which tests send.)
test: $(INSTALLED)  ## run the tests
	$(MAKE) --no-print-directory --jobs 2 test-jobs test-others

test-jobs: $(INSTALLED)
	$(BIN)/pytest tests/jobs

test-others: $(INSTALLED)
	$(BIN)/pytest --ignore tests/jobs

lint: $(INSTALLED)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## check types
	$(BIN)/mypy

check: lint types test  ## all that the gate checks

calibrate: $(INSTALLED)  ## measure how detectors' boxes lie on faces (needs the reference data)
	$(BIN)/python -m emopipe.pipeline.faces.calibrate $(LANDMARKS68) --detector centerface
	for detector in yunet blazeface; do \
	    $(BIN)/python -m emopipe.pipeline.faces.calibrate $(LANDMARKS68) --detector $$detector \
	        --detector-weights $(SHARED)/weights || exit; \
	done

learn-faces: $(INSTALLED)  ## learn anew what tracks, pose and usable are made with (needs the reference data)
	for what in mean_face appearance visibility; do \
	    $(BIN)/python -m emopipe.pipeline.faces.learn_$$what $(LANDMARKS68) pretrained || exit; \
	done

$(FER2013): | $(INSTALLED)
	$(BIN)/python $(SHARED)/data/fer2013/to_csv.py $(DATA)

PRETRAIN = $(BIN)/emopipe pretrain $(FER2013) --ferplus $(DATA)/fer2013new.csv --landmarks $(LANDMARKS68) --local
pretrain: $(INSTALLED) $(FER2013)  ## train the bundled model anew (needs the reference data; two and a half hours on 2 cores)
	$(PRETRAIN) --out runs/pretrain-first
	$(PRETRAIN) --from runs/pretrain-first/best.safetensors --epochs 28 --cooldown-epochs 4 \
	    --learning-rate 1.5e-3 --warmup 0.03 --landmark-share 0.15

finetune: $(INSTALLED) $(FER2013)  ## fine-tune it on FER2013's labels (needs the reference data; 30 minutes on 2 cores)
	$(BIN)/emopipe finetune $(FER2013) --train all --validation Training --local

bench: $(INSTALLED)  ## frames/s of each stage and of the whole, beside a plain loop and a roofline (2 minutes)
	$(BIN)/emopipe bench $(wildcard $(SHARED)/data/videos/WolfgangLanger_Pexels.mp4)

bench-memory: $(INSTALLED)  ## memory of all processes over a 30-minute 1080p video (10 minutes)
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_memory.py

bench-data: $(INSTALLED)  ## what share of a training step goes into reading and augmenting FER2013
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_data.py $(wildcard $(FER2013))

bench-landmarks: $(INSTALLED)  ## landmark errors by decoder, and steadiness on a clip (needs the reference data)
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_landmarks.py $(SHARED) $(MODEL)

bench-bookkeeping: $(INSTALLED)  ## the driver's time and memory over 100,000 spans (20 minutes)
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_bookkeeping.py

bench-ray: $(INSTALLED)  ## what Ray costs and gains beside --local (needs the reference data; 8 minutes)
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_ray.py

chaos: $(INSTALLED)  ## kill drivers, workers and trainings at random moments, 50 times (needs the reference data)
	$(BIN)/python tests/chaos.py driver
	$(BIN)/python tests/chaos.py workers
	$(BIN)/python tests/chaos_steady.py
	$(BIN)/python tests/chaos_training.py

fuzz: $(INSTALLED)  ## damage 5,000 small videos at random and compare with ffmpeg (15 minutes)
	PYTHONPATH=tests $(BIN)/python tests/fuzz.py
