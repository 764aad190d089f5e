#!/bin/bash
# What the postgres image does at its first start: make the cluster, and run the scripts on a server that only listens on its
# socket.
set -euo pipefail

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  # shellcheck disable=SC2086 # several options
  initdb --username=postgres --pwfile=<(echo "$POSTGRES_PASSWORD") -D "$PGDATA" ${POSTGRES_INITDB_ARGS-}
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
  for script in /docker-entrypoint-initdb.d/*.sh; do
    bash "$script"
  done
  pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@" -c "listen_addresses=*"
