# Everything a person or CI runs. Nothing is installed outside .venv, except Debian packages by `make test` where it may.

TARGET   ?= examples/embedder.py:Embedder
REPLICAS ?= auto
# More options for `orch up` and for pytest:
ARGS        ?=
PYTEST_ARGS ?=
# More options for pip, for instance an index that holds the builds of torch you want:
PIP_ARGS ?=
# The first Python on PATH that is new enough:
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(p))))
# Debian packages that the tests use:
DEBIAN_PACKAGES ?= chromium curl haproxy nginx-light openssl systemd

# More options for `make bench` and `make bench-peers`, and the Python that runs the other servers:
BENCH_ARGS   ?=
PEERS_PYTHON ?= $(PYTHON)

VENV  := .venv
PEERS := .venv-peers
PIP   = $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: help up test check format bench bench-peers wheel clean debian-packages

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

up: $(VENV)/.installed ## Serve the example model until Ctrl-C; TARGET=file.py:Name REPLICAS=n ARGS="..." change what and how.
	exec $(VENV)/bin/orch up $(TARGET) --replicas $(REPLICAS) $(ARGS)

test: debian-packages $(VENV)/.installed-dev ## Run the whole suite; PYTEST_ARGS="..." narrows it.
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.installed-dev ## Format, style and types, changing nothing.
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev ## Format the sources, and mend what ruff can.
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.installed-dev ## Measure orch beside bare ZeroMQ, in turns; about 5 minutes. BENCH_ARGS="..." narrows it.
	$(VENV)/bin/python -m benchmarks.peers --rows floors --seconds 2 --after-kill 3 --patience 30 --json build/bench.json \
		$(BENCH_ARGS)

bench-peers: $(VENV)/.installed-dev $(PEERS)/.installed ## The same beside other servers of models, which it installs; writes benchmarks/RESULTS.md.
	-$(MAKE) --no-print-directory debian-packages DEBIAN_PACKAGES="nginx-light wrk"
	$(VENV)/bin/python -m benchmarks.peers --rows all --seconds 2 --after-kill 12 --patience 40 --publish $(BENCH_ARGS)

wheel: $(VENV)/.installed-dev ## Build dist/*.whl, by way of the source archive.
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation

clean: ## Remove everything that these commands made.
	rm -rf $(VENV) $(PEERS) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and by its exact pin: from a range, or as somebody's dependency, pip may choose a far larger build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "installing orch into $(VENV); the first time takes a while, torch is large"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --quiet --editable '.[torch,demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --quiet --editable '.[torch,demo,grpc,dev]'
	@touch $@

# The other servers stay out of our environment. Git and ruff pass the folder over: it ignores itself.
$(PEERS)/.installed: benchmarks/peers/requirements.txt | $(VENV)/bin/pip
	$(PEERS_PYTHON) -m venv --clear --without-pip $(PEERS)
	@echo '*' > $(PEERS)/.gitignore
	$(VENV)/bin/python -m pip --python $(PEERS)/bin/python install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	@touch $@

# Debian ships Python without the part that puts pip into a new environment; then the pip at hand does it.
$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo "orch needs Python 3.11 or newer, and found none on PATH (PYTHON=/path/to/python names one)"; exit 1; }
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 \
		|| { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; } \
		|| { rm -rf $(VENV); echo "cannot create $(VENV): install the venv module or pip (Debian: apt-get install python3-venv)"; exit 1; }

debian-packages:
	@missing=; for p in $(DEBIAN_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	test -n "$$missing" || exit 0; \
	if ! command -v apt-get >/dev/null; then echo "the tests need:$$missing"; exit 1; fi; \
	if test "$$(id -u)" = 0; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; \
	else echo "the tests need: apt-get install$$missing"; exit 1; fi; \
	$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q $$missing
