use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::config::{self, HeaderMatch, HeaderMatcher, MetadataForm, MetadataMatcher, Permission, Principal, Regex};
use crate::tls::PeerCertificate;

fn connection(uri: Option<&str>) -> ConnectionInfo {
    let peer = uri.map(|uri| PeerCertificate {
        uri_sans: vec![uri.to_owned()],
        dns_sans: vec!["productpage.bookinfo.svc".into()],
        subject: "CN=productpage".into(),
        sha256: String::new(),
        serial: String::new(),
        ..PeerCertificate::default()
    });
    ConnectionInfo {
        server_name: Some("Outbound.example".into()),
        peer: peer.map(Arc::new),
        ..ConnectionInfo::new(1, "127.0.0.1:9080".parse().unwrap(), "[::ffff:127.0.0.1]:40000".parse().unwrap())
    }
}

/// `GET /path`, then header lines; `Host` is the authority.
fn request(path: &[u8], lines: &[(&str, &[u8])]) -> RequestHead {
    let mut head = RequestHead::new();
    head.set_path(path);
    head.set_authority(b"details.bookinfo:9080");
    for (name, value) in lines {
        match *name {
            "host" => head.set_authority(value),
            name => drop(head.headers.push(name.as_bytes(), value)),
        }
    }
    head
}

fn on(request: Option<&RequestHead>, connection: &ConnectionInfo, engine: &Engine) -> Verdict {
    engine.evaluate(&RequestContext { request, connection, remote: connection.remote.ip(), metadata: None })
}

fn rules(action: RbacAction, policies: Vec<(&str, Permission, Principal)>) -> RbacRules {
    let policy = |(name, permission, principal): (&str, _, _)| {
        (name.to_owned(), config::Policy { permissions: vec![permission], principals: vec![principal] })
    };
    RbacRules { action, policies: policies.into_iter().map(policy).collect() }
}

fn engine(action: RbacAction, permission: Permission, principal: Principal) -> Engine {
    Engine::compile(&rules(action, vec![("p", permission, principal)])).unwrap()
}

fn header(name: &str, value: impl Into<StringMatcher>) -> HeaderMatcher {
    let value = HeaderMatch::String(value.into());
    HeaderMatcher { name: name.into(), value, invert: false, treat_missing_as_empty: false }
}

fn when_header(name: &str, value: impl Into<StringMatcher>) -> Permission {
    Permission::Header(header(name, value))
}

fn not(permission: Permission) -> Permission {
    Permission::Not(Box::new(permission))
}

fn regex(source: &str) -> StringMatcher {
    StringMatch::Regex(Regex::new(source).unwrap()).into()
}

/// Whether the single permission denies the request.
fn denied(permission: Permission, head: &RequestHead) -> bool {
    !on(Some(head), &connection(None), &engine(RbacAction::Deny, permission, Principal::Any)).allowed
}

/// Whether the single permission allows the request.
fn allowed(permission: Permission, head: &RequestHead) -> bool {
    on(Some(head), &connection(None), &engine(RbacAction::Allow, permission, Principal::Any)).allowed
}

/// The ALLOW policy of golden's listener `rbac_allow`.
fn viewer() -> Engine {
    let exact = |path: &str| Permission::UrlPath(StringMatcher::exact(path));
    let methods = ["GET", "HEAD"].map(|method| when_header(":method", StringMatcher::exact(method)));
    let paths = vec![
        exact("/public"),
        Permission::UrlPath(StringMatcher::prefix("/static/")),
        Permission::UrlPath(StringMatcher::suffix(".css")),
    ];
    let host = StringMatcher { ignore_case: true, ..StringMatcher::exact("allowed.test") };
    let public = Permission::And(vec![Permission::Or(methods.to_vec()), Permission::Or(paths)]);
    Engine::compile(&rules(
        RbacAction::Allow,
        vec![
            ("ns[bookinfo]-policy[viewer]-rule[0]", public, Principal::Any),
            (
                "ns[bookinfo]-policy[viewer]-rule[1]",
                exact("/hdr"),
                Principal::Header(header("x-token", StringMatcher::exact("s3"))),
            ),
            ("ns[bookinfo]-policy[viewer]-rule[2]", when_header(":authority", host), Principal::Any),
            ("ns[bookinfo]-policy[viewer]-rule[3]", exact("/port"), Principal::DirectRemoteIp("127.0.0.0/8".parse().unwrap())),
            ("ns[bookinfo]-policy[viewer]-rule[4]", exact("/xff"), Principal::RemoteIp("10.1.0.0/16".parse().unwrap())),
        ],
    ))
    .unwrap()
}

