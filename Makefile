# Needs only make and Python 3.11 to 3.13: everything else goes into .venv, with the versions and hashes of requirements/.
# Recipes are for a plain /bin/sh.

# pip reads these from the environment, uv does not: a mirror, a certificate or patience set for pip must serve both.
UV_TARGETS = .venv/.runtime .venv/.dev lock bench
ifdef PIP_INDEX_URL
$(UV_TARGETS): export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_CERT
$(UV_TARGETS): export SSL_CERT_FILE ?= $(PIP_CERT)
endif
ifdef PIP_DEFAULT_TIMEOUT
$(UV_TARGETS): export UV_HTTP_TIMEOUT ?= $(PIP_DEFAULT_TIMEOUT)
endif

# Bytecode is compiled here because feast, mlflow, sklearn and dagster import in half the time with it, and an
# environment that sets PYTHONDONTWRITEBYTECODE would never get it.
UV_INSTALL = .venv/bin/uv pip install --python .venv/bin/python --require-hashes --compile-bytecode $$(test -t 2 || echo --quiet)
LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

PIP_AUDIT = 2.10.1

# Nothing that make starts sends anything to Dagster's makers. What Dagster collects, its dagster.yaml switches off.
export DAGSTER_DISABLE_TELEMETRY := yes

.DEFAULT_GOAL := help
.PHONY: help install demo demo-promote test image-test compose-test audit soak bench check fmt lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '  %-20s %s\n' "$$name" "$$text"; done

install: .venv/.dev ## create .venv with everything, also the tools for tests and checks

demo: .venv/.runtime ## train, register and serve the example in batch and online; ONCE=1 stops when it has shown both
	@.venv/bin/python -m demo $(if $(ONCE),--once)

demo-promote: .venv/.runtime ## move the alias to another model version while the demo runs
	@.venv/bin/python -m demo.promote

test: .venv/.dev ## run all tests against real servers, three files at a time; ARGS="-n 0 -k redis" picks some
	@.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

image-test: .venv/.dev ## build both images and run them against real servers; Debian's buildah and debootstrap, and root
	@.venv/bin/python -m pytest tests/image/build_and_run.py -s $(ARGS)

compose-test: .venv/.dev ## run docker-compose.yml by Docker itself, through kills and an upgrade; IMAGE_TAG names built images
	@.venv/bin/python -m pytest tests/image/compose_up.py -s $(ARGS)

audit: .venv/bin/uv ## ask the advisory databases for every pinned package; needs the internet
	@for lock in api batch; do \
		.venv/bin/uv tool run --quiet pip-audit==$(PIP_AUDIT) --disable-pip --require-hashes -r requirements/$$lock.txt || exit 1; done

soak: .venv/.dev ## ask the API half of what it can for 10 minutes and watch its memory; MINUTES=1 is shorter
	@OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.soak $(or $(MINUTES),10)

bench: .venv/.dev ## measure us beside our peers and write docs/benchmarks.md; ONLY=online-5, QUICK=1, SERVERS=ours,bentoml do less
	@OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(SERVERS),--servers $(SERVERS))

check: .venv/.dev ## lint, formatting, types, direction of imports
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

fmt: .venv/.dev ## format the code and mend what ruff can mend
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock: .venv/bin/uv ## pin pyproject.toml into requirements/; UPGRADE=1 takes newer versions
	$(LOCK) --group pyproject.toml:bootstrap -o requirements/bootstrap.txt
	$(LOCK) pyproject.toml --extra api --extra batch --group dev -o requirements/dev.txt
	$(LOCK) pyproject.toml --extra api --extra batch -c requirements/dev.txt -o requirements/all.txt
	$(LOCK) pyproject.toml --extra api -c requirements/dev.txt -o requirements/api.txt
	$(LOCK) pyproject.toml --extra batch -c requirements/dev.txt -o requirements/batch.txt
	$(LOCK) pyproject.toml --extra batch --extra spark -c requirements/dev.txt -o requirements/spark.txt
	@$(MAKE) --no-print-directory $(foreach peer,bentoml fastapi mlserver,benchmarks/peers/$(peer)/requirements.txt)

# What the peers of the benchmarks have in common with us must be in our versions. Only MLServer's own requirements
# contradict Feast's; its overrides.txt says which.
SHARED = feast|hiredis|httptools|joblib|mlflow|mlflow-skinny|mlflow-tracing|mmh3|numpy|pandas|protobuf|pyarrow|pydantic|redis|scikit-learn|scipy|skops|uvicorn|uvloop

.PHONY: benchmarks/peers/shared.txt
benchmarks/peers/shared.txt:
	@{ echo '# What every peer has in the same version as we do: made by make lock from requirements/all.txt.'; \
		sed -nE 's/^(($(SHARED))==.*) \\$$/\1/p' requirements/all.txt; } > $@

benchmarks/peers/%/requirements.txt: benchmarks/peers/shared.txt
	$(LOCK) benchmarks/peers/$*/requirements.in -c $< $(addprefix --override ,$(wildcard benchmarks/peers/$*/overrides.txt)) -o $@

clean: ## remove what the demo, the tests and the tools left behind; .venv stays
	rm -rf var artifacts feature_repo/data mlruns .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

.venv/bin/uv: requirements/bootstrap.txt
	@for python in $(PYTHON) python3.11 python3 python3.12 python3.13 ''; do \
		[ -n "$$python" ] || { echo 'make: needs Python 3.11, 3.12 or 3.13 on PATH, or make PYTHON=/path/to/python' >&2; exit 1; }; \
		"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break; \
	done; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $$python cannot make environments; on Debian and Ubuntu install its python3-venv package" >&2; exit 1; }; \
	.venv/bin/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

# Two stamps, so that the demo does not wait for the tools that only tests and checks need.
.venv/.runtime: .venv/bin/uv requirements/all.txt
	@echo 'Installing what the demo and the servers need into .venv (once; 1.3 GB) ...' >&2
	@$(UV_INSTALL) -r requirements/all.txt
	@touch $@

.venv/.dev: .venv/.runtime requirements/dev.txt
	@echo 'Installing what tests and checks need into .venv (once) ...' >&2
	@$(UV_INSTALL) -r requirements/dev.txt
	@touch $@
