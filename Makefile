# Each verb makes the environment that it needs first: .venv, with the oldest dependencies .venv-oldest.
#   ARGS    more arguments for the command: make test ARGS="-k memory"
#   PYTHON  the Python to make .venv with: make test PYTHON=python3.12
#   WORKERS how many processes run the tests: make test WORKERS=4; 0 for none but pytest's own, as pdb needs

PYTHON ?= python3
WORKERS ?= 2
IN_VENV = @$(PYTHON) scripts/environment.py
IN_OLDEST = @$(PYTHON) scripts/environment.py --oldest

.PHONY: help demo quick test test-oldest backends e2e openreg gpu-pack gpu-test lint type docs clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: ## a small model, traced, in this terminal
	$(IN_VENV) demo inferspan demo $(ARGS)

quick: ## the unit tests that need neither torch nor promtool, in half a minute on two cores
	$(IN_VENV) test pytest tests/unit --without-torch -k "not promtool" -n $(WORKERS) -r fE $(ARGS)

test: ## the tests, with the newest dependencies
	$(IN_VENV) test pytest -n $(WORKERS) $(ARGS)

test-oldest: ## the tests, with the oldest dependencies; without those of real backends
	$(IN_OLDEST) test pytest --ignore=tests/e2e -n $(WORKERS) $(ARGS)

backends: ## builds Collector, Jaeger, Prometheus and Alertmanager for `make e2e` (with Go; minutes, once)
	@$(PYTHON) scripts/backends.py

e2e: backends ## the tests with these real backends alone
	$(IN_VENV) test pytest tests/e2e $(ARGS)

openreg: ## the tests on torch's open-registration device, from the folder in INFERSPAN_OPENREG
	$(IN_VENV) test pytest tests/openreg $(ARGS)

gpu-pack: ## packs what `make gpu-test` needs on a machine without a package index into .gpu-wheels
	@$(PYTHON) scripts/gpu_tests.py pack

gpu-test: ## the tests that need a GPU, by a PYTHON that has torch, transformers and pytest
	@$(PYTHON) scripts/gpu_tests.py test $(ARGS)

lint: ## ruff: rules and format
	$(IN_VENV) test ruff check .
	$(IN_VENV) test ruff format --check .

type: ## mypy, strict
	$(IN_VENV) test mypy

docs: ## writes the generated parts of docs/ and README.md anew
	$(IN_VENV) test python scripts/docs.py $(ARGS)

clean: ## removes the environments, caches and builds
	rm -rf .venv .venv-oldest .gpu-wheels .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
