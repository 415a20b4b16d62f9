//! The [health check of gRPC](https://grpc.io/docs/guides/health-checking/): `grpc.health.v1.Health/Check`.

use std::net::SocketAddr;

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Of `ServingStatus`.
const SERVING: i32 = 1;
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// An answer is two bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Asks the server on `address` whether it serves `service`. The caller bounds the time.
///
/// # Errors
/// With what it says instead, or why there is no answer.
pub(super) async fn is_serving(address: SocketAddr, service: &str) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    client.ready().await.map_err(|error| error.to_string())?;
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(request, PathAndQuery::from_static(CHECK), codec).await;
    let answer = answer.map_err(|status| format!("{address}: {:?}: {}", status.code(), status.message()))?;
    match answer.into_inner().status {
        SERVING => Ok(()),
        other => Err(format!("{address}: expected SERVING (1), found {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::stream;
    use http::{HeaderMap, HeaderValue, Request, Response};
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// A server that says `status` of every service but `missing`, which it does not know.
    async fn serve(status: u8) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    assert_eq!(request.uri().path(), CHECK);
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let unknown = asked.ends_with(b"missing");
                    let code = HeaderValue::from_static(if unknown { "5" } else { "0" });
                    let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
                    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code)]);
                    let frames = [(!unknown).then(|| Frame::data(message)), Some(Frame::trailers(trailers))];
                    let body = StreamBody::new(stream::iter(frames.into_iter().flatten().map(Ok::<_, Infallible>)));
                    let answer = Response::builder().header("content-type", "application/grpc").body(body);
                    Ok::<_, Infallible>(answer.unwrap())
                });
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
            }
        });
        (address, serving)
    }

    #[tokio::test]
    async fn only_serving_is_healthy() {
        let (address, _serving) = serve(1).await;
        assert_eq!(is_serving(address, "a.B").await, Ok(()));
        assert!(is_serving(address, "missing").await.unwrap_err().contains("NotFound"));
        let (address, _serving) = serve(2).await;
        assert!(is_serving(address, "").await.unwrap_err().contains("found 2"));
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(is_serving(nobody, "").await.unwrap_err().contains("cannot connect"));
    }
}
