#!/usr/bin/env bash
# Fails unless `make run` gives a server that answers the commands that the README begins with, keeps its data over a
# restart, and stops its PostgreSQL.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d "${TMPDIR:-/tmp}/setpoint.XXXXXX")
chmod 755 "$folder"
trap 'kill -TERM -- "-${server:-0}" 2>/dev/null || true; rm -rf "$folder"' EXIT

fail() { echo "check-run: $*" >&2; cat "$folder/log" >&2; exit 1; }

start() {
  : >"$folder/log"
  setsid make run ARGS="--data-dir $folder/data --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0" >"$folder/log" 2>&1 &
  server=$!
  for _ in $(seq 3000); do
    grep -q 'is ready' "$folder/log" && break
    kill -0 "$server" 2>/dev/null || fail "the server ended"
    sleep 0.1
  done
  grep -q 'is ready' "$folder/log" || fail "the server is not ready after five minutes"
  SETPOINT_ADDR=$(sed -n 's/.*--addr \([^ ]*\) var register.*/\1/p' "$folder/log" | head -n 1)
  export SETPOINT_ADDR
}

stop() {
  kill -TERM -- "-$server"
  wait "$server" || true
  ! pgrep -f "$folder/data" >/dev/null || fail "PostgreSQL still runs"
}

# expect STATUS PATTERN COMMAND…
expect() {
  local status=$1 pattern=$2 got=0 output
  shift 2
  output=$("$@" 2>&1) || got=$?
  [ "$got" = "$status" ] || fail "'$*' ended with $got, not $status: $output"
  grep -q -- "$pattern" <<<"$output" || fail "'$*' said: $output"
}

start
expect 0 'version 0' bin/setpoint var register temperature float 0.7 --min 0 --max 2
expect 0 'version 1' bin/setpoint var set temperature 0.9 --expected-version 0
expect 1 '^error: VERSION_MISMATCH: ' bin/setpoint var set temperature 0.9 --expected-version 0
expect 0 'version 0' bin/setpoint var register var_a integer 0
expect 0 'version 1' bin/setpoint var set var_a 100
expect 0 'version 2' bin/setpoint var set var_a 200
expect 0 'var_a = 100 .*version 3' bin/setpoint history rollback var_a 1
expect 1 '^error: CONSTRAINT_VIOLATION: temperature: 9 is above the maximum 2' bin/setpoint var set temperature 9
expect 2 '^error: USAGE: ' bin/setpoint var set temperature
stop
start
expect 0 '"version": "3"' bin/setpoint var get var_a -o json
stop
expect 1 '^error: UNREACHABLE: ' bin/setpoint var get var_a --timeout 2s
echo "make run answers a real client"
