//! The tags of spans: Envoy's own and configured ones.

use std::borrow::Cow;

use serde_json::Value;

use super::protocol;
use crate::config::{self, CustomTag, TagValue};
use crate::error::ErrorKind;
use crate::flags::ResponseFlags;
use crate::http::head::{HeaderName, Known, RequestHead, Version};
use crate::stream_info::{FormatContext, LocalInfo};
use crate::telemetry::format::{Format, FormatError};
use crate::telemetry::grpc_status;

/// Bytes of a value, and of a name, that are kept: a caller chooses many of them.
const MAX_VALUE: usize = 4096;

/// Tags in the order in which they were first set; each name once.
#[derive(Debug, Default)]
pub(crate) struct Tags(Vec<(Cow<'static, str>, String)>);

impl Tags {
    fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl AsRef<str>) {
        let (name, value) = (name.into(), bounded(value.as_ref()).to_owned());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    fn set_bytes(&mut self, name: &'static str, value: &[u8]) {
        self.set(name, String::from_utf8_lossy(value));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl IntoIterator for Tags {
    type Item = (Cow<'static, str>, String);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Tags {
    type Item = &'a (Cow<'static, str>, String);
    type IntoIter = std::slice::Iter<'a, (Cow<'static, str>, String)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// The beginning of a text that is not too long.
pub(super) fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_VALUE)]
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttemptEnd {
    /// The status of its response; 0 when there was none.
    pub(crate) code: u16,
    /// Why it ended without its whole response.
    pub(crate) failure: Option<ErrorKind>,
    /// Attempts before it.
    pub(crate) retries: u32,
    /// What the endpoint was spoken to in; `None` when it was not reached.
    pub(crate) protocol: Option<Version>,
}

/// Envoy's tags of a request, then the configured ones.
pub(super) fn of_request(config: &config::Tracing, local: &LocalInfo, custom: &CustomTags, stream: &FormatContext<'_>) -> Tags {
    let (info, mut tags) = (stream.info, Tags::default());
    tags.set("node_id", &local.node);
    tags.set("zone", &local.zone);
    if let Some(head) = stream.request {
        request(head, config.max_path_tag_length as usize, &mut tags);
    }
    tags.set("http.protocol", protocol(info.protocol));
    tags.set("peer.address", info.connection.remote.ip().to_string());
    tags.set("request_size", info.bytes_received.to_string());
    tags.set("response_size", info.bytes_sent.to_string());
    common(stream, info.response_code, info.flags, custom, &mut tags);
    grpc_response(stream, &mut tags);
    tags
}

/// Envoy's tags of an attempt, then the configured ones.
pub(super) fn of_attempt(custom: &CustomTags, stream: &FormatContext<'_>, end: AttemptEnd) -> Tags {
    let mut tags = Tags::default();
    let mut flags = ResponseFlags::NONE;
    if end.retries > 0 {
        tags.set("retry.count", end.retries.to_string());
    }
    if let Some(kind) = end.failure {
        flags = kind.reply(None, false).flag;
        tags.set("error", "true");
        if let Some(reason) = kind.reset_reason() {
            tags.set("error.reason", reason);
        }
    }
    tags.set("http.protocol", protocol(end.protocol));
    if let Some(host) = &stream.info.upstream_host {
        tags.set("upstream_address", host);
        tags.set("peer.address", host);
    }
    common(stream, end.code, flags, custom, &mut tags);
    tags
}

fn request(head: &RequestHead, max_path: usize, tags: &mut Tags) {
    let header = |name: &str| head.headers.iter().find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value);
    if let Some(id) = head.headers.get(Known::XRequestId) {
        tags.set_bytes("guid:x-request-id", id);
    }
    let path = head.headers.get(Known::XEnvoyOriginalPath).unwrap_or(head.path());
    let path = String::from_utf8_lossy(&path[..path.len().min(max_path)]);
    tags.set("http.url", format!("{}://{}{path}", head.scheme.as_str(), String::from_utf8_lossy(head.authority())));
    tags.set("http.method", head.method.as_str());
    tags.set("downstream_cluster", or_dash(header("x-envoy-downstream-service-cluster")));
    tags.set("user_agent", or_dash(head.headers.get(Known::UserAgent)));
    if let Some(id) = header("x-client-trace-id") {
        tags.set_bytes("guid:x-client-trace-id", id);
    }
    if head.is_grpc() {
        tags.set_bytes("grpc.path", head.path());
        tags.set_bytes("grpc.authority", head.authority());
        tags.set("grpc.content_type", or_dash(head.headers.get(Known::ContentType)));
        if let Some(timeout) = head.headers.get(Known::GrpcTimeout) {
            tags.set_bytes("grpc.timeout", timeout);
        }
    }
}

fn or_dash(value: Option<&[u8]>) -> Cow<'_, str> {
    value.map_or(Cow::Borrowed("-"), String::from_utf8_lossy)
}

