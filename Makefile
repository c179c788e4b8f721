# Everything runs in an environment of its own, $(VENV), which the targets make and fill as they need it.
PYTHON ?= python3
VENV ?= .venv
# Named exactly, because an open range makes pip take the newest build for CUDA, which is gigabytes. Another build: make TORCH=2.x.y
TORCH ?= 2.13.0
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
# Two at a time, a file's tests in one process: every measurement is of a fresh child anyway.
PYTEST = $(VENV)/bin/python -m pytest -n 2 --dist loadfile

.PHONY: help demo test test-slow test-torch test-tensorflow test-formats test-serving test-versions test-all lint clean

help:
	@echo "make demo             install, then load two real models through every delivery and compare"
	@echo "make test             install, then the tests, without torch and TensorFlow"
	@echo "make test-slow        minutes of real loads more: limits for the formats that \`make test\` leaves out"
	@echo "make test-torch       the tests that need torch"
	@echo "make test-tensorflow  the tests that need TensorFlow and Keras"
	@echo "make test-formats     the tests of the formats whose libraries bring many others: Arrow, skops, CatBoost, faiss, usearch, LiteRT, gensim"
	@echo "make      the tests with real servers of files"
	@echo "make test-serving     the tests with what reads the metrics of a pool"
	@echo "make test-versions    the wheel, the import and the unpickler on each Python that is found"
	@echo "make lint             ruff and mypy, on callers too"
	@echo "make test-all         all of these, as .ci/run does"

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(PIP) -e ".[cli,sklearn,onnx]"
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.torch: $(VENV)/.test
	$(PIP) "torch==$(TORCH)" onnxscript
	@touch $@

$(VENV)/.tensorflow: $(VENV)/.test
	$(PIP) -e ".[tensorflow]"
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) -e ".[lint]"
	@touch $@

# An environment of its own: what these bring (pandas, pyarrow, matplotlib) makes the import of scikit-learn and XGBoost dearer.
$(VENV)-formats/.formats: pyproject.toml
	$(PYTHON) -m venv $(VENV)-formats
	$(VENV)-formats/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test,test-formats]"
	@touch $@

$(VENV)/.serving: $(VENV)/.test
	$(PIP) -e ".[test-serving]"
	@touch $@

demo: $(VENV)/.demo
	$(VENV)/bin/python profiling/demo.py

test: $(VENV)/.test
	$(PYTEST) -m "not torch and not tensorflow and not slow and not formats and not serving"

test-slow: $(VENV)/.test $(VENV)-formats/.formats
	$(PYTEST) -m "slow and not formats"
	$(VENV)-formats/bin/python -m pytest -n 2 --dist loadfile -m "formats and slow"

test-torch: $(VENV)/.torch
	$(PYTEST) -m torch

test-tensorflow: $(VENV)/.tensorflow
	$(PYTEST) -m tensorflow

test-formats: $(VENV)-formats/.formats
	$(VENV)-formats/bin/python -m pytest -n 2 --dist loadfile -m "formats and not slow"

test-serving: $(VENV)/.serving
	$(PYTEST) -m serving

test-versions:
	.ci/versions

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q -n 0 tests/test_typing.py

test-all: lint test test-slow test-torch test-tensorflow test-formats test-serving test-versions

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info
