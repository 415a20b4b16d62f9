//! OTLP: the messages of `opentelemetry.proto`, as far as we send them, and the call that carries them.
//!
//! Tags are those of the published API. A request is encoded by hand around records that are encoded already, each as the
//! repeated field that spans and log records have in common.
//!
//! <https://opentelemetry.io/docs/specs/otlp/>

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use prost::{Message, Oneof};

use crate::config::ExportService;
use crate::error::Error;
use crate::http::grpc;
use crate::http::head::{Known, RequestHead};
use crate::http::subrequest::{self, Limits};
use crate::upstream::Cluster;
use crate::upstream::pool::Pool;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Logs,
}

impl Signal {
    fn method(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }

    /// As Envoy, only spans say who made them.
    fn scope(self) -> Vec<u8> {
        match self {
            Self::Traces => Scope { name: "skiff".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }.encode_to_vec(),
            Self::Logs => Vec::new(),
        }
    }
}

/// `opentelemetry.proto.trace.v1.Span`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub(crate) trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(int32, tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    pub(crate) flags: u32,
}

/// `opentelemetry.proto.trace.v1.Status`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

/// `STATUS_CODE_ERROR`.
pub(crate) const STATUS_ERROR: i32 = 2;

/// `opentelemetry.proto.logs.v1.LogRecord`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LogRecord {
    #[prost(fixed64, tag = "1")]
    pub(crate) time_unix_nano: u64,
    #[prost(message, optional, tag = "5")]
    pub(crate) body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    pub(crate) trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "10")]
    pub(crate) span_id: Vec<u8>,
}

/// `opentelemetry.proto.common.v1.KeyValue`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<AnyValue>,
}

impl KeyValue {
    pub(crate) fn text(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: Some(AnyValue::text(value)) }
    }
}

/// `opentelemetry.proto.common.v1.AnyValue`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 6")]
    pub(crate) value: Option<Value>,
}

impl AnyValue {
    pub(crate) fn text(value: impl Into<String>) -> Self {
        Self { value: Some(Value::Text(value.into())) }
    }
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(message, tag = "6")]
    List(KeyValueList),
}

/// `opentelemetry.proto.common.v1.KeyValueList`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValueList {
    #[prost(message, repeated, tag = "1")]
    pub(crate) values: Vec<KeyValue>,
}

/// `opentelemetry.proto.resource.v1.Resource`.
#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

/// `opentelemetry.proto.common.v1.InstrumentationScope`: who makes the spans.
#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

/// `ExportTraceServiceResponse` and `ExportLogsServiceResponse`, which are alike.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
}

/// An encoded resource with these attributes; the last of one name counts.
pub(crate) fn resource(attributes: impl IntoIterator<Item = (String, String)>) -> Bytes {
    let mut all: Vec<(String, String)> = Vec::new();
    for (key, value) in attributes {
        match all.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => all.push((key, value)),
        }
    }
    Resource { attributes: all.into_iter().map(|(key, value)| KeyValue::text(key, value)).collect() }.encode_to_vec().into()
}

/// Field of a span in `ScopeSpans`, of a record in `ScopeLogs`; of both of these in `ResourceSpans` and `ResourceLogs`.
const RECORDS: u32 = 2;
/// Field of the resource in `ResourceSpans` and `ResourceLogs`, and of those in the request.
const RESOURCE: u32 = 1;

/// Field of the scope in `ScopeSpans` and `ScopeLogs`.
const SCOPE: u32 = 1;

/// A span or log record as [`super::Exporter::push`] takes it.
pub(crate) fn record(message: &impl Message, out: &mut Vec<u8>) {
    prefix(RECORDS, message.encoded_len(), out);
    // Only a buffer without room fails, and this one grows.
    let _ = message.encode(out);
}

fn prefix(field: u32, length: usize, out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

/// The whole request: one resource, one scope, all records.
fn request(resource: &[u8], scope: &[u8], records: &[u8]) -> Vec<u8> {
    let nested = |length: usize| 1 + encoded_len_varint(length as u64) + length;
    let scoped = if scope.is_empty() { 0 } else { nested(scope.len()) } + records.len();
    let inner = nested(resource.len()) + nested(scoped);
    let mut out = Vec::with_capacity(nested(inner));
    prefix(RESOURCE, inner, &mut out);
    prefix(RESOURCE, resource.len(), &mut out);
    out.extend_from_slice(resource);
    prefix(RECORDS, scoped, &mut out);
    if !scope.is_empty() {
        prefix(SCOPE, scope.len(), &mut out);
        out.extend_from_slice(scope);
    }
    out.extend_from_slice(records);
    out
}

/// Sends records; how many of them were refused.
pub(super) async fn export(
    signal: Signal,
    resource: &[u8],
    records: &[u8],
    service: &ExportService,
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    limits: Limits,
) -> Result<u64, Error> {
    let request = request(resource, &signal.scope(), records);
    let answer = match &service.http_path {
        None => {
            let head = grpc::head(signal.method(), &service.authority, &service.headers, limits.timeout);
            grpc::call(pool, cluster, head, grpc::frame(&request), limits).await?
        }
        Some(path) => {
            let mut head = RequestHead::new();
            head.method = Method::POST;
            head.set_authority(service.authority.as_bytes());
            head.set_path(path.as_bytes());
            head.headers.push_known(Known::ContentType, b"application/x-protobuf");
            for (name, value) in &service.headers {
                head.headers.push(name.as_bytes(), value.as_bytes());
            }
            let answer = subrequest::send(pool, cluster, head, request.into(), limits).await?;
            if answer.head.status != StatusCode::OK {
                return Err(grpc::protocol(format!("status {}", answer.head.status)));
            }
            answer.body
        }
    };
    // An answer that cannot be read is a yes all the same: the status said so.
    let partial = Response::decode(answer.as_slice()).ok().and_then(|response| response.partial_success);
    Ok(partial.and_then(|partial| u64::try_from(partial.rejected).ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_resource_scope_and_records() {
        let mut records = Vec::new();
        let log = LogRecord { body: Some(AnyValue::text("b")), ..LogRecord::default() };
        record(&log, &mut records);
        record(&log, &mut records);
        let resource = resource([("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())]);
        // Resource {a: 2}: one attribute, the last value.
        assert_eq!(&resource[..], [10, 8, 10, 1, b'a', 18, 3, 10, 1, b'2']);
        let one = [18, 5, 42, 3, 10, 1, b'b'];
        let expected = [&[10, 28, 10, 10][..], &resource, &[18, 14], &one, &one].concat();
        assert_eq!(request(&resource, b"", &records), expected);
        let expected = [&[10, 31, 10, 10][..], &resource, &[18, 17, 10, 1, b's'], &one, &one].concat();
        assert_eq!(request(&resource, b"s", &records), expected);
    }

    #[test]
    fn a_refused_share_is_told_by_the_answer() {
        let answer = Response { partial_success: Some(PartialSuccess { rejected: 3 }) }.encode_to_vec();
        assert_eq!(answer, [10, 2, 8, 3]);
        assert_eq!(Response::decode(&b""[..]).unwrap().partial_success, None);
    }
}
