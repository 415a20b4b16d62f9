//! `http_health_check`: a request, whose status and perhaps body say how the endpoint is.

use std::task::Poll;

use bytes::Bytes;
use http::Method;

use super::probe::{Prober, add_headers, contains_in_order, network};
use super::{CheckFailure, Success};
use crate::config::HttpHealthCheck;
use crate::http::body::{BodySize, Frame};
use crate::http::head::{HeaderName, ResponseHead};
use crate::http::subrequest::converse;

/// Bytes of an answer that are read without being looked at; more is taken for a failure.
const MAX_BODY: u64 = 8 * 1024 * 1024;

pub(super) async fn check(prober: &mut Prober, ask: &HttpHealthCheck) -> Result<Success, CheckFailure> {
    let mut head = prober.head(&ask.path, &ask.host);
    head.method = Method::from_bytes(ask.method.as_bytes()).unwrap_or(Method::GET);
    for name in &ask.headers_to_remove {
        head.headers.remove_named(&HeaderName::new(name));
    }
    add_headers(&mut head.headers, &ask.headers_to_add);
    let mut rest = Some(Bytes::copy_from_slice(&ask.send)).filter(|body| !body.is_empty());
    let size = if rest.is_some() { BodySize::Known(ask.send.len() as u64) } else { BodySize::Empty };
    if rest.is_some() {
        head.headers.push(b"content-length", itoa::Buffer::new().format(ask.send.len()).as_bytes());
    }
    let mut lease = prober.lease(ask.http2).await?;
    let mut response = ResponseHead::default();
    let mut body = Vec::new();
    let mut received = 0;
    let next = |_: &mut std::task::Context<'_>| Poll::Ready(rest.take().map(|data| Ok(Frame::Data(data))));
    converse(&mut lease, &head, size, next, &mut response, |frame| {
        if let Frame::Data(data) = frame {
            received += data.len() as u64;
            if received > MAX_BODY {
                return Err(crate::error::Error::new(crate::error::ErrorKind::UpstreamProtocol));
            }
            let room = usize::try_from(ask.response_buffer_size).unwrap_or(usize::MAX).saturating_sub(body.len());
            if !ask.receive.is_empty() {
                body.extend_from_slice(&data[..room.min(data.len())]);
            }
        }
        Ok(())
    })
    .await
    .map_err(|error| network(&error))?;
    judge(prober, ask, &response, &body)
}

fn judge(prober: &Prober, ask: &HttpHealthCheck, response: &ResponseHead, body: &[u8]) -> Result<Success, CheckFailure> {
    let has = |name: &str| response.headers.find(&HeaderName::new(name)).is_some();
    let fail = |retriable| {
        if has("x-envoy-immediate-health-check-fail") {
            prober.endpoint.active().exclude();
        }
        Err(CheckFailure::Active { retriable })
    };
    if !contains_in_order(body, &ask.receive) {
        return fail(false);
    }
    let status = response.status.as_u16();
    if !ask.expected_statuses.iter().any(|range| range.contains(&status)) {
        return fail(ask.retriable_statuses.iter().any(|range| range.contains(&status)));
    }
    if let Some(wanted) = &ask.service_name {
        let name = HeaderName::new("x-envoy-upstream-healthchecked-cluster");
        if !wanted.matches(response.headers.find(&name).unwrap_or_default()) {
            return Err(CheckFailure::Active { retriable: false });
        }
    }
    Ok(Success { degraded: has("x-envoy-degraded") })
}
