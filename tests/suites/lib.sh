# Shared by the suites: where tools go, how the proxy starts. Needs go for the tools and cargo for the proxy.
# PROXY: a command that takes `-c bootstrap`; by default the workspace's own `skiff proxy`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
tools=${SUITE_TOOLS:-$root/target/suites}
started=()
scratch=$(mktemp -d)

finish() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap finish EXIT

# install NAME MODULE: a published Go module's command, named NAME, unless it is there already.
install() {
  [ -x "$tools/$1" ] && return
  mkdir -p "$tools"
  command -v go >/dev/null || { echo "go is missing: it builds $2" >&2; exit 1; }
  GOBIN=$scratch/bin GOFLAGS=-mod=mod go install "$2"
  mv "$scratch"/bin/* "$tools/$1"
}

# wait_for PORT: until somebody listens on it.
wait_for() {
  for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  echo "nothing listens on port $1; the proxy says:" >&2
  tail -20 "$scratch/proxy.log" >&2
  exit 1
}

start_proxy() {
  if [ -z "${PROXY:-}" ]; then
    cargo build --quiet --manifest-path "$root/Cargo.toml" -p skiff
    PROXY="$root/target/debug/skiff proxy"
  fi
  $PROXY -c "$here/proxy.yaml" >"$scratch/proxy.log" 2>&1 &
  started+=($!)
  wait_for "$1"
}
