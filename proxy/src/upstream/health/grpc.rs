//! `grpc_health_check`: `grpc.health.v1.Health/Check`, whose messages have one field each and are written here by hand.

use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::probe::{Prober, add_headers, network};
use super::{CheckFailure, Success};
use crate::config::GrpcHealthCheck;
use crate::error::{Error, ErrorKind};
use crate::http::body::{BodySize, Frame};
use crate::http::head::{Headers, Known, ResponseHead};
use crate::http::subrequest::converse;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// Far more than the two bytes of an answer.
const MAX_BODY: usize = 64 * 1024;
/// `HealthCheckResponse.ServingStatus.SERVING`
const SERVING: u64 = 1;

pub(super) async fn check(prober: &mut Prober, ask: &GrpcHealthCheck, timeout: Duration) -> Result<Success, CheckFailure> {
    let mut head = prober.head(PATH, &ask.authority);
    head.method = Method::POST;
    head.headers.push(b"te", b"trailers");
    head.headers.push(b"content-type", b"application/grpc");
    add_headers(&mut head.headers, &ask.initial_metadata);
    head.headers.push(b"grpc-timeout", format!("{}m", timeout.as_millis()).as_bytes());
    let mut rest = Some(request(&ask.service_name));
    let mut lease = prober.lease(true).await?;
    let mut response = ResponseHead::default();
    let mut body = Vec::new();
    let mut trailers = None;
    let next = |_: &mut std::task::Context<'_>| Poll::Ready(rest.take().map(|data| Ok(Frame::Data(data))));
    converse(&mut lease, &head, BodySize::Unknown, next, &mut response, |frame| {
        match frame {
            Frame::Data(data) if body.len() + data.len() > MAX_BODY => return Err(Error::new(ErrorKind::UpstreamProtocol)),
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(fields) => trailers = Some(fields),
        }
        Ok(())
    })
    .await
    .map_err(|error| network(&error))?;
    let status = |headers: &Headers| headers.get(Known::GrpcStatus).map(<[u8]>::to_vec);
    let ended = trailers.as_deref().and_then(status);
    let fine = response.status == StatusCode::OK && ended.as_deref() == Some(b"0") && serving(&body) == Some(SERVING);
    if fine { Ok(Success::default()) } else { Err(CheckFailure::Active { retriable: false }) }
}

/// `HealthCheckRequest { service = 1 }`, framed.
fn request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.append(&mut message);
    framed.into()
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    to.push(value.to_le_bytes()[0]);
}

/// The status of the only message of a response, `HealthCheckResponse { status = 1 }`; fields that it may grow are passed over.
fn serving(body: &[u8]) -> Option<u64> {
    let (&[0, a, b, c, d], mut message) = body.split_first_chunk::<5>()? else { return None };
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = read_varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = read_varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(read_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn read_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_service() {
        assert_eq!(&*request(""), [0, 0, 0, 0, 0]);
        assert_eq!(&*request("a.B"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        assert_eq!(request(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 200, 1]);
    }

    #[test]
    fn only_one_whole_message_that_says_serving_is_one() {
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 2]), Some(2));
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving(&[0, 0, 0, 0, 6, 0x12, 2, 0, 0, 8, 1]), Some(1), "an unknown field");
        for odd in [&[][..], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 2, 8], &[0, 0, 0, 0, 2, 8, 1, 0], &[0, 0, 0, 0, 2, 8, 0x81]] {
            assert_eq!(serving(odd), None, "{odd:?}");
        }
    }
}
