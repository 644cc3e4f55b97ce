# Two commands: `make run` and `make test`. Each installs what it needs once and then does its job.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: run test test-slow fuzz lint clean

run: $(READY)
	$(BIN)/python -m compress run recipes/quickstart.yaml

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(READY)
	$(BIN)/python tools/tensorrt_fixtures.py
	$(BIN)/python tools/browser_fixture.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py --cases 2000

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamp depends on what is installed, so a changed pin installs again and nothing else does.
$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[toolkit,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs build *.egg-info
