#!/usr/bin/env bash
# Fails if what is generated is not what the sources generate.
set -euo pipefail
cd "$(dirname "$0")/.."
make generate
changed=$(git status --porcelain -- gen db/dbgen internal/server/openapi)
if [ -n "$changed" ]; then
  echo "generated code is not current; run 'make generate' and commit:" >&2
  echo "$changed" >&2
  exit 1
fi
echo "generated code is current"