fn common(stream: &FormatContext<'_>, code: u16, flags: ResponseFlags, custom: &CustomTags, tags: &mut Tags) {
    let info = stream.info;
    tags.set("component", "proxy");
    if let Some(cluster) = &info.upstream_cluster {
        tags.set("upstream_cluster", cluster);
        tags.set("upstream_cluster.name", cluster);
    }
    tags.set("http.status_code", code.to_string());
    let flags: Vec<&str> = flags.short_names().collect();
    tags.set("response_flags", if flags.is_empty() { "-".to_owned() } else { flags.join(",") });
    if code == 0 || code >= 500 {
        tags.set("error", "true");
    }
    custom.set(stream, tags);
}

/// Statuses that say that the service failed, not its caller.
const GRPC_FAILURES: [u32; 6] = [2, 4, 12, 13, 14, 15];

fn grpc_response(stream: &FormatContext<'_>, tags: &mut Tags) {
    let sent = || [stream.trailers, stream.response.map(|head| &head.headers)].into_iter().flatten();
    if !sent().any(|headers| headers.contains(Known::GrpcStatus)) {
        return;
    }
    let Some(status) = grpc_status(stream) else { return };
    tags.set("grpc.status_code", status.to_string());
    if let Some(message) = sent().find_map(|headers| headers.get(Known::GrpcMessage)) {
        tags.set_bytes("grpc.message", message);
    }
    if GRPC_FAILURES.contains(&status) {
        tags.set("error", "true");
    }
}

/// Configured tags, compiled.
#[derive(Debug)]
pub(super) struct CustomTags(Box<[(String, Source)]>);

#[derive(Debug)]
enum Source {
    Text(String),
    Header { name: HeaderName, default: String },
    Metadata { filter: String, path: Vec<String>, default: String },
    Format(Format),
}

impl CustomTags {
    pub(super) fn compile(tags: &[CustomTag]) -> Result<Self, FormatError> {
        let compile = |tag: &CustomTag| {
            let source = match &tag.value {
                TagValue::Literal(text) => Source::Text(text.clone()),
                TagValue::Environment { name, default } => Source::Text(std::env::var(name).unwrap_or_else(|_| default.clone())),
                TagValue::RequestHeader { name, default } => {
                    Source::Header { name: HeaderName::new(name), default: default.clone() }
                }
                TagValue::Metadata { filter, path, default } => {
                    Source::Metadata { filter: filter.clone(), path: path.clone(), default: default.clone() }
                }
                TagValue::Format(format) => Source::Format(Format::compile(format)?),
            };
            Ok((tag.name.clone(), source))
        };
        Ok(Self(tags.iter().map(compile).collect::<Result<_, _>>()?))
    }

    fn set(&self, stream: &FormatContext<'_>, tags: &mut Tags) {
        for (name, source) in &self.0 {
            let value = source.value(stream);
            if !value.is_empty() {
                tags.set(name.clone(), value);
            }
        }
    }
}

impl Source {
    fn value<'a>(&'a self, stream: &FormatContext<'a>) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Header { name, default } => {
                let value = stream.request.and_then(|head| head.headers.find(name));
                value.map_or(Cow::Borrowed(default.as_str()), String::from_utf8_lossy)
            }
            Self::Metadata { filter, path, default } => match stream.info.found_out(filter, path) {
                None | Some(Value::Null) => default.into(),
                Some(Value::String(text)) => text.into(),
                Some(other) => other.to_string().into(),
            },
            Self::Format(format) => {
                let mut text = Vec::new();
                format.render_header(stream, &mut text);
                String::from_utf8_lossy(&text).into_owned().into()
            }
        }
    }
}
