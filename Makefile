# Two commands do everything on a machine that has Python and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CHECKED := --jaxtyping-packages=ndgpa,beartype.beartype

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.installed
	$(RUN) -m examples.images.copy_photo

# The first run checks every shape in every signature; what asks for error texts, and what is
# compiled, runs without those checks.
test: lint
	$(RUN) -m pytest $(CHECKED) -m "not slow and not compiled and not bad_input"
	$(RUN) -m pytest -m "not slow and (compiled or bad_input)"

test-slow: $(VENV)/.installed
	HYPOTHESIS_PROFILE=sweep $(RUN) -m pytest $(CHECKED) -m "not slow and not compiled and not bad_input"
	$(RUN) -m pytest -m slow

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed
	$(RUN) benchmarks/cpu_speed.py
	$(RUN) benchmarks/cpu_memory.py

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist
