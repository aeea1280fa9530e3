# Two commands are all the set-up there is: `make quickstart` and `make test`. `make docs` builds the site.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: quickstart test lint docs pages evidence release clean

quickstart: $(VENV)/.study
	$(BIN)/cdgrad study quickstart --out runs/quickstart
	@echo "for cdgrad in this shell: . $(BIN)/activate; then docs/start.md says what the output means"

test: lint $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.docs
	@echo "building the site (about a minute)"
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# Every generated part of README and docs, from the records: nothing is trained.
pages evidence: $(VENV)/.dev
	$(BIN)/python -m tools.generated

# A wheel and a source distribution, checked in an empty environment; TAG=1 tags the commit. Upload by hand afterwards.
release: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m tools.release $(if $(TAG),--tag)

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache .hypothesis

$(VENV)/.study $(VENV)/.docs $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cdgrad needs Python 3.11 or newer, got %s: set PYTHON=" % sys.version)'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing cdgrad[$*] into $(VENV) (minutes on the first run)"
	@$(PIP) --no-compile --editable '.[$*]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV) src || true  # pip would use one core; it passes over newer syntax, too
	@touch $@
