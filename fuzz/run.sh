#!/usr/bin/env bash
# Builds all fuzz targets and runs each for a while: fuzz/run.sh [seconds per target, 10] [target...]
#
# Needs no nightly toolchain: the product forbids unsafe code, so that panics and broken properties are what is looked for.
# SANITIZER=address (nightly) also watches the unsafe code of dependencies. JOBS targets run at once (one for each core).
# What is found goes to fuzz/artifacts; a target starts from fuzz/corpus and collects in fuzz/corpus-work.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-10}
[ $# -gt 0 ] && shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
export SECONDS_EACH=$seconds BIN="target/$(rustc -vV | sed -n 's/^host: //p')/release"

PATH="$PWD/target/tools/bin:$PATH"
command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --quiet --root target/tools
cargo fuzz build --sanitizer "${SANITIZER:-none}"

# Properties share dictionaries by what they read.
dictionary() {
  case $1 in
    http1_* | forwarding | http_sniff | proxy | rbac) echo http1 ;;
    http2_*) echo http2 ;;
    bootstrap | resource) echo envoy ;;
    *) echo "$1" ;;
  esac
}

run() {
  local target=$1 options=()
  local words=dictionaries/$(dictionary "$target").dict
  [ -f "$words" ] && options+=("-dict=$words")
  mkdir -p "corpus-work/$target" "artifacts/$target"
  if "$BIN/$target" -max_total_time="$SECONDS_EACH" -timeout=25 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="artifacts/$target/" "${options[@]}" "corpus-work/$target" "corpus/$target" >"artifacts/$target.log" 2>&1; then
    echo "ok      $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "artifacts/$target.log") inputs"
  else
    echo "FAILED  $target: $(grep -m1 -A2 'panicked at\|^SUMMARY' "artifacts/$target.log" | tr '\n' ' ')"
    echo "        again: fuzz/$BIN/$target $(sed -n 's/^Test unit written to \(.*\)/fuzz\/\1/p' "artifacts/$target.log")"
    return 1
  fi
}
export -f run dictionary

mkdir -p artifacts
printf '%s\n' "${targets[@]}" | xargs -P "${JOBS:-$(nproc)}" -I{} bash -c 'run {}'
