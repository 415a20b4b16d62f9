#!/usr/bin/env bash
# The Autobahn WebSocket suite against an echo server, directly and through skiff: every case must end alike.
#
#   tests/suites/autobahn.sh [CASES]        e.g. '1.*,2.*'; default '*' (some minutes)
#
# Needs python3, and a Python 2.7 for the suite itself (python2.7, pyenv or pypy; or name it in PYTHON2). Everything else it
# installs into $AUTOBAHN (default target/autobahn). SKIFF names the binary (default target/debug/skiff). Exit 1: a difference.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cases=${1:-*}
home=${AUTOBAHN:-$root/target/autobahn}
skiff=${SKIFF:-$root/target/debug/skiff}
mkdir -p "$home"
[ -x "$skiff" ] || { echo "no binary at $skiff: cargo build -p skiff" >&2; exit 2; }

python2() {
  local candidate
  for candidate in "${PYTHON2:-}" python2.7 "$HOME"/.pyenv/versions/2.7*/bin/python pypy; do
    [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[0] != 2)' 2>/dev/null && { echo "$candidate"; return; }
  done
  echo "no Python 2.7 found: install one (pyenv install 2.7.18) or set PYTHON2" >&2
  return 1
}

if [ ! -x "$home/suite/bin/wstest" ]; then
  two=$(python2)
  "$two" -m virtualenv --version >/dev/null 2>&1 || "$two" -m pip install -q virtualenv
  "$two" -m virtualenv -q "$home/suite"
  "$home/suite/bin/pip" install -q 'autobahntestsuite==25.10.1'
fi
[ -x "$home/echo/bin/python" ] || { python3 -m venv "$home/echo" && "$home/echo/bin/pip" install -q websockets; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
direct=$(free_port) through=$(free_port) admin=$(free_port)
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT

"$home/echo/bin/python" "$root/tests/suites/autobahn_echo.py" "$direct" >"$work/echo.log" 2>&1 &
pids+=($!)
sed -e "s/@DIRECT@/$direct/; s/@THROUGH@/$through/; s/@ADMIN@/$admin/" "$root/tests/suites/autobahn.yaml" >"$work/bootstrap.yaml"
"$skiff" proxy -c "$work/bootstrap.yaml" >"$work/skiff.log" 2>&1 &
pids+=($!)
for port in "$direct" "$through"; do
  for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue 2
    sleep 0.1
  done
  echo "nothing listens on port $port" >&2; cat "$work"/*.log >&2; exit 2
done

cat >"$work/spec.json" <<SPEC
{"outdir": "$home/reports", "options": {"failByDrop": false},
 "servers": [{"agent": "direct", "url": "ws://127.0.0.1:$direct"}, {"agent": "skiff", "url": "ws://127.0.0.1:$through"}],
 "cases": $(python3 -c 'import json, sys; print(json.dumps(sys.argv[1].split(",")))' "$cases"),
 "exclude-cases": [], "exclude-agent-cases": {}}
SPEC
rm -rf "$home/reports"
(cd "$work" && "$home/suite/bin/wstest" -m fuzzingclient -s "$work/spec.json" >"$work/suite.log" 2>&1) || true
[ -f "$home/reports/index.json" ] || { tail -20 "$work/suite.log" >&2; exit 2; }
python3 "$root/tests/suites/autobahn_compare.py" "$home/reports/index.json"
