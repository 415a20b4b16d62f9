//! Policies: what an ALLOW rule matches, the same DENY rule matches too, so that doubt never opens a door.

use std::sync::Arc;

use skiff_proxy::config::{
    HeaderMatch, HeaderMatcher, Permission, Policy, Principal, RbacAction, RbacRules, Regex, StringMatch, StringMatcher,
};
use skiff_proxy::http::h1::head::{HeadLimits, parse_request};
use skiff_proxy::http::head::RequestHead;
use skiff_proxy::rbac::{Engine, RequestContext};

use crate::facts;
use crate::input::Input;

/// Any rule and any request.
pub fn rbac(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let permission = permission(&mut input, 0);
    let principal = principal(&mut input, 0);
    let mut head = RequestHead::new();
    let parsed = parse_request(input.rest(), &HeadLimits::default(), &mut head);
    let request = matches!(parsed, Ok(Some(_))).then_some(&head);
    let peer = (choice & 1 != 0).then(|| {
        let dns: &[&str] = if choice & 2 != 0 { &["a.example", "b.example"] } else { &[] };
        let uris: &[&str] = if choice & 4 != 0 { &["spiffe://cluster.local/ns/a/sa/b"] } else { &[] };
        Arc::new(facts::certificate(uris, dns, "CN=a"))
    });
    let mut connection = facts::connection(peer);
    connection.server_name = (choice & 8 != 0).then(|| "A.example".into());
    let context = RequestContext { request, connection: &connection, remote: connection.remote.ip(), metadata: None };
    let policy = Policy { permissions: vec![permission.clone()], principals: vec![principal] };
    let Some([allow, deny, log]) = engines(&policy) else { return };
    let allowed = allow.evaluate(&context).allowed;
    let denied = !deny.evaluate(&context).allowed;
    assert!(log.evaluate(&context).allowed, "LOG refuses nothing");
    assert!(!allowed || denied, "admitted where the same words would not deny: {policy:?}");
    assert_eq!(deny.evaluate(&context).policy.is_some(), denied);

    // notX never admits what X denies.
    let not = Policy { permissions: vec![Permission::Not(Box::new(permission.clone()))], principals: vec![Principal::Any] };
    let plain = Policy { permissions: vec![permission], principals: vec![Principal::Any] };
    if let (Some([allow_not, ..]), Some([_, deny_plain, _])) = (engines(&not), engines(&plain)) {
        let both = allow_not.evaluate(&context).allowed && !deny_plain.evaluate(&context).allowed;
        assert!(!both, "{plain:?} denies what its negation admits");
    }
}

fn engines(policy: &Policy) -> Option<[Engine; 3]> {
    let compile = |action| Engine::compile(&RbacRules { action, policies: [("p".to_owned(), policy.clone())].into() });
    let all = [compile(RbacAction::Allow), compile(RbacAction::Deny), compile(RbacAction::Log)];
    let [Ok(allow), Ok(deny), Ok(log)] = all else { return None };
    Some([allow, deny, log])
}

/// Deeper than any policy of istiod.
const MAX_DEPTH: u8 = 4;

fn permission(input: &mut Input<'_>, depth: u8) -> Permission {
    let many = |input: &mut Input<'_>| (0..1 + input.below(3)).map(|_| permission(input, depth + 1)).collect();
    match input.below(if depth < MAX_DEPTH { 12 } else { 9 }) {
        0 => Permission::Any,
        1 => Permission::UrlPath(matcher(input)),
        2 | 3 => Permission::Header(header(input)),
        4 => Permission::DestinationPort(9080),
        5 => Permission::DestinationPortRange { start: input.byte().into(), end: 10_000 },
        6 => Permission::RequestedServerName(matcher(input)),
        7 => Permission::UriTemplate(input.text()),
        8 => Permission::DestinationIp("10.0.0.0/8".parse().unwrap()),
        9 => Permission::And(many(input)),
        10 => Permission::Or(many(input)),
        _ => Permission::Not(Box::new(permission(input, depth + 1))),
    }
}

fn principal(input: &mut Input<'_>, depth: u8) -> Principal {
    let many = |input: &mut Input<'_>| (0..1 + input.below(3)).map(|_| principal(input, depth + 1)).collect();
    match input.below(if depth < MAX_DEPTH { 10 } else { 7 }) {
        0 => Principal::Any,
        1 => Principal::Authenticated(None),
        2 => Principal::Authenticated(Some(matcher(input))),
        3 => Principal::DirectRemoteIp("10.0.0.0/24".parse().unwrap()),
        4 => Principal::RemoteIp("192.0.2.0/24".parse().unwrap()),
        5 => Principal::Header(header(input)),
        6 => Principal::UrlPath(matcher(input)),
        7 => Principal::And(many(input)),
        8 => Principal::Or(many(input)),
        _ => Principal::Not(Box::new(principal(input, depth + 1))),
    }
}

fn header(input: &mut Input<'_>) -> HeaderMatcher {
    let name = match input.below(8) {
        0 => ":authority".to_owned(),
        1 => ":path".to_owned(),
        2 => ":method".to_owned(),
        3 => "host".to_owned(),
        4 => "x-role".to_owned(),
        _ => input.text(),
    };
    let choice = input.byte();
    let value = match choice & 3 {
        0 => HeaderMatch::Present(choice & 4 != 0),
        1 => HeaderMatch::Range { start: -3, end: i64::from(input.byte()) },
        _ => HeaderMatch::String(matcher(input)),
    };
    HeaderMatcher { name, value, invert: choice & 8 != 0, treat_missing_as_empty: choice & 16 != 0 }
}

fn expression(index: usize) -> Regex {
    thread_local! {
        static ALL: Vec<Regex> =
            ["a", ".*", "/admin.*", "[^x]+", "(?i)a|b", "a,b", r"\W*"].map(|source| Regex::new(source).unwrap()).into();
    }
    ALL.with(|all| all[index % all.len()].clone())
}

fn matcher(input: &mut Input<'_>) -> StringMatcher {
    let choice = input.byte();
    let text = input.text();
    let pattern = match choice & 7 {
        0..=2 => StringMatch::Exact(text),
        3 => StringMatch::Prefix(text),
        4 => StringMatch::Suffix(text),
        5 => StringMatch::Contains(text),
        // To compile an expression takes longer than all the rest, so most come from a list.
        6 => return StringMatch::Regex(expression(text.len())).into(),
        _ => match Regex::new(&text[..text.floor_char_boundary(12)]) {
            Ok(regex) => return StringMatch::Regex(regex).into(),
            Err(_) => StringMatch::Exact(text),
        },
    };
    StringMatcher { pattern, ignore_case: choice & 8 != 0 }
}
