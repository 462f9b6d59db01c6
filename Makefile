# One command to try it, one to prove it. Everything is installed into .venv and nowhere else.
PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=
# Test processes; what a file prepares is prepared once, because its tests stay together.
WORKERS ?= 2
VENV := .venv
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q install
SCRIPTS := $(wildcard deepfashion_training/*.sh) .ci/run

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev quick-test test test-long lint clean FORCE

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  PYTHON=python3.12   the Python that .venv is made from (3.10 to 3.13)'
	@echo '  ARGS="--seed 7"     more flags for quick-test'
	@echo '  PYTEST_ARGS="-x"    more flags for the tests'
	@echo '  WORKERS=4           test processes (2)'

setup: $(VENV)/.requirements ## .venv with what training needs, when it is missing or stale

setup-dev: $(VENV)/.requirements-dev ## the same, and what the tests need

# PYTHON is the base interpreter here and the training interpreter for the launcher, hence the change.
quick-test: setup ## train a small LoRA and compare it with its base
	@PYTHON=$(VENV)/bin/python bash deepfashion_training/train_deepfashion_lora.sh --quick-test $(ARGS)

test: lint ## lint, types, shellcheck, then the tests, without network
	$(PYTEST) -m "not long" $(PYTEST_ARGS)

test-long: setup-dev ## the tests that take longest, which CI runs too
	$(PYTEST) -m long $(PYTEST_ARGS)

lint: setup-dev ## ruff, mypy, shellcheck
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/shellcheck $(SCRIPTS)

clean: ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . \( -path ./outputs -o -path ./.git \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamps are written last, so that an installation cut short does not count. A .venv whose interpreter no longer
# starts (its base Python was removed) is made again, whatever its stamps say.
ifneq ($(shell $(VENV)/bin/python -c 'print("starts")' 2>/dev/null),starts)
$(VENV)/.requirements: FORCE
endif

$(VENV)/.requirements: requirements.txt
	@fail() { echo "error: $$1" >&2; exit 1; }; \
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
		command -v "$(PYTHON)" >/dev/null 2>&1 || \
			fail "$(PYTHON) is not here; install Python 3.10 to 3.13 or name it, as in make setup PYTHON=python3.11"; \
		"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
			fail "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), not 3.10 to 3.13; name one: make setup PYTHON=python3.11"; \
		"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
			fail "$(PYTHON) comes without venv; on Debian and Ubuntu: apt install python3-venv"; \
		echo "making $(VENV) from $(PYTHON)"; \
		"$(PYTHON)" -m venv --clear $(VENV); \
	}
	@echo "installing requirements.txt into $(VENV) (PyTorch is large: minutes the first time)"
	@$(PIP) -r requirements.txt
	@touch $@
	@echo "installed; next: . $(VENV)/bin/activate, then make quick-test"

$(VENV)/.requirements-dev: requirements-dev.txt requirements-demo.txt $(VENV)/.requirements
	@echo "installing requirements-dev.txt into $(VENV)"
	@$(PIP) -r requirements-dev.txt
	@touch $@
