# The only front door. Every target sets up what it needs in .venv; a second run is quick.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
# Two processes that spin on the same cores slow each other down many times over; waiting passively costs nothing.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test test-slow test-ray check bench reproduce docs vectors proto fuzz fuzz-messages fuzz-sessions clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -c "from serverlight.codec import warm_up; warm_up()"  # compiles the codec once, for two minutes or so
	touch $@

demo: setup
	$(BIN)/serverlight demo $(ARGS)
	$(if $(ARGS),,$(BIN)/serverlight demo demo-lm)

# Many tests wait for processes of their own; a worker takes half a gigabyte.
test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout=3600 $(ARGS)

test-ray: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	$(BIN)/python -m pytest -m slow --timeout=600 tests/apps/test_ray_app.py tests/apps/test_ray_guards.py $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python benchmarks/cifar_rate_accuracy.py $(ARGS)

# Models and data of the report; what is not there is said on its page.
DATA ?= $(firstword $(SERVERLIGHT_SHARED) $(wildcard ../shared/data))

reproduce: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench,eval]'
	$(BIN)/serverlight report $(if $(DATA),--data $(DATA)) $(ARGS)

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

vectors: setup
	$(BIN)/python tests/vectors/make_vectors.py

proto: setup
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=src/serverlight/runtime --pyi_out=src/serverlight/runtime proto/serverlight.proto

fuzz: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	mkdir -p out/corpus
	$(BIN)/python fuzz/fuzz_frames.py out/corpus -artifact_prefix=out/ $(ARGS)

fuzz-messages: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	mkdir -p out/corpus-messages
	$(BIN)/python fuzz/fuzz_messages.py out/corpus-messages -artifact_prefix=out/ $(ARGS)

fuzz-sessions: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	mkdir -p out/corpus-sessions
	$(BIN)/python fuzz/fuzz_sessions.py out/corpus-sessions -artifact_prefix=out/ $(ARGS)

clean:
	rm -rf $(VENV) site out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
