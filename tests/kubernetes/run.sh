#!/usr/bin/env bash
# The Kubernetes store and `skiff plane` against a real API server: builds one (build.sh), installs etcd where apt is there and it is
# not, runs the tests that are otherwise ignored. SKIFF_TEST_KUBECONFIG: an API server that is there; nothing will stop it then.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."

if [ -z "${SKIFF_TEST_KUBECONFIG:-}" ]; then
  KUBE_APISERVER=$("$here/build.sh")
  export KUBE_APISERVER
  if ! command -v etcd >/dev/null; then
    command -v apt-get >/dev/null || { echo "etcd is missing, and so is apt-get to install it" >&2; exit 1; }
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq etcd-server
  fi
  folder=$(mktemp -d)
  trap '"$here/server.sh" "$folder" stop; rm -rf "$folder"' EXIT
  "$here/server.sh" "$folder" start
  export SKIFF_TEST_KUBECONFIG=$folder/kubeconfig
  # The tests that kill the API server call it with `kill`, `start`, `freeze`, `thaw`.
  export SKIFF_TEST_API_SERVER="$here/server.sh $folder"
fi
cargo test -p skiff-agent --lib kubernetes -- --include-ignored --test-threads=1 "$@"