#[test]
fn the_recorded_allow_scenarios_come_out_the_same() {
    let (viewer, connection) = (viewer(), connection(None));
    // Paths as they are after normalisation: golden's rbac.dotdot_bypass and rbac.pct_encoded have gone through it.
    for (path, lines, expected) in [
        ("/Public", vec![], None),
        ("/secret", vec![], None),
        ("//public", vec![], None),
        ("/public", vec![], Some(0)),
        ("/public#x", vec![], Some(0)),
        ("/public?x=1", vec![], Some(0)),
        ("/public;x=1", vec![], None),
        ("/x/y.css", vec![], Some(0)),
        ("/x/y.js?a.css", vec![], None),
        ("/other", vec![], None),
        ("/hdr", vec![("x-token", &b"no"[..])], None),
        ("/hdr", vec![("x-token", &b"s3"[..]), ("x-token", b"x")], Some(1)),
        ("/hdr", vec![("x-token", &b"s3,x"[..])], None),
        ("/other", vec![("host", &b"ALLOWED.test"[..])], Some(2)),
        ("/other", vec![("host", &b"allowed.test:80"[..])], None),
        ("/port", vec![], Some(3)),
        ("/xff", vec![], None),
    ] {
        let verdict = on(Some(&request(path.as_bytes(), &lines)), &connection, &viewer);
        let policy = expected.map(|rule| format!("ns[bookinfo]-policy[viewer]-rule[{rule}]"));
        assert_eq!((verdict.allowed, verdict.policy.as_deref()), (expected.is_some(), policy.as_deref()), "{path} {lines:?}");
    }
    let head = request(b"/xff", &[]);
    let forwarded =
        RequestContext { request: Some(&head), connection: &connection, remote: "10.1.9.9".parse().unwrap(), metadata: None };
    assert!(viewer.evaluate(&forwarded).allowed);
}

#[test]
fn refusals_are_worded_as_recorded() {
    let name = "ns[bookinfo]-policy[no-admin]-rule[0]";
    let admin = Permission::And(vec![Permission::Or(vec![Permission::UrlPath(StringMatcher::prefix("/admin"))])]);
    let deny = Engine::compile(&rules(RbacAction::Deny, vec![(name, admin, Principal::Any)])).unwrap();
    let connection = connection(None);
    let verdict = on(Some(&request(b"/admin/x", &[])), &connection, &deny);
    assert_eq!(verdict.denied_details(), "rbac_access_denied_matched_policy[ns[bookinfo]-policy[no-admin]-rule[0]]");
    assert!(on(Some(&request(b"/Admin", &[])), &connection, &deny).allowed);

    let nobody = Engine::compile(&RbacRules { action: RbacAction::Allow, policies: BTreeMap::new() }).unwrap();
    let verdict = on(Some(&request(b"/", &[])), &connection, &nobody);
    assert_eq!((verdict.allowed, verdict.denied_details().as_ref()), (false, "rbac_access_denied_matched_policy[none]"));

    let spaced = Engine::compile(&rules(RbacAction::Deny, vec![("a b", Permission::Any, Principal::Any)])).unwrap();
    assert_eq!(on(None, &connection, &spaced).denied_details(), "rbac_access_denied_matched_policy[a_b]");
    let audit = engine(RbacAction::Log, Permission::Any, Principal::Any);
    assert_eq!(on(None, &connection, &audit), Verdict { allowed: true, policy: Some("p".into()) });
}

