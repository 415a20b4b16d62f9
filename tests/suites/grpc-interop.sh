#!/usr/bin/env bash
# gRPC's interoperability cases (https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md) with the Go client and
# server, HTTP/2 on both sides of the proxy. Cases that need credentials, several servers or a balancer with load reports are left out.
. "$(dirname "$0")/lib.sh"
version=v1.85.0
cases="empty_unary large_unary client_streaming server_streaming ping_pong empty_stream timeout_on_sleeping_server cancel_after_begin
  cancel_after_first_response status_code_and_message special_status_message custom_metadata unimplemented_method unimplemented_service"

install grpc-interop-client "google.golang.org/grpc/interop/client@$version"
install grpc-interop-server "google.golang.org/grpc/interop/server@$version"
"$tools/grpc-interop-server" -port 28911 >"$scratch/server.log" 2>&1 &
started+=($!)
wait_for 28911
start_proxy 28910
failed=0
for case in $cases; do
  if timeout 60 "$tools/grpc-interop-client" -server_host 127.0.0.1 -server_port 28910 -test_case "$case" >"$scratch/client.log" 2>&1; then
    echo "grpc-interop: $case ok"
  else
    echo "grpc-interop: $case FAILED" >&2
    tail -5 "$scratch/client.log" >&2
    failed=1
  fi
done
exit $failed
