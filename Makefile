# Requires only make and Python 3.11 to 3.13. Everything else goes into .venv, pinned by requirements/.
# Recipes are for a POSIX /bin/sh. docs/development.md lists the targets.

# pip reads these from the environment, uv does not. A mirror, certificate or timeout that is set for pip applies to both.
UV_TARGETS = .venv/.runtime .venv/.dev .venv/.clients lock bench
ifdef PIP_INDEX_URL
$(UV_TARGETS): export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_CERT
$(UV_TARGETS): export SSL_CERT_FILE ?= $(PIP_CERT)
endif
ifdef PIP_DEFAULT_TIMEOUT
$(UV_TARGETS): export UV_HTTP_TIMEOUT ?= $(PIP_DEFAULT_TIMEOUT)
endif

# feast, mlflow, sklearn and dagster import in half the time with bytecode, which an environment that sets
# PYTHONDONTWRITEBYTECODE would never get.
UV_INSTALL = .venv/bin/uv pip install --python .venv/bin/python --require-hashes --compile-bytecode $$(test -t 2 || echo --quiet)
LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

PIP_AUDIT = 2.10.1

# Extras with a lock of their own.
EXTRAS = xgboost lightgbm catboost onnx delta

# No process that make starts sends telemetry to Dagster. Each dagster.yaml also switches off its collection.
export DAGSTER_DISABLE_TELEMETRY := yes

.DEFAULT_GOAL := help
.PHONY: help install demo demo-promote test image-test compose-test audit soak bench check fmt lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '  %-20s %s\n' "$$name" "$$text"; done

install: .venv/.dev ## create .venv with the runtime, test and check dependencies

demo: .venv/.runtime ## train, register and serve the example in batch and online, replay it; ONCE=1 exits after that
	@.venv/bin/python -m demo $(if $(ONCE),--once)

demo-promote: .venv/.runtime ## train and promote another model version while the demo is up
	@.venv/bin/python -m demo.promote

test: .venv/.dev .venv/.clients ## run all tests against real servers, two files at a time; ARGS="-n 0 -k redis" selects some
	@.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

image-test: .venv/.dev ## build both images and run them against real servers; requires root, buildah and debootstrap
	@.venv/bin/python -m pytest tests/image/build_and_run.py -s $(ARGS)

compose-test: .venv/.dev ## run docker-compose.yml with Docker, through kills and an upgrade; IMAGE_TAG selects the images
	@.venv/bin/python -m pytest tests/image/compose_up.py -s $(ARGS)

audit: .venv/bin/uv ## check the pinned packages for known vulnerabilities; requires internet access
	@for lock in api batch $(EXTRAS); do \
		.venv/bin/uv tool run --quiet pip-audit==$(PIP_AUDIT) --disable-pip --require-hashes -r requirements/$$lock.txt || exit 1; done

soak: .venv/.dev ## send the API half of its capacity for 10 minutes and watch its memory; MINUTES=1 is shorter
	@OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.soak $(or $(MINUTES),10)

bench: .venv/.dev ## measure this project beside its peers, write docs/benchmarks.md; ONLY=online-5, QUICK=1, SERVERS=ours,bentoml
	@OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(SERVERS),--servers $(SERVERS))

check: .venv/.dev ## lint, check formatting, types and the direction of imports
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

fmt: .venv/.dev ## format the code and apply ruff's fixes
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock: .venv/bin/uv ## pin the dependencies of pyproject.toml into requirements/; UPGRADE=1 takes newer versions
	$(LOCK) --group pyproject.toml:bootstrap -o requirements/bootstrap.txt
	$(LOCK) pyproject.toml --all-extras --group dev -o requirements/dev.txt
	$(LOCK) pyproject.toml --extra api --extra batch -c requirements/dev.txt -o requirements/all.txt
	$(LOCK) pyproject.toml --extra api -c requirements/dev.txt -o requirements/api.txt
	$(LOCK) pyproject.toml --extra batch -c requirements/dev.txt -o requirements/batch.txt
	$(LOCK) pyproject.toml --extra batch --extra spark -c requirements/dev.txt -o requirements/spark.txt
	@$(MAKE) --no-print-directory $(EXTRAS:%=requirements/%.txt)
	@$(MAKE) --no-print-directory $(foreach peer,bentoml fastapi mlserver,benchmarks/peers/$(peer)/requirements.txt)
	$(LOCK) tests/clients/requirements.in -c benchmarks/peers/shared.txt --override tests/clients/overrides.txt \
		-o tests/clients/requirements.txt

