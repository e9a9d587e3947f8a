## make benchmark   run the main job: digits, every framework, entropic retraining beside ART's own trainers
## make test        run the tests
## make test-all    run those too that send many more networks through, which takes a quarter of an hour more
## make lint        ruff and mypy
## make docs        build the documentation in site/
## make venv        only set up .venv, as the targets above do by themselves
## make constraints pin every dependency anew (needs uv: pip install uv)
## make clean       remove .venv and what builds and tools leave behind
##
## ARGS goes on to the program:    make benchmark ARGS="--problem mnist --framework pytorch"
## JOBS is how many test files run at once: make test JOBS=4
## PYTHON chooses an interpreter:  make test PYTHON=python3.12

# pip's own settings are honoured, from its configuration files or the environment. On a machine without a GPU, name an
# index that has CPU builds of PyTorch in PIP_EXTRA_INDEX_URL (or a folder of wheels in PIP_FIND_LINKS) before the first
# run: 2.13.0+cpu satisfies the pin torch==2.13.0, and pip prefers it to the several gigabytes of plain 2.13.0 with CUDA.
# The same index should have CPU builds of torchvision: the plain ones for Linux do not load beside a CPU build of PyTorch.

PYTHON ?= python3.13 python3.12 python3.11 python3.10 python3
ARGS ?=
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help benchmark test test-all lint docs venv constraints clean

help:
	@sed -n 's/^## \{0,1\}//p' Makefile

benchmark: $(STAMP)
	$(BIN)/art-entropic benchmark $(ARGS)

test-all: WHICH := -m ""
test test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(WHICH) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/mkdocs build --strict $(ARGS)

venv: $(STAMP)

# Debian and Ubuntu split ensurepip off into a package of its own; where it is missing but pip is there, pip fills the
# environment from outside (by --target, because pip before 22.3 has no --python).
define create_venv
for python in $(PYTHON); do \
  "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && break; \
  python=; \
done; \
if [ -z "$$python" ]; then \
  echo 'No Python 3.10 to 3.13 found: sudo apt-get update && sudo apt-get install -y python3 python3-venv' >&2; \
  exit 1; \
fi; \
if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
  "$$python" -m venv --clear .venv; \
elif "$$python" -c 'import pip, venv' 2>/dev/null; then \
  "$$python" -m venv --clear --without-pip .venv && \
  "$$python" -m pip install --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip; \
else \
  version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
  echo "$$python cannot make a virtual environment: sudo apt-get update && sudo apt-get install -y python$$version-venv" >&2; \
  exit 1; \
fi
endef

define torchvision_note
Note: `import torchvision` fails in .venv. Beside a CPU build of PyTorch it has to be a CPU build too, and pip found none.
The tests do without what it lacks, and art-entropic does not use it. To have both of one kind, name an index that offers
both in PIP_EXTRA_INDEX_URL, then `make clean venv`.
endef
export torchvision_note

$(STAMP): setup.py pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(create_venv); } >&2
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,notebook,docs,dev]' >&2
	@# Without its dependencies: it asks for a release of requests from 2020, which no attack needs.
	$(BIN)/python -m pip install --no-deps torchattacks==3.5.1 >&2
	@if $(BIN)/python -c 'import torchvision' 2>&1 | grep -q 'torchvision::nms'; then echo "$$torchvision_note" >&2; fi
	@touch $@

# The CUDA packages that torch asks for are left out: torch pins them itself, and a CPU build has none.
constraints:
	uv pip compile --universal --python-version 3.10 --no-python-downloads --all-extras \
	  --no-header --no-annotate --no-emit-index-url --upgrade pyproject.toml \
	  | grep -vE '^(cuda|nvidia)-|^triton==' > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean:
	rm -rf .venv build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
