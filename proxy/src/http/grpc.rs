//! Unary gRPC calls of this proxy's own, as far as they are the same for every service.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, StatusCode};

use super::head::{Known, RequestHead, Version};
use super::subrequest::{self, Limits};
use crate::error::{Error, ErrorKind};
use crate::upstream::Cluster;
use crate::upstream::pool::Pool;

/// The head of a call of `method` (`/package.Service/Method`).
pub(crate) fn head(method: &str, authority: &str, metadata: &[(String, String)], timeout: Duration) -> RequestHead {
    let mut head = RequestHead::new();
    head.version = Version::Http2;
    head.method = Method::POST;
    head.set_path(method.as_bytes());
    head.set_authority(authority.as_bytes());
    head.headers.push_known(Known::Te, b"trailers");
    head.headers.push_known(Known::GrpcTimeout, format!("{}m", timeout.as_millis()).as_bytes());
    head.headers.push_known(Known::ContentType, b"application/grpc");
    for (name, value) in metadata {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

/// Makes the call; the encoded message that answers it.
///
/// # Errors
/// As [`subrequest::send`]; [`ErrorKind::UpstreamProtocol`] for a status that is not OK and for what is not one message.
pub(crate) async fn call(
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    head: RequestHead,
    message: Bytes,
    limits: Limits,
) -> Result<Vec<u8>, Error> {
    let answer = subrequest::send(pool, cluster, head, message, limits).await?;
    let status = answer.trailers.as_deref().unwrap_or(&answer.head.headers).get(Known::GrpcStatus);
    if answer.head.status != StatusCode::OK || status != Some(b"0") {
        let status = status.map(String::from_utf8_lossy);
        return Err(protocol(format!("status {}, grpc-status {status:?}", answer.head.status)));
    }
    unframe(&answer.body).map(<[u8]>::to_vec).ok_or_else(|| protocol("expected one message".to_owned()))
}

/// What the service said is none of its protocol.
pub(crate) fn protocol(reason: String) -> Error {
    Error::with_source(ErrorKind::UpstreamProtocol, io::Error::other(reason))
}

/// A message behind its prefix: not compressed, and how long it is.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(message);
    out.freeze()
}

fn unframe(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    (prefix[0] == 0 && message.len() == length).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_exactly_one_message() {
        assert_eq!(unframe(&frame(b"abc")), Some(&b"abc"[..]));
        assert_eq!(unframe(&frame(b"")), Some(&b""[..]));
        for bad in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x02a", b"\0\0\0\0\x01ab"] {
            assert_eq!(unframe(bad), None, "{bad:?}");
        }
    }
}
