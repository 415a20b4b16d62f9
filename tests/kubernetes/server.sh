#!/usr/bin/env bash
# An API server for tests: etcd and kube-apiserver on loopback, everything in one folder.
#
#   server.sh FOLDER start      until it is ready; writes FOLDER/kubeconfig. Again after `kill`, with what etcd has.
#   server.sh FOLDER kill       kill -9 of the API server alone
#   server.sh FOLDER freeze     its connections stay and say nothing; `thaw` ends that
#   server.sh FOLDER stop       both
#
# KUBE_APISERVER: the binary. SKIFF_TEST_API_PORT: where it listens, 26443; etcd takes the two ports after it.
set -euo pipefail
folder=$1
port=${SKIFF_TEST_API_PORT:-26443}
api=https://127.0.0.1:$port
etcd=http://127.0.0.1:$((port + 1))
mkdir -p "$folder"

# A process that has ended may stay as a zombie where nobody waits for it.
running() { [ -s "$folder/$1.pid" ] && [ "$(cut -d' ' -f3 "/proc/$(cat "$folder/$1.pid")/stat" 2>/dev/null || echo Z)" != Z ]; }

launch() {
  local name=$1
  shift
  running "$name" && return
  setsid "$@" >>"$folder/$name.log" 2>&1 </dev/null &
  echo $! >"$folder/$name.pid"
}

ready() {
  for _ in $(seq 600); do
    "$@" >/dev/null 2>&1 && return
    running "$name" || break
    sleep 0.1
  done
  echo "$name is not ready; it says:" >&2
  tail -20 "$folder/$name.log" >&2
  exit 1
}

ask() { curl -fsS --max-time 2 --cacert "$folder/certs/apiserver.crt" -H "Authorization: Bearer $(cut -d, -f1 "$folder/tokens.csv")" "$api$1"; }

signal() { if running "$2"; then kill "-$1" "$(cat "$folder/$2.pid")"; fi; }

gone() { while running "$1"; do sleep 0.05; done; }

case $2 in
  start)
    if [ ! -s "$folder/tokens.csv" ]; then
      openssl genrsa -out "$folder/accounts.key" 2048 2>/dev/null
      echo "$(openssl rand -hex 16),admin,admin,\"system:masters\"" >"$folder/tokens.csv"
    fi
    name=etcd
    launch etcd etcd --data-dir "$folder/etcd" --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
      --listen-peer-urls "http://127.0.0.1:$((port + 2))" --initial-advertise-peer-urls "http://127.0.0.1:$((port + 2))" \
      --initial-cluster "default=http://127.0.0.1:$((port + 2))" --unsafe-no-fsync
    ready curl -fsS --max-time 2 "$etcd/health"
    name=kube-apiserver
    launch kube-apiserver "$KUBE_APISERVER" --etcd-servers="$etcd" --bind-address=127.0.0.1 --advertise-address=127.0.0.1 \
      --secure-port="$port" --cert-dir="$folder/certs" --token-auth-file="$folder/tokens.csv" --authorization-mode=RBAC \
      --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file="$folder/accounts.key" \
      --service-account-key-file="$folder/accounts.key" --service-cluster-ip-range=10.96.0.0/16 \
      --disable-admission-plugins=ServiceAccount --endpoint-reconciler-type=none --v=1
    ready ask /readyz
    cat >"$folder/kubeconfig" <<K
apiVersion: v1
kind: Config
current-context: test
clusters:
- {name: test, cluster: {server: "$api", certificate-authority: "$folder/certs/apiserver.crt"}}
users:
- {name: admin, user: {token: "$(cut -d, -f1 "$folder/tokens.csv")"}}
contexts:
- {name: test, context: {cluster: test, user: admin}}
K
    ;;
  kill)
    signal KILL kube-apiserver
    gone kube-apiserver
    ;;
  freeze) signal STOP kube-apiserver ;;
  thaw) signal CONT kube-apiserver ;;
  stop)
    signal KILL kube-apiserver
    signal TERM etcd
    gone kube-apiserver
    gone etcd
    ;;
  *)
    sed -n '2,10p' "$0" >&2
    exit 1
    ;;
esac
