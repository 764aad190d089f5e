#!/bin/sh
# `install.sh requirements/api.txt`: in the image's build, fill /opt/venv with exactly what the lock names. Wheels only, so
# that no compiler is needed; a mirror and its certificate are taken from pip's own variables.
set -eu
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="$PIP_CERT"
/build/tools/bin/uv pip install --python /opt/venv/bin/python --require-hashes --only-binary :all: --compile-bytecode \
  --no-cache --link-mode copy --quiet -r "$1"
