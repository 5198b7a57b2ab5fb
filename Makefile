# Everything here works on a fresh machine with make and Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
DATA := .fabric
COMPILED := .cache/compiled
PACKAGES := runtime protocol sql ledger consumer fabric_server fabric_client

# The first of these that is new enough makes the virtual environment.
PYTHONS := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The project itself: what builds it was just installed, so nothing is fetched for it. Until 0.1.0 it
# was called "fabric", and two distributions must not own the same files.
INSTALL_SELF := $(BIN)/python -m pip uninstall --quiet --quiet --yes fabric && \
	$(INSTALL) --no-index --no-deps --no-build-isolation --editable .
WHEEL := $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps \
	--no-build-isolation --wheel-dir
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header

SUMS = cd dist && rm -f SHA256SUMS && { sha256sum * 2> /dev/null || shasum -a 256 *; } > ../.cache/SHA256SUMS && \
	mv ../.cache/SHA256SUMS . && cat SHA256SUMS

.DELETE_ON_ERROR:
.PHONY: help run test test-compiled test-pythons check compile format fuzz suites audit soak attack attack-soak bench dist node-pex node-exe install-test journeys docker-test certs lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Start a server and a node on this machine and send a request; Ctrl-C stops them
	@exec $(BIN)/python examples/one_machine.py --data "$(DATA)"

# Tests of one file stay in one process, in their order: what the file starts is started once.
JOBS ?= auto
test: check ## Run check, then all tests, as .ci/run does (ARGS="-k …" for some, JOBS=0 for one process)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist loadfile $(ARGS)

# The files of Python that are tested are those of the compiled wheel: -P keeps the checkout's from being
# found before them, also in the programs that tests start.
test-compiled: $(COMPILED)/.installed-dev ## Run all tests on the compiled build, but those of wheels and documents (ARGS="tests/server")
	PYTHONSAFEPATH=1 $(COMPILED)/bin/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist loadfile \
		--ignore tests/packaging --ignore tests/structure --ignore tests/docs $(ARGS)

test-pythons: $(VENV)/.installed-dev $(BIN)/uv ## Run some tests with the oldest and newest Python found (ARGS="--python PATH")
	$(BIN)/python -m tests.pythons $(ARGS)

check: $(VENV)/.installed-dev ## Check lint, format, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.14
	$(BIN)/mypy examples
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Format, and fix what ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

fuzz: $(VENV)/.installed-dev ## Fuzz every reader of foreign bytes for a while (ARGS="--target edge --seconds 600")
	$(BIN)/python -m tests.fuzz $(ARGS)

suites: $(VENV)/.installed-dev ## Run public suites over a real fabric (ARGS="openai-python --json"): openai, anthropic, …
	@$(BIN)/python -m tests.suites $(ARGS)

audit: $(VENV)/.installed ## Look the locked dependencies up in OSV's list of vulnerabilities
	$(BIN)/python -m tests.audit $(ARGS)

soak: $(VENV)/.installed-dev ## Kill and cut everything under load for ten minutes (ARGS="--seconds 60 --seed 1")
	$(BIN)/python -m tests.chaos $(ARGS)

attack: $(VENV)/.installed-dev ## Attack a server and watch a user beside it (ARGS="wrong-keys --json")
	$(BIN)/python -m tests.attack $(ARGS)

attack-soak: $(VENV)/.installed-dev ## Attack, kill and cut at once for ten minutes (ARGS="--seconds 60")
	$(BIN)/python -m tests.attack.soak $(ARGS)

# The benchmarks measure the compiled build, as the images run it; without a compiler, the plain one.
BENCH := $(if $(shell command -v $(CC)),$(COMPILED),$(VENV))
bench: $(BENCH)/.installed-dev ## Run the benchmarks, with other systems for comparison (ARGS=--quick, --save, --thorough)
	PYTHONSAFEPATH=1 $(BENCH)/bin/python -m benchmarks.run $(ARGS)

compile: $(COMPILED)/.installed-dev ## Install the compiled build into an environment of its own, .cache/compiled

dist: $(VENV)/.installed ## Build the wheel for other machines into dist/, with pinned versions and SHA-256 sums
	@rm -rf dist && mkdir -p .cache
	@$(WHEEL) dist .
	@cp requirements.lock requirements-server.lock requirements-full.lock dist
	@sed -n 's/^\([a-z0-9][^ ]*==.*[^ \\]\) *\\$$/\1/p' requirements-full.lock > dist/constraints.txt
	@$(SUMS)

node-pex: dist $(BIN)/uv ## Build the node as one file, dist/fabric-client.pyz (PLATFORMS="…" as uv calls them)
	$(BIN)/python release/node_pex.py $(PLATFORMS)
	@$(SUMS)

