//! An HTTP service: 200 allows, 5xx is an error, everything else refuses.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;

use super::super::head::{Headers, Known, RequestHead, ResponseHead};
use super::super::route::HeaderMutations;
use super::super::subrequest::{self, Limits};
use super::Facts;
use super::answer::{Answer, Changes, Refusal, Write};
use super::check::{Check, PARTIAL_BODY, matches};
use crate::config::HttpAuthz;
use crate::error::Error;
use crate::upstream::Cluster;
use crate::upstream::pool::Pool;

/// Names of request headers to remove, in an answer that allows.
const HEADERS_TO_REMOVE: &[u8] = b"x-envoy-auth-headers-to-remove";
/// A refusal's page may be large; beyond this it is an error.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;

pub(super) async fn ask(
    check: &Check<'_>,
    service: &HttpAuthz,
    headers_to_add: &HeaderMutations,
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    timeout: Duration,
) -> Result<(Answer, Facts), Error> {
    let body = Bytes::from(check.body());
    let head = head(check, service, headers_to_add, body.len());
    let start = Instant::now();
    let answer = subrequest::send(pool, cluster, head, body, Limits { timeout, max_body: MAX_ANSWER }).await?;
    let mut head = answer.head;
    // The service's answer came as any other upstream's does.
    let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    head.headers.set(Known::XEnvoyUpstreamServiceTime, itoa::Buffer::new().format(elapsed).as_bytes());
    let facts = facts(service, &head);
    Ok((read(service, &head, answer.body), facts))
}

fn head(check: &Check<'_>, service: &HttpAuthz, headers_to_add: &HeaderMutations, length: usize) -> RequestHead {
    let request = &check.exchange.request;
    let mut head = RequestHead::new();
    head.method = request.method.clone();
    head.set_authority(request.authority());
    if service.path_override.is_empty() {
        head.set_path(&[service.path_prefix.as_bytes(), request.path()].concat());
    } else {
        head.set_path(service.path_override.as_bytes());
    }
    head.headers.push_known(Known::ContentLength, itoa::Buffer::new().format(length).as_bytes());
    let tells = |id, name: &[u8]| match id {
        Known::ContentLength | Known::TransferEncoding | Known::Connection | Known::Upgrade | Known::Expect => false,
        Known::Authorization => !matches(&check.config.disallowed_headers, name),
        _ => check.tells(name, false),
    };
    for (name, value) in check.headers(tells) {
        head.headers.push(name, &value);
    }
    if let Some(partial) = check.partial() {
        head.headers.push(PARTIAL_BODY.as_bytes(), partial.as_bytes());
    }
    headers_to_add.add_to(&mut head.headers, request, &check.exchange.info);
    head
}

fn read(service: &HttpAuthz, head: &ResponseHead, body: Vec<u8>) -> Answer {
    if head.status.is_server_error() {
        return Answer::unreachable();
    }
    if head.status == StatusCode::OK {
        return Answer::Allowed(Box::new(allowed(service, &head.headers)));
    }
    let mut refusal = Refusal { status: Some(head.status), body, headers: Vec::new() };
    for (name, value) in head.headers.iter() {
        let always = matches!(name, b"www-authenticate" | b"location");
        if name != HEADERS_TO_REMOVE && (service.client_headers.is_empty() || always || matches(&service.client_headers, name)) {
            refusal.headers.push((name.into(), value.into()));
        }
    }
    Answer::Denied(refusal)
}

/// Headers that the filter is to remember; the last of a name counts.
fn facts(service: &HttpAuthz, head: &ResponseHead) -> Facts {
    let mut facts = Facts::new();
    if service.metadata_headers.is_empty() || head.status.is_server_error() {
        return facts;
    }
    for (name, value) in head.headers.iter().filter(|(name, _)| matches(&service.metadata_headers, name)) {
        facts.insert(String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into());
    }
    facts
}

fn allowed(service: &HttpAuthz, headers: &Headers) -> Changes {
    let mut changes = Changes::default();
    for (name, value) in headers.iter() {
        if name == HEADERS_TO_REMOVE {
            let names = value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
            changes.remove.extend(names.map(|name| name.to_ascii_lowercase().into_boxed_slice()));
            continue;
        }
        if matches(&service.upstream_headers, name) {
            changes.request.push((name.into(), value.into(), Write::Set));
        }
        if matches(&service.upstream_headers_to_append, name) {
            changes.request.push((name.into(), value.into(), Write::Add));
        }
        if matches(&service.client_headers_on_success, name) {
            changes.response.push((name.into(), value.into(), Write::Add));
        }
    }
    changes
}
