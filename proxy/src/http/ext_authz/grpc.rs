//! A gRPC service, `envoy.service.auth.v3.Authorization/Check`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use prost::Message;

use super::super::forwarding::own_request;
use super::super::grpc;
use super::super::subrequest::Limits;
use super::Facts;
use super::answer::{Answer, Changes, HeaderWrite, Refusal, Write};
use super::check::{Check, PARTIAL_BODY};
use super::http_service::MAX_ANSWER;
use super::message::{
    Address, AttributeContext, CheckRequest, CheckResponse, HeaderMap, HeaderValue, HeaderValueOption, HttpRequest, HttpResponse,
    Metadata, OkResponse, Peer, RefusedResponse, Request, SocketAddress, Struct, Timestamp, TlsSession,
};
use crate::config::GrpcAuthz;
use crate::error::Error;
use crate::tls::{PeerCertificate, encoded_pem};
use crate::upstream::Cluster;
use crate::upstream::pool::Pool;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

pub(super) async fn ask(
    check: &Check<'_>,
    service: &GrpcAuthz,
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    timeout: Duration,
) -> Result<(Answer, Facts), Error> {
    let question = CheckRequest { attributes: Some(attributes(check)) }.encode_to_vec();
    let authority = if service.authority.is_empty() { &service.cluster } else { &service.authority };
    let mut head = grpc::head(METHOD, authority, &service.initial_metadata, timeout);
    own_request(&mut head, Some(check.exchange.info.connection.local.ip()));
    let answer = grpc::call(pool, cluster, head, grpc::frame(&question), Limits { timeout, max_body: MAX_ANSWER }).await?;
    let mut response = CheckResponse::decode(answer.as_slice()).map_err(|error| grpc::protocol(error.to_string()))?;
    let facts = facts(&mut response);
    Ok((read(response), facts))
}

fn attributes(check: &Check<'_>) -> AttributeContext {
    let info = &check.exchange.info;
    let connection = &info.connection;
    let service = check.exchange.request.headers.iter().find(|(name, _)| *name == b"x-envoy-downstream-service-cluster");
    AttributeContext {
        source: Some(Peer {
            address: Some(address(info.remote)),
            service: service.map(|(_, value)| text(value)).unwrap_or_default(),
            principal: connection.peer.as_deref().map(|peer| peer.principal().to_owned()).unwrap_or_default(),
            certificate: match connection.peer.as_deref() {
                Some(peer) if check.config.include_peer_certificate => certificate(peer),
                _ => String::new(),
            },
        }),
        destination: Some(Peer {
            address: Some(address(connection.local)),
            principal: connection.local_uri_san().unwrap_or_default().to_owned(),
            ..Peer::default()
        }),
        request: Some(Request { time: Some(time(check)), http: Some(request(check)) }),
        context_extensions: check.told.map(|told| told.context_extensions.clone()).unwrap_or_default(),
        metadata_context: Some(metadata(check)),
        tls_session: check
            .config
            .include_tls_session
            .then(|| TlsSession { sni: connection.server_name.as_deref().unwrap_or_default().to_owned() }),
        route_metadata_context: Some(Metadata::default()),
    }
}

fn time(check: &Check<'_>) -> Timestamp {
    let since = check.exchange.info.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanos) = (i64::try_from(since.as_secs()).unwrap_or_default(), since.subsec_nanos());
    Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or_default() }
}

fn request(check: &Check<'_>) -> HttpRequest {
    let head = &check.exchange.request;
    let raw = check.config.encode_raw_headers;
    let body = check.body();
    let as_bytes = check.buffer.is_some_and(|buffer| buffer.pack_as_bytes);
    HttpRequest {
        id: fastrand::u64(..).to_string(),
        method: head.method.as_str().to_owned(),
        headers: if raw { BTreeMap::new() } else { headers(check) },
        path: text(head.path()),
        host: text(head.authority()),
        scheme: head.scheme.as_str().to_owned(),
        size: i64::try_from(check.body.received()).unwrap_or(i64::MAX),
        protocol: head.version.as_str().to_owned(),
        body: if as_bytes { String::new() } else { text(&body) },
        raw_body: if as_bytes { body } else { Vec::new() },
        header_map: raw.then(|| header_map(check)),
    }
}