#[test]
fn a_repeated_header_hides_nothing_from_a_deny() {
    let two = request(b"/", &[("x-role", b"user"), ("x-role", b"admin")]);
    let admin = || when_header("x-role", StringMatcher::exact("admin"));
    assert!(denied(admin(), &two));
    assert!(denied(when_header("x-role", StringMatcher::exact("user,admin")), &two));
    assert!(!denied(admin(), &request(b"/", &[("x-role", b"user,admin")])));
    // "Everybody but user" is told by every line.
    let stranger = || not(when_header("x-role", StringMatcher::exact("user")));
    assert!(denied(stranger(), &two));
    assert!(!denied(stranger(), &request(b"/", &[("x-role", b"user"), ("x-role", b"user")])));
    let inverted = || Permission::Header(HeaderMatcher { invert: true, ..header("x-role", StringMatcher::exact("admin")) });
    assert!(denied(inverted(), &two));
    assert!(!allowed(inverted(), &two));
    assert!(!allowed(not(admin()), &two));
}

#[test]
fn bytes_that_are_no_text_fail_closed_against_a_regex() {
    let odd = request(b"/\x80admin", &[("x-role", b"\x80admin")]);
    for permission in [when_header("x-role", regex(".*admin.*")), Permission::UrlPath(regex(".*admin.*"))] {
        assert!(denied(permission.clone(), &odd));
        assert!(!allowed(permission.clone(), &odd));
        assert!(!allowed(not(permission.clone()), &odd));
        assert!(denied(not(permission), &odd));
    }
    assert!(!denied(when_header("x-role", regex("admin")), &request(b"/", &[("x-role", "ädmin".as_bytes())])));
}

#[test]
fn other_spellings_of_a_host_do_not_pass_a_deny() {
    let spellings = ["admin.test", "Admin.TEST", "admin.test:80", "admin.test.", "admin.test.:8080", "ADMIN.test.:80"];
    for matcher in [StringMatcher::exact("admin.test"), StringMatcher::suffix("n.test"), regex(r"admin\.test")] {
        for host in spellings {
            let head = request(b"/", &[("host", host.as_bytes())]);
            for name in [":authority", "host"] {
                assert!(denied(when_header(name, matcher.clone()), &head), "{host} {matcher:?}");
                assert!(!allowed(not(when_header(name, matcher.clone())), &head), "{host} {matcher:?}");
            }
        }
    }
    let with_port = when_header(":authority", StringMatcher::exact("admin.test:80"));
    assert!(denied(with_port.clone(), &request(b"/", &[("host", b"admin.test.:80")])));
    assert!(!denied(with_port, &request(b"/", &[("host", b"admin.test:81")])));
    // ALLOW takes the host as it was sent.
    let exact = || when_header(":authority", StringMatcher::exact("admin.test"));
    assert!(allowed(exact(), &request(b"/", &[("host", b"admin.test")])));
    assert!(!allowed(exact(), &request(b"/", &[("host", b"admin.test:80")])));
    assert!(denied(not(exact()), &request(b"/", &[("host", b"admin.test:80")])));
    for host in ["[::1]:80", "[::1]", "::1", ":", ".", ""] {
        denied(exact(), &request(b"/", &[("host", host.as_bytes())]));
    }
    assert!(denied(when_header(":authority", StringMatcher::exact("[::1]")), &request(b"/", &[("host", b"[::1]:80")])));
}

