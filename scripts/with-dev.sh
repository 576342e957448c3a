#!/usr/bin/env bash
# Runs a command against a development server of its own, with SETPOINT_ADDR set, and stops the server afterwards.
# Usage: with-dev.sh COMMAND…
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d "${TMPDIR:-/tmp}/setpoint.XXXXXX")
chmod 755 "$folder"
log=$folder/log
bin/setpoint dev --data-dir "$folder/data" --grpc-addr 127.0.0.1:0 --http-addr '' >"$log" 2>&1 &
server=$!
stop() {
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || true
  rm -rf "$folder"
}
trap stop EXIT
for _ in $(seq 600); do
  grep -q 'is ready' "$log" && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.1
done
grep -q 'is ready' "$log" || { cat "$log" >&2; exit 1; }
SETPOINT_ADDR=$(sed -n 's/.*--addr \([^ ]*\) var register.*/\1/p' "$log" | head -n 1)
export SETPOINT_ADDR
"$@"
