# The commands of this project. `make demo` and `make test` need Python 3.11 or newer, nothing else.
PYTHON ?= python3
PORT ?= 8000
EXIT ?=
BIN := .venv/bin
# Whatever the environment says: without it each of the tests' processes compiles everything again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: install demo docs notice test test-unit test-long check format lock clean

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "GKL Bench needs Python 3.11 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into .venv, about 6 GB; this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	@$(BIN)/gklbench demo --port $(PORT) $(if $(EXIT),--exit)

# The documentation as pages, to be opened from disk: build/docs/index.html.
docs: install
	$(BIN)/python -m sphinx -q -W -n -b html docs build/docs

# The packages of .venv with their licenses. An image has a list of its own: /opt/gklbench/NOTICE.
notice: install
	@mkdir -p build
	$(BIN)/python docker/notice.py > build/NOTICE

test: install
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not long"

# Without whole deployments, runners and evaluations, and on SQLite alone: for a first answer while you work.
test-unit: install
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m unit

# The comparisons with pyautoattack on hundreds of points and on a real network, attacks at full length, a file of 3 GB, and
# the commands of the documentation.
test-long: install
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m long

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Versions without the address of any index; `uv` comes from the index like everything else.
lock:
	uv pip compile --universal --python-version 3.11 --extra dev --upgrade \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
