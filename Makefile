# Two commands matter: `make demo` and `make test`. All of it works on a fresh clone with Python 3.11+ and make.

# The first Python on the path that is new enough; another one: make demo PYTHON=/path/to/python
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach python,$(CANDIDATES),$(shell $(python) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(python))))

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
TOOLS := $(VENV)/tools-installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# demo, verify_models, cuda and transcript have targets of their own, the last four are modules
NO_BENCHMARKS := demo.py verify_models.py cuda.py transcript.py digits.py networks.py trained_networks.py results.py
BENCHMARKS = $(filter-out $(addprefix benchmarks/,$(NO_BENCHMARKS)),$(sort $(wildcard benchmarks/*.py)))

# Where it is set, as in many containers, each of the hundreds of processes that tests start would compile the program again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test coverage lint verify bench bench-cost cuda package readme docs schemas fuzz fuzz-files clean

help:
	@echo 'make demo     compress a trained model: size, speed and accuracy on real digits, before and after'
	@echo 'make test     the tests, in parallel; a part: make test ARGS=tests/test_cli.py'
	@echo 'make coverage the tests; fails below a coverage of $(COVERAGE) %'
	@echo 'make fuzz     thousands of random graphs, each against an oracle; prints how a failing one is reproduced'
	@echo 'make lint     ruff, mypy --strict, imports one way'
	@echo 'make verify   compress, verify and time every model in models/; fails where one is slower'
	@echo 'make bench    the benchmarks, which go on where they stopped; what compressing costs alone: make bench-cost'
	@echo 'make cuda     outputs and speed on CUDA, in at most ten minutes'
	@echo 'make package  build the wheel and the source distribution, and check what they hold'
	@echo 'make readme   write the transcripts in README.md and docs/ afresh'
	@echo 'make docs     the documentation as a site, in build/site'
	@echo 'make fuzz-files  thousands of damaged files through the command line; those that go wrong are kept in mutated/'
	@echo 'make schemas  write the schemas of the JSON reports, and the pages and pictures that scripts write, afresh'
	@echo 'make clean    remove the virtual environment and everything built'

demo: $(INSTALLED)
	@$(BIN)/python benchmarks/demo.py

verify: $(INSTALLED)
	@$(BIN)/python benchmarks/verify_models.py

test: $(TOOLS)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Tracing costs a third more: what the continuous integration runs
COVERAGE := 95
coverage: $(TOOLS)
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report= --cov-fail-under=$(COVERAGE) $(ARGS)

# `make fuzz ARGS="--check prune --seeds 17"` shrinks one that fails
fuzz: $(TOOLS)
	$(BIN)/python tests/fuzz.py $(ARGS)

package: $(TOOLS)
	$(PIP) build
	$(BIN)/python tests/package_check.py

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz-files: $(TOOLS)
	$(BIN)/python tests/mutated_files.py --count 3000 --seed $$(date +%s)

cuda: $(INSTALLED)
	@$(PIP) -e '.[cuda]' || echo 'the libraries of CUDA cannot be installed here: trying those that are there' >&2
	$(BIN)/python benchmarks/cuda.py

bench: $(INSTALLED)
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-cost: $(INSTALLED)
	$(BIN)/python benchmarks/cost.py $(ARGS)

readme: $(INSTALLED)
	$(BIN)/python benchmarks/transcript.py
	$(BIN)/python docs/write_tutorial.py

docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo 'wrote build/site/index.html'

schemas: $(INSTALLED)
	$(BIN)/python docs/write_schemas.py
	$(BIN)/python docs/write_operators.py
	$(BIN)/python docs/write_options.py
	$(BIN)/python docs/pictures.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'no Python 3.11 or newer found; name one: make PYTHON=/path/to/python' >&2; exit 1; }
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' || { echo '$(PYTHON) is not Python 3.11 or newer' >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(TOOLS): $(INSTALLED)
	$(PIP) -e '.[test,lint]'
	@touch $@

$(VENV)/docs-installed: $(INSTALLED)
	$(PIP) -e '.[docs]'
	@touch $@
