#!/bin/sh
# `install.sh api xgboost`: install lock files of requirements/ into /opt/venv during the image build. Only wheels are
# installed, so no compiler is needed; pyspark alone has no wheel, and contains Python and jars. A mirror and its
# certificate come from pip's environment variables.
set -eu
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="$PIP_CERT"
/build/tools/bin/uv pip install --python /opt/venv/bin/python --require-hashes --only-binary :all: --no-binary pyspark \
  --compile-bytecode --no-cache --link-mode copy --quiet $(printf ' -r requirements/%s.txt' "$@")
