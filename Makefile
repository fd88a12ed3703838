# Every target sets itself up: a fresh clone with Python >= 3.11 and pip is enough.
#   make demo        the transfer study on synthetic hospitals and one segmented scan, in demo/
#   make test        the tests
# Choose another interpreter with PYTHON=..., another place for the environment with VENV=...

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
DATA := $(or $(PNEUMOSCOPE_DATA),../shared/data)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Tests work on small arrays, where several threads only wait for each other.
test test-slow test-real test-slurm test-peers test-all: export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-real test-slurm test-peers test-all lint format docs bench clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,4s/^# //p' Makefile
	@echo "  also: lint, format, docs, bench, test-slow, test-real, test-slurm, test-peers, test-all, clean"

# pip knows dependency groups since 25.1; where the system's venv lacks ensurepip, the system's pip fills it.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 was found; name one with PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(RUN) pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.base: pyproject.toml $(VENV)/.made
	$(RUN) pip install --quiet --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.base
	$(RUN) pip install --quiet --group test
	@touch $@

$(VENV)/.lint: pyproject.toml $(VENV)/.base
	$(RUN) pip install --quiet --group lint
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.base
	$(RUN) pip install --quiet --group docs
	@touch $@

demo: $(VENV)/.base
	$(BIN)/pneumoscope demo --out demo --overwrite

# Files of tests run side by side, one process a core; a file stays together, as its tests share what they made. When
# such a process is killed the run ends and names the test: pytest-xdist 3.8 would wait for its files for ever.
SIDE_BY_SIDE := -n auto --dist loadfile --max-worker-restart 0

test: $(VENV)/.test
	$(RUN) pytest $(SIDE_BY_SIDE)

test-slow: $(VENV)/.test
	$(RUN) pytest -m slow --timeout 1800

test-real: $(VENV)/.test
	$(RUN) pytest -m real --timeout 1800

# On Debian as root: installs SLURM, starts one node with ports and folders of its own, and stops it again.
test-slurm: $(VENV)/.test
	scripts/slurm_node.sh $(RUN) pytest -m slurm --timeout 900

$(VENV)/.peers: pyproject.toml $(VENV)/.test
	$(RUN) pip install --quiet --no-deps nnunetv2 dynamic-network-architectures timm lungmask acvl-utils \
		batchgenerators batchgeneratorsv2 rt-utils TotalSegmentator dicom2nifti
	$(RUN) pip install --quiet fill-voids graphviz seaborn scikit-learn yacs einops tqdm future blosc2 unittest2 \
		more-itertools requests threadpoolctl imageio tifffile fastremap pynrrd
	@touch $@

# Models of other programs beside these programs themselves. Not through the extra: timm would bring torchvision.
test-peers: $(VENV)/.peers
	$(RUN) pytest -m peers --timeout 3000

test-all: $(VENV)/.test
	$(RUN) pytest $(SIDE_BY_SIDE) -m "slow or not slow" --timeout 1800

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs
	$(BIN)/python scripts/cli_reference.py docs/reference/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.test
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/end_to_end.py
	@if [ -d "$(DATA)/ct-volumes" ]; then $(BIN)/python benchmarks/lungs.py --data "$(DATA)/ct-volumes"; \
	else echo "benchmarks/lungs.py is left out: no real scans in $(DATA); name their folder with PNEUMOSCOPE_DATA"; fi

clean:
	[ ! -f $(VENV)/pyvenv.cfg ] || rm -rf $(VENV)
	rm -rf demo build dist site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