EXE := .cache/exe
node-exe: dist $(BIN)/uv ## Build the node as one program for systems like this one, dist/fabric-client
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(EXE)
	@$(BIN)/uv pip install --quiet --python $(EXE) --require-hashes -r requirements.lock -r requirements-exe.lock
	@$(BIN)/uv pip install --quiet --python $(EXE) --no-index --no-deps dist/*.whl
	$(EXE)/bin/pyinstaller --log-level ERROR --noconfirm --onefile --name fabric-client \
		--collect-submodules fabric_client --collect-submodules protocol --collect-submodules runtime \
		--distpath dist --workpath $(EXE)/work --specpath $(EXE) release/node_exe.py
	dist/fabric-client --version
	@$(SUMS)

install-test: node-pex ## Install dist/ in new Debian 12 and 13, as docs/install.md says (needs root, debootstrap)
	$(BIN)/python -m tests.install $(ARGS)

JOURNEYS := days_after broken_evening
journeys: $(VENV)/.installed-dev ## Run the documents' commands as operator, owner and user, behind NAT (needs root)
	$(BIN)/python -m tests.journeys.first_token
	$(BIN)/python -m pytest -n 0 $(wildcard tests/journeys/test_*.py) $(JOURNEYS:%=tests/journeys/%.py) $(ARGS)

docker-test: ## Build the images and test them, with PostgreSQL, Redis and Kafka (ARGS=server for less)
	@docker/test.sh $(ARGS)

certs: $(VENV)/.installed ## Create the server's CA and certificate, or renew what is due
	$(BIN)/python certs/make.py "$(DATA)/server/certs" $(NAMES)

lock: $(BIN)/uv ## Update the lock files (ARGS=--upgrade for newer versions)
	$(LOCK) $(ARGS) --extra dev pyproject.toml -o requirements-dev.lock
	$(LOCK) -c requirements-dev.lock pyproject.toml -o requirements.lock
	$(LOCK) -c requirements-dev.lock --extra server pyproject.toml -o requirements-server.lock
	$(LOCK) -c requirements-dev.lock --extra full pyproject.toml -o requirements-full.lock
	printf 'pyinstaller\n' | $(LOCK) $(ARGS) -c requirements-dev.lock - -o requirements-exe.lock
	$(LOCK) $(ARGS) tests/lab/llama_index/requirements.in -o tests/lab/llama_index/requirements.lock
	$(LOCK) $(ARGS) tests/suites/requirements.in -o tests/suites/requirements.lock
	printf 'editables\nhatchling\n' | $(LOCK) $(ARGS) -c requirements-dev.lock - -o requirements-build.lock
	printf 'mypy\nsetuptools\n' | $(LOCK) $(ARGS) -c requirements-dev.lock - -o requirements-compile.lock

clean: ## Remove generated files and the virtual environment; keeps $(DATA) (keys and nodes)
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ── the virtual environment ─────────────────────────────────────────────────────────────────────

$(BIN)/python:
	@for python in $(PYTHONS); do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; \
		then echo "Making $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); fi; \
	done; \
	echo "Python 3.11 or newer is needed, with its venv module (Debian and Ubuntu: apt install" \
		"python3-venv). If you have one under another name: make PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.installed: $(BIN)/python requirements-server.lock requirements-build.lock pyproject.toml
	@echo "Installing what is needed to run into $(VENV)"
	@$(INSTALL) --require-hashes -r requirements-server.lock -r requirements-build.lock
	@$(INSTALL_SELF)
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python requirements-dev.lock pyproject.toml
	@echo "Installing what is needed to develop and test into $(VENV)"
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(INSTALL_SELF)
	@touch $(VENV)/.installed $@

# The compiled build, beside the packages of the other environment.  It is installed, not made in place:
# Python prefers what is compiled to a source that was changed later.
$(COMPILED)/.installed-dev: $(VENV)/.installed-dev release/compiled.py $(shell find $(PACKAGES) -name '*.py')
	@echo "Compiling the hot modules into $(COMPILED), which takes one to two minutes"
	@rm -rf $(COMPILED)
	@$(BIN)/python -m venv --without-pip $(COMPILED)
	@FABRIC_COMPILE=1 $(WHEEL) $(COMPILED)/wheel .
	@$(BIN)/python -m pip --python $(COMPILED)/bin/python install --quiet --no-index --no-deps $(COMPILED)/wheel/*.whl
	@printf '%s\n' "$$(echo $(CURDIR)/$(VENV)/lib/python*/site-packages)" "$(CURDIR)" \
		> "$$(echo $(COMPILED)/lib/python*/site-packages)/checkout.pth"
	@touch $@

$(BIN)/uv: $(BIN)/python
	@$(INSTALL) uv
