# make quickstart   a virtual environment in .venv, then the first run
# make test         ruff, mypy, every test; the gpu tier says why where it is skipped
# make lint         ruff and mypy alone
# make bench        the studies, e.g. make bench ARGS="--help"
# make clean        caches and build products; never .venv, never a run
#
# PYTHON=/path/to/python chooses the Python to make .venv with. torch comes from where pip finds it; for the
# small CPU build set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# what is installed is as new as these stamps; without the files they depend on changing, nothing is redone
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: quickstart test lint bench clean
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	$(BIN)/selftrain quickstart

test: lint
	$(BIN)/python -m pytest -m "not gpu"
	@# 5: no test was collected, which for this tier is no failure
	@$(BIN)/python -m pytest -m gpu -rs; code=$$?; \
	if [ $$code -eq 5 ]; then echo "gpu tier: no tests"; else exit $$code; fi

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED_DEV)
	$(BIN)/selftrain bench $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt $(CREATED)
	$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt $(CREATED)
	$(PIP_INSTALL) -e ".[dev]"
	@touch $(INSTALLED) $@

# A Python counts if it runs (a version manager's shim may not), is new enough, and can make environments:
# Debian and Ubuntu ship venv without the ensurepip that it needs.
$(CREATED):
	@if $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		touch $@; exit 0; \
	fi; \
	bare=; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		if "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
			echo "making $(VENV) with $$python"; \
			"$$python" -m venv --clear $(VENV) && touch $@ && exit 0; \
			rm -rf $(VENV); exit 1; \
		fi; \
		bare="$${bare:-$$python}"; \
	done; \
	if [ -n "$$bare" ]; then \
		version=$$("$$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$$bare cannot make virtual environments: its ensurepip is missing." >&2; \
		echo "On Debian or Ubuntu: apt-get install python$$version-venv; then run make again." >&2; \
	else \
		echo "no Python 3.11 or newer: tried $(or $(PYTHON),python3.11 python3.12 python3.13 python3)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	fi; \
	exit 1
