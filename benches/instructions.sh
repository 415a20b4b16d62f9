#!/usr/bin/env bash
# User instructions that the proxy spends on one HTTP/1 request, counted by valgrind (callgrind) as the difference of two runs.
#
#   benches/instructions.sh [ROLE...]            print the numbers; roles: http, http+log+metrics (both if none is given)
#   benches/instructions.sh --check [ROLE...]    fail when one is more than 10% above benches/instructions.budget
#
# Counted are the threads that carry the request, the worker and the writer of the access log; not the main thread, whose start-up
# calibrates a clock for a time that varies. Everything is started here, on free ports of 127.0.0.1, and ended here: a backend
# that answers 1 KiB, the proxy with one worker under valgrind, and a client that sends requests one by one. CARGO names another cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

few=1000
many=6000
roles="http http+log+metrics"
budget=benches/instructions.budget

check=false
if [ "${1:-}" = --check ]; then check=true; shift; fi
if [ $# -gt 0 ]; then roles="$*"; fi
command -v valgrind >/dev/null || { echo "valgrind is missing" >&2; exit 69; }

"${CARGO:-cargo}" build --quiet --profile profiling -p skiff-benches --bin lab-proxy
lab="${CARGO_TARGET_DIR:-target}/profiling/lab-proxy"

scratch=$(mktemp -d)
children=()
cleanup() {
  for child in "${children[@]}"; do kill -KILL "$child" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The address after "listening on" in a file that a process which we started writes; waits up to a minute.
address() {
  for _ in $(seq 600); do
    local line
    line=$(grep -m1 -o 'listening on .*' "$1" || true)
    if [ -n "$line" ]; then echo "${line#listening on }"; return; fi
    sleep 0.1
  done
  echo "nothing listens: $(cat "$1" "$scratch"/*.err 2>/dev/null)" >&2
  return 1
}

# Sets `collected` to the instructions of a proxy that serves $2 requests in the role $1.
instructions() {
  rm -f "$scratch"/counts*
  : >"$scratch/proxy.out"
  timeout --kill-after=5 120 valgrind --tool=callgrind --separate-threads=yes --callgrind-out-file="$scratch/counts" \
    "$lab" one "$1" "$upstream" "$scratch/access.log" >"$scratch/proxy.out" 2>"$scratch/proxy.err" &
  local proxy=$!
  children+=("$proxy")
  local listener
  listener=$(address "$scratch/proxy.out")
  timeout --kill-after=5 100 "$lab" load "$listener" "$2" >&2
  # timeout passes the signal on, and valgrind writes what it counted before it lets the process die of it.
  kill -TERM "$proxy"
  wait "$proxy" 2>/dev/null || true
  # One file a thread; 01 is the main thread.
  collected=$(find "$scratch" -name 'counts-*' ! -name 'counts-01' -exec sed -n 's/^totals: //p' {} + | awk '{ sum += $1 } END { printf "%d", sum }')
  [ "$collected" -gt 0 ] || { cat "$scratch/proxy.err" >&2; return 1; }
}

"$lab" backend >"$scratch/backend.out" 2>"$scratch/backend.err" &
children+=("$!")
upstream=$(address "$scratch/backend.out")

failed=0
for role in $roles; do
  instructions "$role" "$few"; first=$collected
  instructions "$role" "$many"; second=$collected
  count=$(( (second - first) / (many - few) ))
  if ! $check; then
    echo "$role $count"
    continue
  fi
  allowed=$(awk -v role="$role" '$1 == role { print $2 }' "$budget")
  [ -n "$allowed" ] || { echo "$role: no budget in $budget" >&2; exit 1; }
  if [ "$count" -gt $(( allowed * 110 / 100 )) ]; then
    echo "$role: $count instructions a request, more than 10% above the budget of $allowed"
    failed=1
  else
    echo "$role: $count instructions a request, budget $allowed"
  fi
done
exit "$failed"
