#!/usr/bin/env bash
# Fails unless the curl commands of docs/rest.md, run as they are, answer what the document says. Each ```sh block is run;
# the block after it is the answer, but for white space, and for `…`, which is anything. Blocks are run in their order, and keep
# the variables of those before, as in one shell.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
make build
scripts/ensure-postgres.sh --for run
folder=$(mktemp -d "${TMPDIR:-/tmp}/setpoint.XXXXXX")
chmod 755 "$folder"
log=$folder/log
bin/setpoint dev --data-dir "$folder/data" --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 >"$log" 2>&1 &
server=$!
stop() {
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || true
  rm -rf "$folder"
}
trap stop EXIT
for _ in $(seq 600); do
  grep -q 'is ready' "$log" && break
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
grep -q 'is ready' "$log" || { cat "$log" >&2; exit 1; }

# The document names the usual port; this server has another.
http=$(sed -n 's/.*msg=serving .*http=\([^ ]*\).*/\1/p' "$log" | head -n 1)
export CURL_HOME=$folder
printf '%s\n' silent show-error 'max-time = 60' "connect-to = \"127.0.0.1:7421:$http\"" >"$folder/.curlrc"

# Block n is in n.sh, and what it answers in n.want.
awk -v folder="$folder" '
  /^```$/ && file { close(file); file = ""; next }
  /^```sh$/ { n++; file = folder "/" n ".sh"; wanted = 1; next }
  /^```/ && wanted { file = folder "/" n ".want"; wanted = 0; next }
  /^```/ { file = "/dev/null"; next }
  file { print > file }
' docs/rest.md

blocks=0
: >"$folder/variables"
for command in $(printf '%s\n' "$folder"/*.sh | sort -V); do
  blocks=$((blocks + 1))
  want=$(tr -d ' \t\n' <"${command%.sh}.want")
  got=$(bash -euo pipefail -c 'set -a; . "$1"; . "$2"; export -p >"$1"' - "$folder/variables" "$command" 2>&1 | tr -d ' \t\r\n') ||
    got="$got (and failed)"
  pattern=$(sed 's/[][\\.^$*+?(){}|]/\\&/g; s/…/.*/g' <<<"$want")
  if ! [[ $got =~ ^$pattern$ ]]; then
    printf 'docs/rest.md is wrong. The command\n%s\nanswered\n%s\nand not\n%s\n' "$(cat "$command")" "$got" "$want" >&2
    exit 1
  fi
done
[ "$blocks" -gt 0 ] || { echo "docs/rest.md has no commands" >&2; exit 1; }
echo "docs/rest.md: $blocks commands answer what it says"