# Installed beside another lock: an extra of pyproject.toml without the project's own dependencies.
.PHONY: $(EXTRAS:%=requirements/%.txt)
$(EXTRAS:%=requirements/%.txt): requirements/%.txt:
	@.venv/bin/python -c 'import sys, tomllib; print(*tomllib.load(sys.stdin.buffer)["project"]["optional-dependencies"]["$*"], sep="\n")' \
		<pyproject.toml | $(LOCK) - -c requirements/dev.txt -o $@

# The benchmarks' peers use this project's versions of shared packages. Only MLServer's own requirements conflict with
# Feast's; its overrides.txt lists them.
SHARED = feast|hiredis|httptools|joblib|mlflow|mlflow-skinny|mlflow-tracing|mmh3|numpy|pandas|protobuf|pyarrow|pydantic|redis|scikit-learn|scipy|skops|uvicorn|uvloop

.PHONY: benchmarks/peers/shared.txt
benchmarks/peers/shared.txt:
	@{ echo '# Packages that every peer has in the same version as model-serving. Generated by make lock from requirements/all.txt.'; \
		sed -nE 's/^(($(SHARED))==.*) \\$$/\1/p' requirements/all.txt; } > $@

benchmarks/peers/%/requirements.txt: benchmarks/peers/shared.txt
	$(LOCK) benchmarks/peers/$*/requirements.in -c $< $(addprefix --override ,$(wildcard benchmarks/peers/$*/overrides.txt)) -o $@

clean: ## remove the demo's state and all caches; keeps .venv
	rm -rf var feature_repo/data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

.venv/bin/uv: requirements/bootstrap.txt
	@for python in $(PYTHON) python3.11 python3 python3.12 python3.13 ''; do \
		[ -n "$$python" ] || { echo 'make: Python 3.11, 3.12 or 3.13 must be on PATH; or run make PYTHON=/path/to/python' >&2; exit 1; }; \
		"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break; \
	done; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $$python cannot create virtual environments; on Debian and Ubuntu, install its python3-venv package" >&2; exit 1; }; \
	.venv/bin/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

# The command `model-serving`, from this folder. uv contains the build backend, so that nothing is downloaded.
.venv/bin/model-serving: .venv/bin/uv pyproject.toml
	@.venv/bin/uv pip install --python .venv/bin/python --quiet --offline --no-deps --editable .
	@touch $@

# Clients of other projects, which the tests call the API with. Feast's requirements conflict with theirs. sync installs
# the listed packages without resolving: see tests/clients/overrides.txt.
.venv/.clients: .venv/bin/uv tests/clients/requirements.txt
	@echo 'Installing the clients of the tests into .venv/clients (once; 330 MB) ...' >&2
	@.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv/clients
	@.venv/bin/uv pip sync --quiet --python .venv/clients/bin/python --require-hashes tests/clients/requirements.txt
	@touch $@

# Two stamps: the demo does not wait for packages that only tests and checks need.
.venv/.runtime: .venv/bin/model-serving requirements/all.txt
	@echo 'Installing the runtime dependencies into .venv (once; 1.3 GB) ...' >&2
	@$(UV_INSTALL) -r requirements/all.txt
	@touch $@

.venv/.dev: .venv/.runtime requirements/dev.txt
	@echo 'Installing the test and check dependencies into .venv (once) ...' >&2
	@$(UV_INSTALL) -r requirements/dev.txt
	@touch $@
