#!/usr/bin/env bash
# Builds kube-apiserver and kubectl from their published Go module, once: about 12 minutes on two busy cores, then nothing. Needs go.
# Prints the folder that they are in. KUBERNETES_BINARIES names one where they are already.
set -euo pipefail
version=1.36.3
cache=${KUBERNETES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff/kubernetes}
binaries=$cache/$version

if [ -n "${KUBERNETES_BINARIES:-}" ]; then echo "$KUBERNETES_BINARIES"; exit; fi
if [ -x "$binaries/kube-apiserver" ] && [ -x "$binaries/kubectl" ]; then echo "$binaries"; exit; fi
command -v go >/dev/null || {
  echo "go is missing: it builds kube-apiserver and kubectl $version; or name a folder that has them in KUBERNETES_BINARIES" >&2
  exit 1
}

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
flags="-s -w"
for value in gitVersion=v$version gitMajor=1 gitMinor=${version:2:2}; do flags+=" -X k8s.io/component-base/version.$value"; done
mkdir -p "$binaries"
for name in kube-apiserver kubectl; do
  go build -p 2 -o "$binaries/$name.new" -ldflags "$flags" "k8s.io/kubernetes/cmd/$name" >&2
  mv "$binaries/$name.new" "$binaries/$name"
done
echo "kube-apiserver and kubectl $version built in $((SECONDS - started)) s" >&2
echo "$binaries"