#[test]
fn missing_values_follow_envoy() {
    let bare = request(b"/", &[]);
    let role = || header("x-role", StringMatcher::exact("admin"));
    assert!(!allowed(Permission::Header(HeaderMatcher { invert: true, ..role() }), &bare), "even inverted");
    assert!(allowed(not(Permission::Header(role())), &bare));
    let empty = HeaderMatcher { treat_missing_as_empty: true, ..header("x-role", StringMatcher::exact("")) };
    assert!(allowed(Permission::Header(empty), &bare));
    let present =
        |expected, invert| Permission::Header(HeaderMatcher { value: HeaderMatch::Present(expected), invert, ..role() });
    assert!(
        allowed(present(false, false), &bare) && !allowed(present(true, false), &bare) && allowed(present(true, true), &bare)
    );
    let range = HeaderMatcher { value: HeaderMatch::Range { start: 1, end: 5 }, ..role() };
    assert!(allowed(Permission::Header(range.clone()), &request(b"/", &[("x-role", b"4")])));
    assert!(!allowed(Permission::Header(range), &request(b"/", &[("x-role", b"5")])));
}

#[test]
fn tcp_has_no_request_to_match() {
    let connection = connection(None);
    for permission in [
        when_header(":method", StringMatcher::prefix("")),
        Permission::UrlPath(StringMatcher::prefix("")),
        Permission::UriTemplate("/**".into()),
    ] {
        assert!(!on(None, &connection, &engine(RbacAction::Allow, permission.clone(), Principal::Any)).allowed);
        assert!(on(None, &connection, &engine(RbacAction::Allow, not(permission), Principal::Any)).allowed);
    }
    for permission in [
        Permission::DestinationPort(9080),
        Permission::DestinationPortRange { start: 9080, end: 9081 },
        Permission::DestinationIp("127.0.0.1/32".parse().unwrap()),
        Permission::RequestedServerName(StringMatcher::exact("outbound.example")),
    ] {
        assert!(on(None, &connection, &engine(RbacAction::Allow, permission, Principal::Any)).allowed);
    }
    // Golden's tcp_rbac_deny.
    let elsewhere = Principal::And(vec![Principal::DirectRemoteIp("10.0.0.0/8".parse().unwrap())]);
    let verdict = on(None, &connection, &engine(RbacAction::Allow, Permission::Any, elsewhere));
    assert_eq!(verdict.denied_details(), "rbac_access_denied_matched_policy[none]");
}

#[test]
fn principals_are_names_of_verified_certificates() {
    let known = connection(Some("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage"));
    let unknown = connection(None);
    let passes = |action, name: Option<StringMatcher>, connection: &ConnectionInfo| {
        on(None, connection, &engine(action, Permission::Any, Principal::Authenticated(name))).allowed
    };
    let exact = |name: &str| Some(StringMatcher::exact(name));
    let allow = |name, connection| passes(RbacAction::Allow, name, connection);
    assert!(allow(exact("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage"), &known));
    assert!(!allow(exact("spiffe://cluster.local/ns/bookinfo/sa/bookinfo"), &known));
    assert!(allow(None, &known) && !allow(None, &unknown));
    assert!(!passes(RbacAction::Deny, Some(regex(".*/ns/bookinfo/.*")), &known));
    assert!(passes(RbacAction::Deny, Some(regex(".*")), &unknown));
    // With a URI SAN the other names admit nobody, but they still keep out.
    for name in ["productpage.bookinfo.svc", "CN=productpage"] {
        assert!(!allow(exact(name), &known));
        assert!(!passes(RbacAction::Deny, exact(name), &known));
    }
}

