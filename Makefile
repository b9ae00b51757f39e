# The two commands for a newcomer are `make demo` and `make test`; both set everything up first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
AGREEMENT := .venv/.agreement
CORES := $(shell getconf _NPROCESSORS_ONLN)
TEST_WORKERS ?= $(CORES)
# The full tier waits a third of its time, for servers and for what it has killed. One worker more than there are cores is
# faster, and less patient with a machine that others use.
FULL_WORKERS ?= $(TEST_WORKERS)
# A file stays with one worker, for its fixtures' sake; tests/conftest.py says which are begun first.
PYTEST := $(BIN)/pytest --dist loadfile --no-loadscope-reorder
ONE_RUN := tests/system/test_one_run.py

.PHONY: bytecode bench-corpus bench-billion bench-training same-bytes demo test test-full install install-agreement check accept-stages constraints image image-check clean-demo
.DEFAULT_GOAL := demo

demo: $(STAMP)  ## the whole DAG on the embedded corpus, on the CPU
	$(BIN)/onward run configs/demo.yaml

test: $(STAMP) check bytecode  ## in minutes: formatting, lint, types, unit tests, contracts, and one small run that is killed
	$(PYTEST) -n $(TEST_WORKERS) --durations 15 --durations-min 5 $(ONE_RUN) tests/unit tests/contracts

# `make test test-full` runs nothing twice.
test-full: test $(AGREEMENT)  ## everything: what `make test` does, and components, system and agreement (tests/README.md)
	@rm -rf .pytest_cache
	$(PYTEST) -n $(FULL_WORKERS) --durations 60 --durations-min 8 tests/system tests/components tests/agreement --ignore $(ONE_RUN) \
	  || { [ $$? = 1 ] && $(BIN)/python -m tests.support.alone; }

# Once, not in each of the hundreds of processes that tests start: an environment may keep Python from writing it.
bytecode: $(STAMP)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m compileall -q flows storage tasks tests

check: $(STAMP)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy

install: $(STAMP)  ## the set-up alone

install-agreement: $(AGREEMENT)  ## what the tests of tests/agreement compare with: spaCy, datatrove, llama.cpp, transformers 4

# uv does not read pip's configuration: where pip is told of local wheels, uv is told of them too.
define UV
	@links="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null | tr '\n' ' ')}"; \
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$(echo $$links | tr ' ' ',')}" \
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python
endef
UV_INSTALL = $(UV) -c constraints.txt
# Another version of what the project uses, in a directory of its own; what it needs besides is the project's.
TRANSFORMERS4 := transformers==4.57.3 huggingface_hub==0.36.2 tokenizers==0.22.2

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Onward needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -c constraints.txt uv
	$(UV_INSTALL) -e '.[dev]'
	@touch $(STAMP)

$(AGREEMENT): $(STAMP)
	$(UV_INSTALL) -e '.[dev,agreement]' || echo "spaCy and datatrove cannot be had here: tests/agreement skips them"
	$(UV_INSTALL) xllamacpp || echo "llama.cpp cannot be had here: tests/agreement skips it"
	$(UV) --no-deps --target .venv/transformers4 $(TRANSFORMERS4) || echo "transformers 4 cannot be had here: tests/agreement skips it"
	@touch $(AGREEMENT)

accept-stages: $(STAMP)  ## "same output, by my word": renew stages.lock after a change that alters no bytes
	$(BIN)/python -m flows.stages --accept

same-bytes: demo  ## every artifact of the demo made again by this code, and the digests compared with those before
	$(BIN)/python benchmarks/same_bytes.py configs/demo.yaml

constraints: $(STAMP)  ## pin what is installed now
	$(BIN)/uv pip freeze -q --python $(BIN)/python --exclude-editable | sed 's/+cpu//' > constraints.txt

image:  ## the container image for the CPU; TORCH_INDEX=https://pypi.org/simple for CUDA (docs/containers.md)
	docker build -f docker/Dockerfile -t onward:cpu $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

image-check:  ## build the image as root over a Debian root made here, without an engine, and look at what came out
	bash docker/check_image.sh

bench-corpus: $(STAMP)  ## the corpus stages beside their peers (benchmarks/results.md)
	$(BIN)/python benchmarks/corpus.py

bench-billion: $(STAMP)  ## a billion tokens from text to a packing manifest: TEXT=DIR (30 GB free) BASE=MODEL
	test -d $(TEXT)/general || $(BIN)/python benchmarks/billion_text.py $(TEXT)
	$(BIN)/python benchmarks/billion.py $(TEXT) --base $(BASE) $(ARGUMENTS)

bench-training: $(STAMP)  ## the trainer beside its peers (docs/training.md); ARGUMENTS="--device cuda --shapes gpt2-124m"
	$(BIN)/python benchmarks/training.py $(ARGUMENTS)

clean-demo:
	chmod -R u+w stores/demo 2>/dev/null || true
	rm -rf stores/demo
