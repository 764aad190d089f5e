# Two images: `api` serves online; `batch` runs Dagster's code location, webserver and daemon, and the MLflow server.
#
#   docker build --target api -t model-serving-api:0.1.0 .
#   docker build --target batch -t model-serving-batch:0.1.0 .
#
# The base may be any Debian with Python 3.11 to 3.13. `make image-test` uses one built with debootstrap.
ARG BASE_IMAGE=python:3.11.16-slim-bookworm

# Bytecode is compiled here: it can't be written to a read-only root, and startup takes twice as long without it.
FROM ${BASE_IMAGE} AS installer
WORKDIR /build
COPY requirements/bootstrap.txt requirements/
# For a mirror, or a proxy with its own certificate. pip and install.sh ignore empty values; buildah warns about
# arguments without a default. Nothing from this stage ends up in an image.
ARG PIP_INDEX_URL=
ARG PIP_CERT=
RUN python3 -m venv /build/tools \
 && /build/tools/bin/pip install --no-cache-dir --require-hashes -r requirements/bootstrap.txt \
 && python3 -m venv --without-pip /opt/venv
COPY requirements/*.txt requirements/
COPY deploy/install.sh deploy/

FROM installer AS api-packages
ARG PIP_INDEX_URL=
ARG PIP_CERT=
# Model libraries in addition to scikit-learn: "xgboost lightgbm catboost onnx", or some of them.
ARG EXTRAS=
RUN sh deploy/install.sh api $EXTRAS

FROM installer AS batch-packages
ARG PIP_INDEX_URL=
ARG PIP_CERT=
# `spark` for the Spark engine, on a base with Java.
ARG BATCH_LOCK=batch
ARG EXTRAS=
RUN sh deploy/install.sh $BATCH_LOCK $EXTRAS


FROM ${BASE_IMAGE} AS base
# LightGBM's wheel (4.7) is the only one without its own OpenMP library.
ARG EXTRAS=
RUN case " $EXTRAS " in *" lightgbm "*) \
      apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* ;; esac
# No compiler and no installer, so nothing can be added to a running container.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin serving \
 && install -d -o serving -g serving /var/lib/serving /var/lib/serving/dagster /var/lib/serving/logs /var/lib/serving/scratch
# Processes write only to /tmp and /var/lib/serving. Everything else may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    OMP_NUM_THREADS=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true
WORKDIR /app
COPY deploy/healthy.py deploy/
COPY scoring scoring
COPY feature_repo/*.py feature_repo/*.yaml feature_repo/


FROM base AS api
COPY --from=api-packages /opt/venv /opt/venv
COPY api api
RUN python -m compileall -q scoring api
USER 10001:10001
EXPOSE 8172
# Beyond loopback, the API does not start without SERVING_API_KEYS.
ENV SERVING_HOST=0.0.0.0 SERVING_PORT=8172
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["sh", "-c", "exec python /app/deploy/healthy.py http://127.0.0.1:$SERVING_PORT/live"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "api"]


FROM base AS batch
COPY --from=batch-packages /opt/venv /opt/venv
COPY serving_assets serving_assets
COPY cli cli
COPY demo demo
COPY deploy/workspace.yaml deploy/
COPY deploy/dagster.yaml /var/lib/serving/dagster/
RUN python -m compileall -q scoring serving_assets cli demo
USER 10001:10001
ENV DAGSTER_HOME=/var/lib/serving/dagster
EXPOSE 4000
# For the code location. docker-compose.yml sets the health checks of the other three services.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "/app/deploy/healthy.py", "grpc://127.0.0.1:4000"]
STOPSIGNAL SIGTERM
CMD ["dagster", "api", "grpc", "--host=0.0.0.0", "--port=4000", "--module-name=serving_assets.definitions"]
