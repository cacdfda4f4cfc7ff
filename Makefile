# make image   sets everything up and draws a sheet of pictures with the small model that comes along
# make test    sets everything up and runs every check
#
# The newest torch instead of the tested one:   make image TORCH=torch
# A torch from another index, of CPU builds:     make image TORCH_INDEX=https://...

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: image test soak full-size benchmark clean

image: $(VENV)/.installed
	$(BIN)/python examples/contact_sheet.py --output image.png

test: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Downloads and batches that are killed five hundred times each; a larger job for workers that are killed.
soak: $(VENV)/.tools
	DIFFSYNTH_TEST_KILLS=500 $(BIN)/python -m pytest tests/batch/test_kills.py tests/hub/test_processes.py
	DIFFSYNTH_SOAK_IMAGES=256 $(BIN)/python -m pytest tests/batch/test_distributed.py

full-size: $(VENV)/.tools
	$(BIN)/python -m benchmarks.full_size
	$(BIN)/python -m benchmarks.full_size_mixing

benchmark: $(VENV)/.tools
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.denoise
	$(BIN)/python -m benchmarks.batch
	$(BIN)/python -m benchmarks.download
	$(BIN)/python -m benchmarks.lora_memory

clean:
	rm -rf $(VENV) build image.png

# torch goes first and alone: left to a dependency, pip would choose its version, and what it brings.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	touch $@

# The tested versions of everything but torch, which was chosen above.
$(VENV)/constraints.txt: constraints.txt $(VENV)/.torch
	grep -v '^torch==' constraints.txt > $@

$(VENV)/.installed: $(VENV)/constraints.txt pyproject.toml
	$(PIP) --constraint $(VENV)/constraints.txt --editable .
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(PIP) --constraint $(VENV)/constraints.txt --editable ".[dev]"
	touch $@
