#!/usr/bin/env bash
# The plane's Kubernetes store and `skiff plane` with a real API server: builds one (build.sh), installs etcd where it is missing and
# apt is there, starts both, runs the tests that are otherwise ignored. About 3 minutes when everything is built.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."

binaries=$("$here/build.sh")
export KUBE_APISERVER=$binaries/kube-apiserver SKIFF_TEST_KUBECTL=$binaries/kubectl
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
cargo test -p skiff-agent --lib kubernetes -- --include-ignored --test-threads=1
# The last one needs an istiod.
cargo test -p skiff-tests --test kubernetes -- --ignored --test-threads=1 --skip tasks_that_istiod_knows
