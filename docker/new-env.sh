#!/bin/sh
# New random passwords, in the form of .env.example:  sh docker/new-env.sh > docker/.env
set -eu
cd "$(dirname "$0")"
umask 077
while IFS= read -r line; do
  case $line in
    *PASSWORD= | *SECRET_KEY=) printf '%s%s\n' "$line" "$(od -An -tx1 -N24 /dev/urandom | tr -d ' \n')" ;;
    *) printf '%s\n' "$line" ;;
  esac
done < .env.example