#[test]
fn metadata_is_matched_as_text_or_as_a_list_of_texts() {
    let mut metadata = Metadata::default();
    let claims = json!({"payload": {"sub": "alice", "groups": ["a", "b"], "n": 1, "deep": {"x": "y"}}});
    metadata.set("envoy.filters.http.jwt_authn", json!({"payload": {"sub": "old"}}));
    metadata.set("envoy.filters.http.jwt_authn", claims);
    let connection = connection(None);
    let passes_as = |form, path: &[&str], value: &str, invert| {
        let path = std::iter::once("payload").chain(path.iter().copied()).map(str::to_owned).collect();
        let filter = "envoy.filters.http.jwt_authn".to_owned();
        let matcher = MetadataMatcher { filter, path, value: StringMatcher::exact(value), form, invert };
        let engine = engine(RbacAction::Allow, Permission::Any, Principal::Metadata(matcher));
        let remote = connection.remote.ip();
        engine.evaluate(&RequestContext { request: None, connection: &connection, remote, metadata: Some(&metadata) }).allowed
    };
    let passes = |path: &[&str], value: &str, invert| passes_as(MetadataForm::TextOrElement, path, value, invert);
    assert!(
        passes_as(MetadataForm::Text, &["sub"], "alice", false) && !passes_as(MetadataForm::Element, &["sub"], "alice", false)
    );
    assert!(!passes_as(MetadataForm::Text, &["groups"], "b", false) && passes_as(MetadataForm::Element, &["groups"], "b", false));
    assert!(passes(&["sub"], "alice", false) && passes(&["groups"], "b", false) && passes(&["deep", "x"], "y", false));
    assert!(!passes(&["sub"], "old", false) && !passes(&["groups"], "a,b", false) && !passes(&["n"], "1", false));
    assert!(!passes(&["missing"], "", false) && passes(&["missing"], "x", true) && !passes(&["sub"], "alice", true));
}

#[test]
fn uri_templates_are_envoys() {
    let table = [
        (
            "/books/*/x/**",
            vec!["/books/1/x/", "/books/1/x/y/z"],
            vec!["/books/1/x", "/books//x/y", "/books/1/2/x/y", "/a/books/1/x/y"],
        ),
        ("/{name}/y", vec!["/a/y"], vec!["/a/b/y", "//y"]),
        ("/v/{path=a/*}", vec!["/v/a/b"], vec!["/v/b", "/v/a/b/c"]),
        ("/{all=**}.m3u8", vec!["/a/b.m3u8", "/.m3u8"], vec!["/a/b.m3u9"]),
        ("/{*}/x/{**}", vec!["/a/x/b/c"], vec!["/a/b/x/c"]),
        ("/a.b", vec!["/a.b", "/a.b?q=/x"], vec!["/aab"]),
    ];
    for (template, hits, misses) in table {
        for (path, expected) in hits.into_iter().map(|p| (p, true)).chain(misses.into_iter().map(|p| (p, false))) {
            let head = request(path.as_bytes(), &[]);
            assert_eq!(allowed(Permission::UriTemplate(template.into()), &head), expected, "{template} {path}");
            assert_eq!(denied(Permission::UriTemplate(template.into()), &head), expected, "{template} {path}");
        }
    }
    assert!(denied(Permission::UriTemplate("/a/*".into()), &request(b"/a/\x80", &[])));
    assert!(!allowed(Permission::UriTemplate("/a/*".into()), &request(b"/a/\x80", &[])));
}

#[test]
fn rules_that_mean_nothing_are_refused() {
    for (permission, reason) in [
        (Permission::And(vec![]), "expected at least one"),
        (Permission::Not(Box::new(Permission::Or(vec![]))), "expected at least one"),
        (Permission::DestinationPortRange { start: 5, end: 5 }, "expected start below end"),
        (Permission::UriTemplate("books/*".into()), "starts with a slash"),
        (Permission::UriTemplate("/{a".into()), "'}' after '{'"),
        (Permission::UriTemplate("/a}".into()), "'{' before '}'"),
        (Permission::UriTemplate("/**/*".into()), "no operator after"),
    ] {
        let error = Engine::compile(&rules(RbacAction::Allow, vec![("p", permission, Principal::Any)])).unwrap_err();
        assert!(error.policy == "p" && error.reason.contains(reason), "{error}");
    }
}