/// Pseudo headers, headers and whether the body was cut.
fn headers(check: &Check<'_>) -> BTreeMap<String, String> {
    let head = &check.exchange.request;
    let pseudo: [(&str, &[u8]); 4] = [
        (":authority", head.authority()),
        (":method", head.method.as_str().as_bytes()),
        (":path", head.path()),
        (":scheme", head.scheme.as_str().as_bytes()),
    ];
    let pseudo = pseudo.into_iter().filter(|(name, _)| check.tells(name.as_bytes(), true));
    let mut all: BTreeMap<String, String> = pseudo.map(|(name, value)| (name.to_owned(), text(value))).collect();
    let plain = check.headers(|_, name| check.tells(name, true));
    all.extend(plain.into_iter().map(|(name, value)| (text(name), text(&value))));
    all.extend(check.partial().map(|partial| (PARTIAL_BODY.to_owned(), partial.to_owned())));
    all
}

/// The same as a list of bytes, repeated headers apart.
fn header_map(check: &Check<'_>) -> HeaderMap {
    let head = &check.exchange.request;
    let pseudo: [(&[u8], &[u8]); 4] = [
        (b":authority", head.authority()),
        (b":method", head.method.as_str().as_bytes()),
        (b":path", head.path()),
        (b":scheme", head.scheme.as_str().as_bytes()),
    ];
    let value =
        |(name, value): (&[u8], &[u8])| HeaderValue { key: text(name), raw_value: value.to_vec(), ..HeaderValue::default() };
    let all = pseudo.into_iter().chain(head.headers.iter()).filter(|(name, _)| check.tells(name, true));
    let mut headers: Vec<HeaderValue> = all.map(value).collect();
    headers.extend(check.partial().map(|partial| value((PARTIAL_BODY.as_bytes(), partial.as_bytes()))));
    HeaderMap { headers }
}

/// Text for a field that must be UTF-8: every byte that is none becomes `!`, as in Envoy.
fn text(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '!'));
    }
    out
}

fn address(socket: SocketAddr) -> Address {
    let (address, port_value) = (socket.ip().to_canonical().to_string(), socket.port().into());
    Address { socket_address: Some(SocketAddress { address, port_value }) }
}

/// The leaf in PEM, percent-encoded as in x-forwarded-client-cert.
fn certificate(peer: &PeerCertificate) -> String {
    let mut pem = Vec::new();
    encoded_pem(&peer.chain[..1.min(peer.chain.len())], &mut pem);
    text(&pem)
}

/// What filters before this one have found out, as far as the service is to know.
fn metadata(check: &Check<'_>) -> Metadata {
    let known = check.exchange.info.metadata.iter().flat_map(|metadata| metadata.filters());
    let told = known.filter(|(filter, _)| check.config.metadata_namespaces.iter().any(|wanted| wanted == filter));
    Metadata {
        filter_metadata: told.filter_map(|(filter, value)| Some((filter.to_owned(), Struct::of(value.as_object()?)))).collect(),
    }
}

/// What the service wants remembered; the field inside of `ok_response` is older and goes first.
fn facts(response: &mut CheckResponse) -> Facts {
    let older = match &mut response.http_response {
        Some(HttpResponse::Ok(ok)) => ok.dynamic_metadata.take(),
        _ => None,
    };
    older.or_else(|| response.dynamic_metadata.take()).map(Struct::into_json).unwrap_or_default()
}

fn read(response: CheckResponse) -> Answer {
    let code = response.status.map_or(0, |status| status.code);
    match response.http_response {
        Some(HttpResponse::Ok(ok)) if code == 0 => Answer::Allowed(Box::new(allowed(ok))),
        _ if code == 0 => Answer::Allowed(Box::default()),
        Some(HttpResponse::Error(error)) => Answer::Failed(Some(refused(error))),
        Some(HttpResponse::Denied(denied)) => Answer::Denied(refused(denied)),
        Some(HttpResponse::Ok(_)) | None => Answer::Denied(Refusal::default()),
    }
}

