//! What a service answers, and what that does to the request.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::super::head::{Headers, Known, RequestHead, Scheme};
use super::super::local_reply::LocalReply;
use crate::flags::ResponseFlags;

/// A decision.
pub(super) enum Answer {
    /// The request passes, changed.
    Allowed(Box<Changes>),
    /// It does not.
    Denied(Refusal),
    /// Nothing was decided; a gRPC service may say what the caller is told then.
    Failed(Option<Refusal>),
}

impl Answer {
    /// No decision at all.
    pub(super) fn unreachable() -> Self {
        Self::Failed(None)
    }
}

/// How a header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// A further line.
    Add,
    /// In place of all lines.
    Set,
    /// To the end of the value, where there is one.
    Append,
    /// Only where there is none.
    AddIfAbsent,
    /// Only in place of one.
    SetIfPresent,
}

/// Name and value.
pub(super) type Header = (Box<[u8]>, Box<[u8]>);

/// Name, value and how it is written.
pub(crate) type HeaderWrite = (Box<[u8]>, Box<[u8]>, Write);

/// What becomes of a request that passes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Pseudo headers included.
    pub(super) request: Vec<HeaderWrite>,
    pub(super) remove: Vec<Box<[u8]>>,
    pub(super) query_set: Vec<(String, String)>,
    pub(super) query_remove: Vec<String>,
    /// On the response.
    pub(super) response: Vec<HeaderWrite>,
}

/// Something that cannot stand in a head.
pub(super) struct Fault(String);

impl Fault {
    /// What Envoy makes of such a request on its way up.
    pub(super) fn reply(self) -> LocalReply {
        let details = format!("filter_removed_required_request_headers{{{}}}", self.0.replace(' ', "_"));
        let flag = ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR;
        LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, self.0.into_bytes(), flag, details)
    }
}

impl Changes {
    /// Whether everything can be done.
    pub(super) fn check(&self) -> Result<(), Fault> {
        for (name, value, _) in self.request.iter().chain(&self.response) {
            check_header(name, value)?;
        }
        Ok(())
    }

    /// Does it; whether anything of the request changed. Overwrites come first, then additions, removals, the query.
    pub(super) fn apply(&self, head: &mut RequestHead) -> bool {
        for pass in [Write::Set, Write::Add, Write::Append] {
            for (name, value, _) in self.request.iter().filter(|(_, _, how)| *how == pass) {
                write_request(head, name, value, pass);
            }
        }
        for name in self.remove.iter().filter(|name| !name.starts_with(b":") && ***name != *b"host") {
            head.headers.retain(|_, known, _| *known != **name);
        }
        if !self.query_set.is_empty() || !self.query_remove.is_empty() {
            let path = with_query(head.path(), &self.query_set, &self.query_remove);
            head.set_path(&path);
        }
        !(self.request.is_empty() && self.remove.is_empty() && self.query_set.is_empty() && self.query_remove.is_empty())
    }
}

fn write_request(head: &mut RequestHead, name: &[u8], value: &[u8], how: Write) {
    match name {
        b":path" => head.set_path(value),
        b":authority" | b"host" => head.set_authority(value),
        b":method" => {
            if let Ok(method) = Method::from_bytes(value) {
                head.method = method;
            }
        }
        b":scheme" => head.scheme = if value == b"https" { Scheme::Https } else { Scheme::Http },
        _ => write(&mut head.headers, name, value, how),
    }
}

/// Writes one header. Framing belongs to the codec and is left alone.
pub(super) fn write(headers: &mut Headers, name: &[u8], value: &[u8], how: Write) {
    if matches!(Known::of(name), Known::ContentLength | Known::TransferEncoding | Known::Connection) {
        return;
    }
    let present = headers.iter().any(|(known, _)| known == name);
    match how {
        Write::AddIfAbsent if present => {}
        Write::SetIfPresent | Write::Append if !present => {}
        Write::Add | Write::AddIfAbsent => {
            headers.push(name, value);
        }
        Write::Set | Write::SetIfPresent => {
            headers.retain(|_, known, _| known != name);
            headers.push(name, value);
        }
        Write::Append => {
            let name = super::super::head::HeaderName::new(&String::from_utf8_lossy(name));
            let mut joined = headers.joined(&name).map(Cow::into_owned).unwrap_or_default();
            joined.push(b',');
            joined.extend_from_slice(value);
            headers.set_named(&name, &joined);
        }
    }
}

