# Needs Python 3.11 or newer, pip and make. `make demo` and `make test` set up everything they need in .venv.
#
#   make demo    make a sample table, tune on it, say where the report is
#   make test    run the tests but the slow ones; make test-slow runs those
#   make torture kills, damage and bad input of every sort, and a table of what survived
#   make test-offline   all tests with the network taken away (Linux: unshare, ip)
#   make check   formatting, lint, types, examples
#   make fmt     put formatting and imports right
#   make clean   remove .venv, caches and runs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Two test processes, each with one thread, fill two cores; nothing is fetched from a hub while testing.
OFFLINE := HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: all demo test test-slow test-offline torture check fmt clean setup
.DELETE_ON_ERROR:

all: demo

setup: $(READY)

# torch comes first and alone, so that nothing else chooses its version.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version). Do: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/fusetune demo

test: $(READY)
	$(OFFLINE) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY)
	$(OFFLINE) $(BIN)/python -m pytest -m slow -s

torture: $(READY)
	$(OFFLINE) $(BIN)/python -m pytest tests/reliability tests/training/checkpoints/test_checkpoint.py -q

# A network of its own, with nothing in it but this machine's loopback.
test-offline: $(READY)
	unshare --map-root-user --net sh -c 'ip link set lo up && exec $(MAKE) test test-slow'

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@for example in examples/*.py; do \
		[ -e "$$example" ] || continue; \
		echo "running $$example"; \
		$(OFFLINE) $(BIN)/python "$$example" || exit 1; \
	done

fmt: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
