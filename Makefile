# Two commands are all a newcomer needs: make demo, make test.  Every target sets up what it needs first.

VENV   := .venv
PYTHON := $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest -p tests.skipguard
FAST   := not kernel and not qemu and not cluster and not chart and not browser

# A stamp's name holds a hash of what the set-up was made from, so that it is repeated when that changed, and only then.
# The checkout's path is part of it: the scripts of a virtual environment do not survive a move.  Of pyproject.toml only
# what stands ahead of the tools' settings counts.
stamp = $(VENV)/.stamps/$(1)-$(shell { pwd; sed '/^\[tool.ruff/,$$d' $(2); } 2>&1 | sha256sum | cut -c1-16)
DEBIAN      := $(call stamp,debian,requirements/debian.txt)
DEBIAN_TEST := $(call stamp,debian-tests,requirements/debian-tests.txt)
DEBIAN_QEMU := $(call stamp,debian-qemu,requirements/debian-qemu.txt)
DEBIAN_IMAGE := $(call stamp,debian-image,requirements/debian-image.txt)
DEBIAN_CLUSTER := $(call stamp,debian-cluster,requirements/debian-cluster.txt)
PACKAGES    := $(call stamp,packages,requirements/venv requirements/build.txt requirements/dev.txt)
PROJECT     := $(call stamp,project,requirements/venv requirements/build.txt requirements/dev.txt pyproject.toml)
HEADERS     := $(call stamp,headers,requirements/headers)
FUZZ        := $(call stamp,fuzz,requirements/fuzz.txt)
CRI         := $(call stamp,cri,requirements/cluster.txt)
NODE        := $(call stamp,node,requirements/page.txt)
PAGE        := $(call stamp,page,$(wildcard nodeagent/web/page/*.json nodeagent/web/page/*.mjs nodeagent/web/page/*.py nodeagent/web/page/src/*))
DEBIAN_BROWSER := $(call stamp,debian-browser,requirements/debian-browser.txt)

KERNELS            ?= 6.1 5.10
QEMU_TIMEOUT       ?= 3000
QEMU_PYTEST_ARGS   ?= -q --timeout 900
# Emulation is ten to twenty times slower: each mechanism once, with fewer repetitions.
QEMU_SELECT        ?= kernel and not exhaustive
QEMU_ENVIRONMENT   ?= NODEAGENT_PROPERTY_CASES=40 NODEAGENT_KILL_EVERY=9 NODEAGENT_LOAD_CONNECTIONS=1000 NODEAGENT_LOADER_KILLS=6 NODEAGENT_LAB_PATIENCE=600
# The agent itself: counting by reason, drift with its leak and its repair, a restart.
QEMU_RUN           ?= $(addprefix tests/kernel/test_run_counting.py::test_,each_destination_has_its_verdict_and_reason what_slips_through_is_rules_missing_and_the_rules_come_back a_restart_changes_no_number)
# Of the command line and of killed applies little or nothing: hundreds of processes, each ten times slower.
QEMU_CLI           ?= "tests/kernel/test_cli.py::test_apply_diff_clear_tell_their_story[nft]" tests/kernel/test_cli.py::test_doctor_finds_what_is_there
QEMU_TESTS         ?= $(QEMU_CLI) tests/kernel/test_connections.py tests/kernel/test_drain.py tests/kernel/test_counting.py tests/kernel/test_counting_guard.py tests/kernel/test_counting_loader.py tests/kernel/test_counting_tcp.py $(QEMU_RUN)
QEMU_LOGS          ?= .qemu-logs
# The same for each kernel, and slow to make on an emulated one.
QEMU_COMPILED       = $(CURDIR)/$(QEMU_LOGS)/programs
FUZZ_SECONDS       ?= 60

# Empty for root; else sudo, with the tests' own variables kept.
AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=CI,NODEAGENT_PROPERTY_CASES)
# Root takes the programs that the user has built, and the user's choice of a cluster.
CACHE = $${XDG_CACHE_HOME:-$$HOME/.cache}
CLUSTER_ENVIRONMENT = XDG_CACHE_HOME="$(CACHE)" KUBECONFIG="$$KUBECONFIG" NODEAGENT_E2E_IMAGE="$$NODEAGENT_E2E_IMAGE" \
    NODEAGENT_CLUSTER="$$NODEAGENT_CLUSTER"
CLUSTER = $(AS_ROOT) env $(CLUSTER_ENVIRONMENT) $(PYTHON) -m tests.cluster
# Everything under mypy that is there.
SOURCES = $(wildcard nodeagent daemonset docs/source tests bench tests/qemu/run)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup demo page pictures test-browser check format lint types layers test test-fast test-kernel test-qemu goldens dashboards reference fuzz bench lock clean
.PHONY: cluster cluster-build cluster-run cluster-down e2e image base-image image-lock helm manifests test-chart

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# ── set-up ────────────────────────────────────────────────────────────────────────────────────────────────────────────

setup: $(DEBIAN) $(PACKAGES) $(PROJECT) $(HEADERS) $(PAGE)  ## install what the core needs: Debian packages, .venv, Python packages; again: nothing

$(DEBIAN):
	requirements/debian requirements/debian.txt
	@mkdir -p $(@D) && touch $@

$(DEBIAN_TEST):
	requirements/debian requirements/debian-tests.txt
	@mkdir -p $(@D) && touch $@

$(DEBIAN_QEMU):
	requirements/debian requirements/debian-qemu.txt
	@mkdir -p $(@D) && touch $@

$(DEBIAN_IMAGE):
	requirements/debian requirements/debian-image.txt
	@mkdir -p $(@D) && touch $@

$(DEBIAN_CLUSTER):
	requirements/debian requirements/debian-cluster.txt
	@mkdir -p $(@D) && touch $@

$(PACKAGES): | $(DEBIAN)
	flock $(VENV).lock requirements/venv $(VENV)
	@mkdir -p $(@D) && touch $(DEBIAN) $@

# compat: a plain .pth line, which type checkers and other tools can follow; the default is an import hook.
$(PROJECT): | $(PACKAGES)
	flock $(VENV).lock $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	    --config-settings editable_mode=compat --editable .
	@touch $@

$(HEADERS): | $(PACKAGES)
	requirements/headers $(VENV)
	@mkdir -p $(@D) && touch $@

$(NODE): | $(PACKAGES)
	flock $(VENV).lock $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/page.txt
	@mkdir -p $(@D) && touch $@

# Checks its types, too: what does not compile is not built.
$(PAGE): | $(NODE)
	@echo "building the web page: npm packages at the locked versions, tsc, esbuild"
	@flock $(VENV).lock $(PYTHON) nodeagent/web/page/bundle.py
	@mkdir -p $(@D) && touch $@

$(DEBIAN_BROWSER):
	requirements/debian requirements/debian-browser.txt
	@mkdir -p $(@D) && touch $@

$(CRI): | $(PACKAGES)
	flock $(VENV).lock $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/cluster.txt
	@mkdir -p $(@D) && touch $@

$(FUZZ): | $(PACKAGES)
	$(PYTHON) -m pip install --quiet --require-hashes --requirement requirements/fuzz.txt
	@mkdir -p $(@D) && touch $@

# ── use ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

demo: setup  ## see interception work, in network namespaces of its own (root); KEEP=1: until Ctrl-C, with its web page
	@$(AS_ROOT) $(PYTHON) -m tests.demo $(if $(KEEP),--keep)

page: setup  ## build the web page into nodeagent/web/static; setup has done it already

bench: setup $(DEBIAN_BROWSER)  ## measure the budgets (root)
	@$(AS_ROOT) $(PYTHON) -m bench

# ── check ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

check: lint types layers test-fast  ## all that needs neither root nor cluster: format, lint, types, layers, fast tests

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: setup
	$(VENV)/bin/mypy $(SOURCES)

layers: setup
	$(VENV)/bin/lint-imports --no-logo

format: setup  ## format the sources, and mend what ruff can mend by itself
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test: test-fast test-kernel test-browser test-qemu  ## fast tests, kernel tests here, the page in a browser, each mechanism once on emulated 6.1 and 5.10 (root)

test-fast: setup $(DEBIAN_TEST)  ## tests that need no root, goldens and doctests included
	$(PYTEST) -m "$(FAST)"

test-kernel: setup $(DEBIAN_TEST)  ## tests on this machine's kernel, in network namespaces of their own (root)
	@test "$$(id -u)" = 0 || command -v sudo >/dev/null || \
	    { echo "kernel tests need root, and there is no sudo: run 'make test-kernel' as root" >&2; exit 1; }
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTEST) -m kernel -p no:cacheprovider

test-qemu: setup $(DEBIAN_QEMU)  ## the kernel tests on Debian's kernels, emulated, side by side; KERNELS="6.1 5.10"
	@rm -rf $(QEMU_LOGS) && mkdir -p $(QEMU_LOGS)
	@$(PYTHON) -c 'import sys, pathlib, nodeagent.bpf.compiler as c; c.compile_programs(cache=pathlib.Path(sys.argv[1]))' $(QEMU_COMPILED)
	@for kernel in $(KERNELS); do \
	    { env $(QEMU_ENVIRONMENT) NODEAGENT_COMPILED=$(QEMU_COMPILED) tests/qemu/run --timeout $(QEMU_TIMEOUT) $$kernel \
	        $(PYTEST) $(QEMU_TESTS) -m "$(QEMU_SELECT)" -p no:cacheprovider $(QEMU_PYTEST_ARGS); echo $$? >$(QEMU_LOGS)/$$kernel.code; } \
	        >$(QEMU_LOGS)/$$kernel.log 2>&1 & \
	done; wait
	@for kernel in $(KERNELS); do echo "── kernel $$kernel"; cat $(QEMU_LOGS)/$$kernel.log; done
	@for kernel in $(KERNELS); do test "$$(cat $(QEMU_LOGS)/$$kernel.code)" = 0 || exit 1; done

test-browser: setup $(DEBIAN_BROWSER)  ## the web page in headless Chromium, fed by a real agent (root)
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTEST) -m browser -p no:cacheprovider

pictures: setup $(DEBIAN_BROWSER)  ## take the pictures of docs/pictures anew: the web page, top (root)
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTEST) -m browser -p no:cacheprovider --update-pictures \
	    tests/browser/test_pictures.py tests/browser/test_sidecar.py

goldens: setup $(DEBIAN_TEST)  ## rewrite the golden files; then read the diff
	$(PYTEST) -m "$(FAST)" --update-goldens tests
	@git --no-pager diff --stat

dashboards: setup  ## regenerate dashboards, rules and their manifests in daemonset/ from daemonset/observability
	$(PYTHON) -m daemonset.observability
	@git --no-pager diff --stat -- daemonset

reference: setup  ## regenerate docs/reference from the code
	$(PYTHON) -m docs.source
	@git --no-pager diff --stat -- docs

fuzz: setup $(FUZZ)  ## search for inputs that the policy parser or the NRI plugin chokes on, for FUZZ_SECONDS each
	@mkdir -p tests/fuzz/corpus tests/fuzz/corpus-nri
	$(PYTHON) tests/fuzz/fuzz_policy.py -max_total_time=$(FUZZ_SECONDS) tests/fuzz/corpus
	$(PYTHON) tests/fuzz/fuzz_nri.py -max_total_time=$(FUZZ_SECONDS) tests/fuzz/corpus-nri

# ── cluster ───────────────────────────────────────────────────────────────────────────────────────────────────────────

cluster-build: setup $(DEBIAN_CLUSTER)  ## build the cluster's programs, once: Kubernetes, etcd, containerd, runc, CNI
	@$(PYTHON) -m tests.cluster build

helm: setup
	@$(PYTHON) -m tests.cluster helm

manifests: helm  ## regenerate the chart's schema and the plain manifests in daemonset/
	$(PYTHON) -m daemonset.packaging "$$($(PYTHON) -m tests.cluster helm)"
	@git --no-pager diff --stat -- daemonset

test-chart: helm  ## what the Helm chart renders, and what its schema refuses
	$(PYTEST) -m chart

cluster: cluster-build  ## bring up a Kubernetes node in namespaces of its own (root); make cluster-down ends it
	@$(CLUSTER) up

RUN ?= kubectl get nodes,pods --all-namespaces --output=wide
cluster-run: setup  ## run a command on that node: RUN='kubectl get pods -A', RUN=bash (root)
	@$(CLUSTER) run $(RUN)

cluster-down: setup  ## end that node; nothing of it is left (root)
	@$(CLUSTER) down

e2e: cluster-build helm $(CRI)  ## the tests marked cluster or chart, on a node of their own, or on the cluster that KUBECONFIG names (root)
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(CLUSTER_ENVIRONMENT) $(PYTEST) -m "cluster or chart" -p no:cacheprovider tests/chart tests/cluster_tests tests/kube

# ── image ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

base-image: setup $(DEBIAN_IMAGE)  ## make Debian 12 as a container image, where no registry is in reach (root)
	@$(AS_ROOT) env XDG_CACHE_HOME="$(CACHE)" daemonset/image/make base

image: setup $(DEBIAN_IMAGE)  ## make the container image; BASE=debian:12-slim where there is a registry (root)
	@$(AS_ROOT) env XDG_CACHE_HOME="$(CACHE)" BASE="$(BASE)" daemonset/image/make image

image-lock: setup $(DEBIAN_IMAGE)  ## lock the image's Debian packages anew, as they are today (root)
	@$(AS_ROOT) env XDG_CACHE_HOME="$(CACHE)" BASE="$(BASE)" daemonset/image/make lock

# ── upkeep ────────────────────────────────────────────────────────────────────────────────────────────────────────────

lock:  ## regenerate requirements/*.txt from *.in; LOCK_ARGS=--upgrade for newer versions
	requirements/lock $(LOCK_ARGS)

clean:  ## remove what make made, the downloaded kernels included
	rm -rf $(VENV) $(VENV).lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	rm -rf nodeagent/web/static nodeagent/web/page/node_modules
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/nodeagent"
	find nodeagent tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