/// Writes what a service wants of a response.
pub(in super::super) fn write_response(headers: &mut Headers, writes: &[HeaderWrite]) {
    for pass in [Write::Add, Write::Set, Write::AddIfAbsent, Write::SetIfPresent] {
        for (name, value, _) in writes.iter().filter(|(_, _, how)| *how == pass) {
            write(headers, name, value, pass);
        }
    }
}

fn check_header(name: &[u8], value: &[u8]) -> Result<(), Fault> {
    let lossy = String::from_utf8_lossy(name);
    let bad_value = || Fault(format!("invalid header value for: {lossy}"));
    let valid = match name {
        b":path" => value.starts_with(b"/") && PathAndQuery::try_from(value).is_ok(),
        b":method" => Method::from_bytes(value).is_ok(),
        b":authority" | b"host" => !value.is_empty() && value.iter().all(u8::is_ascii_graphic),
        b":scheme" => matches!(value, b"http" | b"https"),
        _ if HeaderName::from_bytes(name).is_err() => return Err(Fault(format!("invalid header name: {lossy}"))),
        _ => HeaderValue::from_bytes(value).is_ok(),
    };
    if valid { Ok(()) } else { Err(bad_value()) }
}

/// The path with these parameters of its query set, replaced or removed.
fn with_query(path: &[u8], set: &[(String, String)], remove: &[String]) -> Vec<u8> {
    let path = String::from_utf8_lossy(path);
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let mut parameters: Vec<(&str, &str)> = Vec::new();
    for (name, value) in query.split('&').filter(|one| !one.is_empty()).map(|one| one.split_once('=').unwrap_or((one, ""))) {
        if !parameters.iter().any(|(known, _)| *known == name) {
            parameters.push((name, value));
        }
    }
    for (name, value) in set {
        match parameters.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => parameters.push((name, value)),
        }
    }
    parameters.retain(|(name, _)| !remove.iter().any(|gone| gone == name));
    parameters.sort_unstable();
    let mut out = path.as_bytes().to_vec();
    for (index, (name, value)) in parameters.into_iter().enumerate() {
        out.push(if index == 0 { b'?' } else { b'&' });
        // What cannot stand in a query is left out: it could end the request line.
        let legal = |b: &u8| b.is_ascii_graphic() && *b != b'#';
        out.extend(name.bytes().filter(legal));
        out.push(b'=');
        out.extend(value.bytes().filter(legal));
    }
    out
}

/// What the caller of a refused request is told.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: Option<StatusCode>,
    pub(super) headers: Vec<Header>,
    pub(super) body: Vec<u8>,
}

impl Refusal {
    /// The reply, or nothing when a header of it cannot be.
    pub(super) fn reply(self, default: StatusCode, details: &'static str) -> Option<LocalReply> {
        let status = self.status.unwrap_or(default);
        let mut reply = LocalReply::new(status, self.body, ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE, details);
        for (name, value) in &self.headers {
            let hop = matches!(
                Known::of(name),
                Known::ContentLength | Known::TransferEncoding | Known::Connection | Known::KeepAlive | Known::Upgrade
            );
            if hop || name.starts_with(b":") {
                continue;
            }
            check_header(name, value).ok()?;
            reply.headers.push(name, value);
        }
        Some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_keeps_its_other_parameters() {
        let set = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert_eq!(with_query(b"/a?x=1&y=2", &set("y", "3"), &["x".to_owned()]), b"/a?y=3");
        assert_eq!(with_query(b"/a", &set("q", "new HTTP/1.1\r\n"), &[]), b"/a?q=newHTTP/1.1");
        assert_eq!(with_query(b"/a?x=1", &[], &["x".to_owned()]), b"/a");
    }
}
