# `make` alone lists the targets. Programs of .venv are started through its python: a space in the checkout's path
# would break the first lines that name their interpreter.
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help install demo test check fix bench bench-peers soak cluster cluster-down clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## build .venv: packages, PyTorch, Horovod (settings: top of scripts/install.sh)
	@bash scripts/install.sh

demo: install ## a land-cover map from scene to page; your own: make demo IMAGES='my/*.tif' LABELS=nlcd.tif
	@bash scripts/demo.sh

test: install ## the whole test suite, on Debian as root with a real Slurm; part of it: make test ARGS="-k foo"
	@bash scripts/test.sh $(ARGS)

check: install ## formatting, lint, types, layers and the quick tests
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy --strict hpcdl
	$(PY) .venv/bin/lint-imports
	$(PY) -m pytest -m "not slow and not cluster" -q

fix: install ## format and mend what ruff can mend
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: install ## measure speed
	$(PY) -m tests.bench

bench-peers: ## install the loaders that `make bench` compares with, in .venv-peers
	python3 -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q torch==2.13.0 -r tests/bench/peers.txt

soak: install cluster ## interrupt a training on that Slurm at random: make soak MINUTES=10 SEED=7
	$(PY) -m tests.faults.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

cluster: ## start a real Slurm with four nodes on this machine (Debian, root; installs packages)
	@bash scripts/cluster.sh up

cluster-down: ## remove it again; its packages stay
	@bash scripts/cluster.sh down

clean: ## remove .venv, caches and the demo; runs and data stay
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
