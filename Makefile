# Two commands do everything on a machine that has Python and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CHECKED := --jaxtyping-packages=ndgpa,beartype.beartype
# WORKERS processes, of one thread each.
WORKERS ?= 2
TESTS := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal

INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# timm needs torchvision, which breaks transformers beside torch's build for the CPU: their tests
# find them here, in a process of their own.
TIMM := $(VENV)/timm

.PHONY: demo gan page test test-slow mutants lint docs bench gpu gpu-test gpu-profile gpu-bench gpu-train clean

demo: $(VENV)/.demo
	$(RUN) -m examples.images.pose_morphing

# Five generators at 32x32, MINUTES of one core each, on the heads of drawn figures; the table and the
# sheet of pictures are in runs/gans. Again with more minutes, it goes on.
MINUTES ?= 5
HEADS := runs/heads
gan: $(VENV)/.demo
	$(RUN) -m examples.people.figures --folder $(HEADS) --size 256 128 --identities 600 --poses 4 --no-truth
	$(RUN) -m examples.images.gan.studies.compare --data $(HEADS) --minutes $(MINUTES) --seeds 1 --attentions own
	$(RUN) -m examples.images.gan.studies.report --runs runs/gans --data $(HEADS) --out runs/gans
	@echo "pictures: runs/gans/gans_sheet.png"

# The page on which one drags the pose, in build/page; needs npm.
ORT_WEB := build/npm/node_modules/onnxruntime-web
page: $(VENV)/.page $(ORT_WEB)/package.json
	$(RUN) -m examples.images.pose_morphing.page.build --runtime $(ORT_WEB)/dist

$(ORT_WEB)/package.json:
	npm install --silent --no-audit --no-fund --prefix build/npm onnxruntime-web@1.30.0

# The first run checks every shape in every signature; what asks for error texts, and what is
# compiled, runs without those checks.
test: lint
	$(TESTS) $(CHECKED) -m "not slow and not compiled and not bad_input"
	$(TESTS) -m "not slow and (compiled or bad_input)"
	TRITON_INTERPRET=1 $(TESTS) -m "not slow" tests/kernels
	test ! -d $(TIMM) || PYTHONPATH=$(TIMM) OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" tests/integrations/timm

# PROBLEMS drawn problems from number PROBLEMS_SEED on, which the command lines show.
test-slow: PROBLEMS := $(or $(PROBLEMS),2000)
test-slow: PROBLEMS_SEED := $(or $(PROBLEMS_SEED),$(shell date +%s))
test-slow: $(VENV)/.installed
	PROBLEMS=$(PROBLEMS) PROBLEMS_SEED=$(PROBLEMS_SEED) $(RUN) -m pytest tests/test_problems.py
	HYPOTHESIS_PROFILE=sweep $(RUN) -m pytest $(CHECKED) -m "not slow and not compiled and not bad_input"
	$(RUN) -m pytest -m slow
	test ! -d $(TIMM) || PYTHONPATH=$(TIMM) $(RUN) -m pytest -m slow tests/integrations/timm
	PROBLEMS=$(PROBLEMS) PROBLEMS_SEED=$(PROBLEMS_SEED) TRITON_INTERPRET=1 HYPOTHESIS_PROFILE=sweep \
		$(RUN) -m pytest tests/kernels
	$(MAKE) mutants

# Whether the tests notice small faults; JOBS of them at a time.
JOBS ?= 1
mutants: $(VENV)/.installed
	$(RUN) -m tests.mutants --jobs $(JOBS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site in build/site and the notebooks of the tutorials in build/notebooks, without a network.
docs: $(VENV)/.installed
	$(RUN) -m sphinx -q -W --keep-going -c docs . build/site
	$(RUN) docs/notebooks.py build/notebooks

bench: $(VENV)/.installed
	$(RUN) benchmarks/cpu_speed.py
	$(RUN) benchmarks/cpu_memory.py

# On a machine with a GPU, with the Python and packages that it has: nothing is installed. Each target
# ends within nine minutes, leaves every result in the folder OUT, goes on where it was cut off, and
# ends with a table. DRY=1 rehearses it without a GPU; PEERS is a folder that holds fastvideo_kernel.
OUT ?= runs/gpu
GPU_WORKERS ?= 12
DRIED := $(if $(DRY),--dry)
GPU_TESTS := OMP_NUM_THREADS=1 GPU_OUT=$(OUT) GPU_DRY=$(DRY) PYTHONPATH=. timeout
gpu: gpu-test gpu-profile gpu-bench

gpu-test:
	-$(GPU_TESTS) 400 $(PYTHON) -m pytest -q -W default tests/gpu -m "not large_memory" \
		$(if $(DRY),--collect-only,-n $(GPU_WORKERS))
	-$(GPU_TESTS) 120 $(PYTHON) -m pytest -q -W default tests/gpu -m large_memory \
		$(if $(DRY),--collect-only)
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_tests.py --out $(OUT) $(DRIED)

gpu-profile:
	PYTHONPATH=. timeout 530 $(PYTHON) benchmarks/gpu_profile.py --out $(OUT) $(DRIED) --commit

gpu-bench:
	PYTHONPATH=. timeout 535 $(PYTHON) benchmarks/gpu.py --out $(OUT) $(DRIED) --limit-s 500 \
		$(if $(PEERS),--peers $(PEERS)) --commit
	PYTHONPATH=. $(PYTHON) benchmarks/tables.py

# The flagship on a GPU, at 256x128 (`pip install filelock tyro` where they are missing). STEPS are to fit the time.
FIGURES ?= runs/figures256
STEPS ?= 12000
gpu-train:
	PYTHONPATH=. $(PYTHON) -m examples.people.figures --folder $(FIGURES) \
		--size 256 128 --identities 4000 --poses 8 --workers 16
	PYTHONPATH=. $(PYTHON) -m examples.images.pose_morphing.train --data $(FIGURES) --preset figures256 \
		--out runs/figures256_gpa --steps $(STEPS) --batch 32 --save-every-s 120
	PYTHONPATH=. $(PYTHON) -m examples.images.pose_morphing.export --run runs/figures256_gpa \
		--out runs/figures256_small

# What the demo needs, and what the tests, the linter and the type checker need besides.
$(VENV)/.demo: NEEDS := -e . -r requirements/examples.txt
$(VENV)/.page: NEEDS := -e ".[onnx]" -r requirements/examples.txt
$(VENV)/.installed: NEEDS := -e ".[diffusers,graph,onnx,pyg,testing,transformers,viz]" -r requirements/dev.txt
$(VENV)/.demo $(VENV)/.page $(VENV)/.installed: pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) $(NEEDS)
	$(if $(findstring dev.txt,$(NEEDS)),test -d $(TIMM) || $(INSTALL) --no-deps --target $(TIMM) timm torchvision \
		|| echo "timm is not to be had here: its tests are skipped")
	touch $@

clean:
	rm -rf $(VENV) runs build dist
