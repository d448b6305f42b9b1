# `make demo` and `make test` are all a fresh machine needs; the first one to run builds .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint format bench clean

demo: $(INSTALLED)
	$(BIN)/patchtree demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# make bench lists the benchmarks, make bench NAME=tokenize runs one.
bench: $(INSTALLED)
	$(BIN)/patchtree bench $(NAME)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

$(INSTALLED): pyproject.toml
	@echo "Installing patchtree and what it needs into .venv (once, a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
