//! Who the caller is and which headers are believed.

use std::sync::Arc;

use skiff_proxy::config::{ForwardClientCert, HttpConnectionManager, RouteSource, TrafficDirection};
use skiff_proxy::http::forwarding::{Forwarding, prepare_request};
use skiff_proxy::http::h1::head::{HeadLimits, parse_request};
use skiff_proxy::http::head::{Known, RequestHead};

use crate::facts;
use crate::input::Input;

const ELEMENT: &[u8] = b"By=spiffe://cluster.local/ns/b/sa/own;Hash=00ff;Subject=\"\";URI=spiffe://cluster.local/ns/a/sa/caller";

const RULES: [ForwardClientCert; 5] = [
    ForwardClientCert::Sanitize,
    ForwardClientCert::ForwardOnly,
    ForwardClientCert::AppendForward,
    ForwardClientCert::SanitizeSet,
    ForwardClientCert::AlwaysForwardOnly,
];

/// What the router does for internal callers only.
const STEERING: [&str; 7] = [
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
];

/// A request head on its way from the codec to the routes, under any rules.
pub fn forwarding(data: &[u8]) {
    let mut input = Input::new(data);
    let (choice, second) = (input.byte(), input.byte());
    let routes = RouteSource::Named(String::new());
    let mut manager = HttpConnectionManager::new("fuzz", TrafficDirection::Inbound, routes);
    manager.use_remote_address = choice & 1 != 0;
    manager.xff_num_trusted_hops = u32::from(choice >> 1 & 3);
    manager.skip_xff_append = choice & 8 != 0;
    manager.append_x_forwarded_port = choice & 16 != 0;
    manager.internal_ranges = if choice & 32 != 0 { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() };
    manager.preserve_external_request_id = choice & 64 != 0;
    manager.generate_request_id = true;
    manager.forward_client_cert = RULES[usize::from(second) % RULES.len()];
    let mtls = second & 64 != 0;
    let peer = mtls.then(|| Arc::new(facts::certificate(&["spiffe://cluster.local/ns/a/sa/caller"], &[], "")));
    let connection = facts::connection(peer);

    let mut head = RequestHead::new();
    let Ok(Some(parsed)) = parse_request(input.rest(), &HeadLimits::default(), &mut head) else { return };
    let claimed = head.headers.contains(Known::XForwardedFor);
    let Ok(prepared) = prepare_request(&mut head, &connection, ELEMENT, &Forwarding::from(&manager)) else { return };

    for id in [Known::KeepAlive, Known::ProxyConnection, Known::TransferEncoding] {
        assert!(!head.headers.contains(id), "{}", id.as_str());
    }
    assert!(prepared.upgrade || !head.headers.contains(Known::Connection), "connection without an upgrade");
    assert!(!prepared.upgrade || parsed.upgrade);
    assert!(head.headers.get(Known::Te).is_none_or(|te| te == b"trailers"));
    assert!(head.headers.get(Known::XRequestId).is_some_and(|id| !id.is_empty()));
    for id in
        [Known::XForwardedFor, Known::XForwardedProto, Known::XRequestId, Known::XForwardedClientCert, Known::XEnvoyInternal]
    {
        assert!(head.headers.get_all(id).count() <= 1, "{} twice", id.as_str());
    }
    assert!(prepared.internal || !head.headers.contains(Known::XEnvoyInternal), "a caller from outside counts as internal");
    assert!(!prepared.internal || choice & 32 != 0, "internal without internal ranges");
    if manager.use_remote_address {
        assert!(!prepared.internal || !claimed, "internal on the word of another");
        let appended = head.headers.get(Known::XForwardedFor).is_some_and(|value| value.ends_with(b"10.0.0.1"));
        assert!(appended || manager.skip_xff_append, "x-forwarded-for does not end with the peer");
    }
    check_client_cert(&head, manager.forward_client_cert, mtls);
    if !prepared.internal {
        let control = |name: &[u8]| STEERING.iter().any(|steering| steering.as_bytes() == name);
        assert!(!head.headers.iter().any(|(name, _)| control(name)), "a caller from outside steers the router");
    }
}

fn check_client_cert(head: &RequestHead, rule: ForwardClientCert, mtls: bool) {
    let value = head.headers.get(Known::XForwardedClientCert);
    match rule {
        ForwardClientCert::AlwaysForwardOnly => {}
        ForwardClientCert::Sanitize => assert_eq!(value, None),
        _ if !mtls => assert_eq!(value, None, "believed without a certificate"),
        ForwardClientCert::SanitizeSet => assert_eq!(value, Some(ELEMENT)),
        ForwardClientCert::AppendForward => {
            let value = value.expect("our own element");
            assert!(value == ELEMENT || value.ends_with(&[b",", ELEMENT].concat()));
        }
        ForwardClientCert::ForwardOnly => {}
    }
}
