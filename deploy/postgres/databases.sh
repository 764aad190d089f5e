#!/bin/bash
# One database for each of MLflow, Dagster and Feast's registry, each with a user of its own that may use no other.
# The postgres image runs this once, when its volume is empty.
set -euo pipefail

make_database() {
  psql --set=ON_ERROR_STOP=1 --set=name="$1" --set=password="$2" --username=postgres --dbname=postgres --quiet <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

# PostgreSQL's own databases, which everybody may use at first. The superuser still may.
psql --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres --quiet \
  --command="REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC"

make_database mlflow "$MLFLOW_DB_PASSWORD"
make_database dagster "$DAGSTER_DB_PASSWORD"
make_database feast "$FEAST_DB_PASSWORD"
