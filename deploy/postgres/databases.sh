#!/bin/bash
# Create one database each for MLflow, Dagster and Feast's registry, with a user that can access no other database.
# The postgres image runs this script once, if its volume is empty.
set -euo pipefail

create_database() {
  psql --set=ON_ERROR_STOP=1 --set=name="$1" --set=password="$2" --username=postgres --dbname=postgres --quiet <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

# By default, all users may connect to PostgreSQL's own databases. Afterwards only the superuser may.
psql --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres --quiet \
  --command="REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC"

create_database mlflow "$MLFLOW_DB_PASSWORD"
create_database dagster "$DAGSTER_DB_PASSWORD"
create_database feast "$FEAST_DB_PASSWORD"
