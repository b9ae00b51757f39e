#!/bin/sh
# Roles and databases for Prefect and MLflow, each its own. Run at every start: it makes what is missing, and sets the
# passwords to those in the environment, so that a password is changed by changing .env. The server is named by PGHOST, …
set -eu
for name in prefect mlflow; do
  psql -X -q -v ON_ERROR_STOP=1 -v name="$name" -d postgres <<'SQL'
SELECT upper(:'name') || '_DATABASE_PASSWORD' AS variable \gset
\getenv password :variable
SELECT format('CREATE ROLE %I LOGIN', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" LOGIN PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
  echo "database $name is ready"
done
