#!/usr/bin/env bash
# Builds kube-apiserver from its published Go module, once: about 12 minutes on two busy cores, then nothing. Needs go.
# Prints where it is. KUBE_APISERVER names one that is there already.
set -euo pipefail
version=1.36.3
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${KUBERNETES_CACHE:-$root/target/kubernetes}
binary=$cache/kube-apiserver-$version

if [ -n "${KUBE_APISERVER:-}" ]; then echo "$KUBE_APISERVER"; exit; fi
if [ -x "$binary" ]; then echo "$binary"; exit; fi
command -v go >/dev/null || { echo "go is missing: it builds kube-apiserver $version (or name one in KUBE_APISERVER)" >&2; exit 1; }

mkdir -p "$cache/module"
cd "$cache/module"
started=$SECONDS
export GOFLAGS='-mod=mod -buildvcs=false'
# The parts of Kubernetes are modules of their own, whose versions its go.mod leaves to whoever builds it: 1.x.y is 0.x.y.
rm -f go.mod go.sum
go mod init skiff/kube-apiserver 2>/dev/null
described=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
parts=$(sed -n 's|^\t\(k8s\.io/[a-z0-9-]*\) => \./staging/.*|\1|p' "$described")
[ -n "$parts" ] || { echo "k8s.io/kubernetes v$version: its go.mod names no parts" >&2; exit 1; }
{
  sed -n '/^go /p; /^godebug/p' "$described"
  echo "require k8s.io/kubernetes v$version"
  for part in $parts; do echo "replace $part => $part v0.${version#1.}"; done
} >>go.mod
awk '!/^go / || !seen++' go.mod >go.mod.new && mv go.mod.new go.mod
packages=k8s.io/component-base/version
go build -p 2 -o "$binary.new" -ldflags "-s -w -X $packages.gitVersion=v$version -X $packages.gitMajor=1 -X $packages.gitMinor=36" \
  k8s.io/kubernetes/cmd/kube-apiserver >&2
mv "$binary.new" "$binary"
echo "kube-apiserver $version built in $((SECONDS - started)) s" >&2
echo "$binary"
