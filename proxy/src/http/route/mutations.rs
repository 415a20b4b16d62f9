//! Header mutations, compiled: names prepared, values either literal or a compiled format.

use std::time::Instant;

use smallvec::SmallVec;

use super::RouteError;
use crate::config::{self, AppendAction, HeaderValueOption};
use crate::http::head::{HeaderName, Headers, RequestHead, ResponseHead};
use crate::stream_info::{FormatContext, StreamInfo};
use crate::telemetry::format::Format;

/// What one level (weighted cluster, route, virtual host, route configuration) does to headers.
#[derive(Debug, Default)]
pub struct HeaderMutations {
    request: Edits,
    response: Edits,
}

impl HeaderMutations {
    pub(in crate::http) fn compile(config: &config::HeaderMutations) -> Result<Self, RouteError> {
        Ok(Self {
            request: Edits::compile(&config.request_add, &config.request_remove)?,
            response: Edits::compile(&config.response_add, &config.response_remove)?,
        })
    }

    pub(in crate::http) fn apply_request(&self, head: &mut RequestHead, info: &StreamInfo) {
        self.request.remove(&mut head.headers);
        if !self.request.set.is_empty() {
            let context = FormatContext { info, request: Some(head), response: None, trailers: None, now: Instant::now() };
            let values = self.request.evaluate(&head.headers, &context);
            self.request.commit(&mut head.headers, &values);
        }
    }

    /// Adds to a head of our own what is to be added to requests; formats see `request`.
    pub(in crate::http) fn add_to(&self, headers: &mut Headers, request: &RequestHead, info: &StreamInfo) {
        if !self.request.set.is_empty() {
            let context = FormatContext { info, request: Some(request), response: None, trailers: None, now: Instant::now() };
            let values = self.request.evaluate(headers, &context);
            self.request.commit(headers, &values);
        }
    }

    pub(in crate::http) fn apply_response(&self, response: &mut ResponseHead, request: &RequestHead, info: &StreamInfo) {
        self.response.remove(&mut response.headers);
        if !self.response.set.is_empty() {
            let context =
                FormatContext { info, request: Some(request), response: Some(response), trailers: None, now: Instant::now() };
            let values = self.response.evaluate(&response.headers, &context);
            self.response.commit(&mut response.headers, &values);
        }
    }
}

#[derive(Debug, Default)]
struct Edits {
    remove: Box<[HeaderName]>,
    set: Box<[Edit]>,
}

#[derive(Debug)]
struct Edit {
    name: HeaderName,
    value: Value,
    action: AppendAction,
    keep_empty_value: bool,
}

#[derive(Debug)]
enum Value {
    Literal(Box<[u8]>),
    Format(Format),
}

/// Values of one round, all made before any header changes: formats see the headers as they came.
struct Values {
    planned: SmallVec<[Planned; 8]>,
    rendered: Vec<u8>,
}

enum Planned {
    Nothing,
    Literal,
    Rendered { start: usize, end: usize },
}

impl Edits {
    fn compile(set: &[HeaderValueOption], remove: &[String]) -> Result<Self, RouteError> {
        Ok(Self {
            remove: remove.iter().map(|name| header_name(name)).collect::<Result<_, _>>()?,
            set: set.iter().map(Edit::compile).collect::<Result<_, _>>()?,
        })
    }

    fn remove(&self, headers: &mut Headers) {
        for name in &self.remove {
            headers.remove_named(name);
        }
    }

    fn evaluate(&self, headers: &Headers, context: &FormatContext<'_>) -> Values {
        let mut values = Values { planned: SmallVec::new(), rendered: Vec::new() };
        for edit in &self.set {
            let planned = match edit.action {
                AppendAction::AddIfAbsent if headers.find(&edit.name).is_some() => Planned::Nothing,
                AppendAction::OverwriteIfExists if headers.find(&edit.name).is_none() => Planned::Nothing,
                _ => edit.plan(context, &mut values.rendered),
            };
            values.planned.push(planned);
        }
        values
    }

    /// Overwrites first, then additions, each at the end of the list: Envoy's order.
    fn commit(&self, headers: &mut Headers, values: &Values) {
        for overwrites in [true, false] {
            for (edit, planned) in self.set.iter().zip(&values.planned) {
                let value = match (planned, &edit.value) {
                    (Planned::Nothing, _) | (Planned::Literal, Value::Format(_)) => continue,
                    (Planned::Literal, Value::Literal(value)) => value,
                    (Planned::Rendered { start, end }, _) => &values.rendered[*start..*end],
                };
                if edit.overwrites() != overwrites {
                    continue;
                }
                if overwrites {
                    headers.remove_named(&edit.name);
                }
                headers.push(edit.name.as_str().as_bytes(), value);
            }
        }
    }
}

impl Edit {
    fn compile(option: &HeaderValueOption) -> Result<Self, RouteError> {
        let value = if option.value.contains('%') {
            Value::Format(Format::compile(&option.value).map_err(RouteError::Format)?)
        } else {
            Value::Literal(option.value.as_bytes().into())
        };
        let (action, keep_empty_value) = (option.action, option.keep_empty_value);
        Ok(Self { name: header_name(&option.name)?, value, action, keep_empty_value })
    }

    fn overwrites(&self) -> bool {
        matches!(self.action, AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists)
    }

    fn plan(&self, context: &FormatContext<'_>, rendered: &mut Vec<u8>) -> Planned {
        let (empty, planned) = match &self.value {
            Value::Literal(value) => (value.is_empty(), Planned::Literal),
            Value::Format(format) => {
                let start = rendered.len();
                format.render_header(context, rendered);
                // Values from certificates and metadata may hold anything; a header value must not.
                for byte in &mut rendered[start..] {
                    if byte.is_ascii_control() && *byte != b'\t' {
                        *byte = b' ';
                    }
                }
                (rendered.len() == start, Planned::Rendered { start, end: rendered.len() })
            }
        };
        if empty && !self.keep_empty_value { Planned::Nothing } else { planned }
    }
}

/// `host` and pseudo headers are no fields; Envoy refuses to mutate them, too.
fn header_name(name: &str) -> Result<HeaderName, RouteError> {
    let valid = !name.eq_ignore_ascii_case("host") && http::HeaderName::from_bytes(name.as_bytes()).is_ok();
    if valid { Ok(HeaderName::new(name)) } else { Err(RouteError::HeaderName(name.to_owned())) }
}
