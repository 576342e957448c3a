#!/bin/sh
# Makes sure that there is a PostgreSQL to work with, and says in one line which:
#
#   scripts/ensure-postgres.sh --for run     binaries, for `setpoint dev`
#   scripts/ensure-postgres.sh --for test    binaries, or a Docker engine with the image that the tests run
#
# What is on the machine comes first; else binaries are downloaded (from SETPOINT_POSTGRES_REPOSITORY, if set); else apt
# installs them, where it may without asking. If nothing helps, it prints a line of advice and ends with status 1.
set -eu

case "${1-} ${2-} $#" in
  "--for run 2" | "--for test 2") purpose=$2 ;;
  *)
    echo "usage: $0 --for run|test" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
if ! command -v go >/dev/null; then
  echo "Go is missing: see https://go.dev/doc/install" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
go build -o "$work/fetch" ./internal/localpg/fetch

# The server that the tests are told to use needs nothing else.
if [ "$purpose" = test ] && [ -n "${SETPOINT_TEST_DATABASE_URL-}" ]; then
  echo "PostgreSQL: the one of SETPOINT_TEST_DATABASE_URL"
  exit 0
fi

if found=$("$work/fetch" -no-download 2>"$work/advice"); then
  echo "PostgreSQL: $found"
  exit 0
fi

if [ "$purpose" = test ] && docker info >/dev/null 2>&1; then
  image=${SETPOINT_TEST_POSTGRES_IMAGE:-postgres:17}
  if docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" >/dev/null 2>&1; then
    echo "PostgreSQL: the Docker image $image"
    exit 0
  fi
fi

if found=$("$work/fetch" 2>"$work/advice"); then
  echo "PostgreSQL, downloaded: $found"
  exit 0
fi

# The installation makes no database of its own: nothing here would use it, and it would take a port.
install_by_apt() {
  export DEBIAN_FRONTEND=noninteractive
  conf=/etc/postgresql-common/createcluster.conf
  $as_root apt-get update -qq &&
    $as_root apt-get install -y -qq --no-install-recommends postgresql-common || return
  $as_root cp -p "$conf" "$conf.before-setpoint"
  $as_root sed -i 's/^#*create_main_cluster *=.*/create_main_cluster = false/' "$conf"
  $as_root apt-get install -y -qq --no-install-recommends postgresql
  status=$?
  $as_root mv "$conf.before-setpoint" "$conf"
  return $status
}
as_root=none
if [ "$(id -u)" = 0 ]; then
  as_root=
elif sudo -n true 2>/dev/null; then
  as_root="sudo -n env DEBIAN_FRONTEND=noninteractive"
fi
if [ "$as_root" != none ] && command -v apt-get >/dev/null; then
  echo "Installing PostgreSQL with apt-get" >&2
  if install_by_apt >"$work/apt" 2>&1 && found=$("$work/fetch" -no-download 2>"$work/advice"); then
    echo "PostgreSQL, installed: $found"
    exit 0
  fi
  tail -n 3 "$work/apt" >&2
fi

cat "$work/advice" >&2
exit 1