fn allowed(ok: OkResponse) -> Changes {
    let lower = |name: &str| name.to_ascii_lowercase().into_bytes().into_boxed_slice();
    // On requests, Envoy looks at `append` alone.
    let request = ok.headers.into_iter().filter_map(|option| {
        let how = if option.append.as_ref().is_some_and(|append| append.value) { Write::Append } else { Write::Set };
        header(option, how)
    });
    let response = ok.response_headers_to_add.into_iter().filter_map(|option| {
        let how = match (&option.append, option.append_action) {
            (Some(append), _) if append.value => Write::Add,
            (Some(_), _) | (None, 2) => Write::Set,
            (None, 1) => Write::AddIfAbsent,
            (None, 3) => Write::SetIfPresent,
            (None, _) => Write::Add,
        };
        header(option, how)
    });
    Changes {
        request: request.collect(),
        remove: ok.headers_to_remove.iter().map(|name| lower(name)).collect(),
        query_set: ok.query_parameters_to_set.into_iter().map(|one| (one.key, one.value)).collect(),
        query_remove: ok.query_parameters_to_remove,
        response: response.collect(),
    }
}

fn header(option: HeaderValueOption, how: Write) -> Option<HeaderWrite> {
    let HeaderValue { key, value, .. } = option.header?;
    Some((key.to_ascii_lowercase().into_bytes().into(), value.into_bytes().into(), how))
}

fn refused(response: RefusedResponse) -> Refusal {
    // A header that is to be appended finds nothing to be appended to.
    let headers = response.headers.into_iter().filter(|option| option.append.as_ref().is_none_or(|append| !append.value));
    let status = response.status.and_then(|status| StatusCode::from_u16(u16::try_from(status.code).ok()?).ok());
    Refusal {
        status: status.filter(|status| !status.is_informational()),
        headers: headers.filter_map(|option| header(option, Write::Set)).map(|(name, value, _)| (name, value)).collect(),
        body: response.body.into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{BoolValue, HttpStatus, Status};
    use super::*;

    fn option(name: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
        let header = HeaderValue { key: name.to_owned(), value: "v".to_owned(), ..HeaderValue::default() };
        HeaderValueOption { header: Some(header), append: append.map(|value| BoolValue { value }), append_action }
    }

    #[test]
    fn only_code_zero_lets_a_request_pass() {
        let response =
            |code, http_response| CheckResponse { status: Some(Status { code }), http_response, dynamic_metadata: None };
        assert!(matches!(read(response(0, None)), Answer::Allowed(_)));
        assert!(matches!(read(response(0, Some(HttpResponse::Denied(RefusedResponse::default())))), Answer::Allowed(_)));
        assert!(matches!(read(response(7, Some(HttpResponse::Ok(OkResponse::default())))), Answer::Denied(_)));
        assert!(matches!(read(response(16, None)), Answer::Denied(Refusal { status: None, .. })));
        assert!(matches!(read(response(13, Some(HttpResponse::Error(RefusedResponse::default())))), Answer::Failed(Some(_))));
        let status = Some(HttpStatus { code: 402 });
        let denied =
            RefusedResponse { status, headers: vec![option("x-a", None, 0), option("x-b", Some(true), 0)], body: "b".into() };
        let Answer::Denied(refusal) = read(response(7, Some(HttpResponse::Denied(denied)))) else { panic!() };
        assert_eq!((refusal.status, refusal.headers.len(), &refusal.body[..]), (StatusCode::from_u16(402).ok(), 1, &b"b"[..]));
    }

    #[test]
    fn requests_look_at_append_and_responses_at_the_action_too() {
        let options = vec![option("A", Some(true), 0), option("b", Some(false), 0), option("c", None, 3)];
        let changes = allowed(OkResponse { headers: options.clone(), response_headers_to_add: options, ..OkResponse::default() });
        let how = |all: &[HeaderWrite]| all.iter().map(|(_, _, how)| *how).collect::<Vec<_>>();
        assert_eq!(how(&changes.request), [Write::Append, Write::Set, Write::Set]);
        assert_eq!(how(&changes.response), [Write::Add, Write::Set, Write::SetIfPresent]);
        assert_eq!(&*changes.request[0].0, b"a");
    }

    #[test]
    fn bytes_that_are_no_text_show_as_exclamation_marks() {
        assert_eq!(text(b"a\xffb\xc3\xa4"), "a!bä");
    }
}
