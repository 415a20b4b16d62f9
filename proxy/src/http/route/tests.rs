//! The outbound route configuration of the recorded scenarios, and what Envoy 1.40 did with it.

use std::rc::Rc;

use http::Method;

use super::*;
use crate::config::{
    AppendAction, DirectResponse, Fraction, HeaderMatch, HeaderMutations as Mutations, HeaderValueOption, HostRewrite, PathMatch,
    PathRewrite, QueryParameterMatcher, RedirectPath, Regex, RetryPolicy, RouteAction, StringMatch, StringMatcher, UpgradeType,
    WeightedCluster,
};
use crate::error::ErrorKind;
use crate::http::head::{Headers, Known, ResponseHead};
use crate::stream_info::{ConnectionInfo, StreamInfo};

fn route(name: &str, matches: config::RouteMatch, action: RouteTarget) -> config::Route {
    let headers = Mutations::default();
    config::Route { name: name.into(), matches, action, headers, cors: None, fault: None, filters: Vec::new(), decorator: None }
}

fn forward(name: &str, matches: config::RouteMatch, change: impl FnOnce(&mut RouteAction)) -> config::Route {
    let mut action = RouteAction::cluster("details");
    change(&mut action);
    route(name, matches, RouteTarget::Forward(Box::new(action)))
}

fn to(name: &str, matches: config::RouteMatch) -> config::Route {
    forward(name, matches, |_| {})
}

fn prefix(path: &str) -> config::RouteMatch {
    config::RouteMatch::path(PathMatch::Prefix(path.into()))
}

fn exact(path: &str) -> config::RouteMatch {
    config::RouteMatch::path(PathMatch::Exact(path.into()))
}

fn header(name: &str, value: HeaderMatch) -> config::HeaderMatcher {
    config::HeaderMatcher { name: name.into(), value, invert: false, treat_missing_as_empty: false }
}

fn regex(pattern: &str) -> StringMatcher {
    StringMatch::Regex(Regex::new(pattern).unwrap()).into()
}

fn host(name: &str, domains: &[&str], routes: Vec<config::Route>) -> config::VirtualHost {
    let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
    config::VirtualHost { name: name.into(), domains, routes, ..Default::default() }
}

fn configuration(virtual_hosts: Vec<config::VirtualHost>) -> RouteConfiguration {
    let virtual_hosts = virtual_hosts.into_iter().map(Into::into).collect();
    RouteConfiguration { name: "9080".into(), virtual_hosts, ignore_port_in_host_matching: true, ..Default::default() }
}

fn compile(virtual_hosts: Vec<config::VirtualHost>) -> RouteTable {
    RouteTable::compile(&Arc::new(configuration(virtual_hosts)), &|_| None).unwrap()
}

fn request(target: &str, headers: &[&str]) -> RequestHead {
    let (host, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let mut head = RequestHead::new();
    head.set_authority(host.as_bytes());
    head.set_path(path.as_bytes());
    head.headers.push(b"x-forwarded-proto", b"http");
    for line in headers {
        let (name, value) = line.split_once(": ").unwrap();
        match name {
            ":method" => head.method = value.parse().unwrap(),
            _ => drop(head.headers.push(name.as_bytes(), value.as_bytes())),
        }
    }
    head
}

fn found(table: &RouteTable, target: &str, headers: &[&str]) -> String {
    table.find(&request(target, headers)).map_or_else(|| "NR".to_owned(), |found| found.route.name.to_string())
}

fn info() -> StreamInfo {
    StreamInfo::new(Rc::new(ConnectionInfo::new(1, "127.0.0.2:28280".parse().unwrap(), "127.0.0.1:40000".parse().unwrap())))
}

fn lines(headers: &Headers) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    headers.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn ratings() -> config::VirtualHost {
    let with_header = |name: &str, matcher: config::HeaderMatcher, mut matches: config::RouteMatch| {
        matches.headers.push(matcher);
        to(name, matches)
    };
    let absent = config::HeaderMatcher { invert: true, ..header("x-need", HeaderMatch::Present(true)) };
    let query = QueryParameterMatcher { name: "v".into(), value: Some(StringMatcher::exact("2")) };
    let beta = HeaderMatch::String(regex("^(.*?;)?(user=beta)(;.*)?$"));
    let routes = vec![
        with_header("v2-user", header("End-User", HeaderMatch::String(StringMatcher::exact("jason"))), prefix("/")),
        with_header("v2-cookie", header("cookie", beta), prefix("/")),
        to("v2-query", config::RouteMatch { query_parameters: vec![query], ..prefix("/") }),
        with_header("v2-absent", absent, exact("/absent")),
        to("exact", exact("/exact")),
        to("exact-ci", config::RouteMatch { ignore_case: true, ..exact("/CaseInsensitive") }),
        to("prefix-ci", config::RouteMatch { ignore_case: true, ..prefix("/Folded") }),
        to("regex", config::RouteMatch::path(PathMatch::Regex(Regex::new("/rx/[0-9]+").unwrap()))),
        to("pathsep", config::RouteMatch::path(PathMatch::SeparatedPrefix("/sep".into()))),
        to("template", config::RouteMatch::path(PathMatch::UriTemplate("/books/*/x/**".into()))),
        with_header("method", header(":method", HeaderMatch::String(StringMatcher::exact("POST"))), prefix("/m")),
        with_header("range", header("x-n", HeaderMatch::Range { start: -3, end: 10 }), prefix("/")),
        to("grpc", config::RouteMatch { grpc: true, ..prefix("/") }),
        to("never", config::RouteMatch { fraction: Fraction::NONE, ..prefix("/") }),
        to("default", prefix("/")),
    ];
    host("ratings:9080", &["ratings", "ratings.bookinfo.svc.cluster.local", "10.96.7.2"], routes)
}

#[test]
fn the_first_condition_that_holds_decides() {
    let table = compile(vec![ratings()]);
    for (target, headers, expected) in [
        ("ratings/", &[][..], "default"),
        ("ratings/", &["end-user: jason"], "v2-user"),
        ("ratings/", &["end-user: eve", "end-user: jason"], "v2-user"),
        ("ratings/", &["end-user: eve,jason"], "default"),
        ("ratings/", &["cookie: a=1;user=beta;b=2"], "v2-cookie"),
        ("ratings/?v=2", &[], "v2-query"),
        ("ratings/?a=1&v=2", &[], "v2-query"),
        ("ratings/?v=1&v=2", &[], "default"),
        ("ratings/?v=22", &[], "default"),
        ("ratings/absent", &[], "v2-absent"),
        ("ratings/absent", &["x-need: 1"], "default"),
        ("ratings/exact?a=b", &[], "exact"),
        ("ratings/exact/", &[], "default"),
        ("ratings/EXACT", &[], "default"),
        ("ratings/caseINSENSITIVE", &[], "exact-ci"),
        ("ratings/fOLDED/x", &[], "prefix-ci"),
        ("ratings/rx/42?q", &[], "regex"),
        ("ratings/rx/42/", &[], "default"),
        ("ratings/sep", &[], "pathsep"),
        ("ratings/sep/a", &[], "pathsep"),
        ("ratings/separate", &[], "default"),
        ("ratings/books/1/x/y", &[], "template"),
        ("ratings/m", &[":method: POST"], "method"),
        ("ratings/m", &[], "default"),
        ("ratings/", &["x-n: -3"], "range"),
        ("ratings/", &["x-n: 10"], "default"),
        ("ratings/", &["content-type: application/grpc+proto"], "grpc"),
        ("ratings/", &["content-type: application/grpc-web"], "default"),
    ] {
        assert_eq!(found(&table, target, headers), expected, "{target} {headers:?}");
    }
}

#[test]
fn missing_headers_meet_only_conditions_on_absence() {
    let value = HeaderMatch::String(StringMatcher::exact("a"));
    let matches = |matcher: config::HeaderMatcher, headers: &[&str]| {
        HeaderMatcher::compile(&matcher).matches(&request("ratings/", headers))
    };
    let inverted = config::HeaderMatcher { invert: true, ..header("x-h", value.clone()) };
    assert!(!matches(inverted.clone(), &[]));
    assert!(matches(inverted.clone(), &["x-h: b"]));
    assert!(matches(config::HeaderMatcher { treat_missing_as_empty: true, ..inverted }, &[]));
    assert!(matches(header("x-h", HeaderMatch::Present(false)), &[]));
    assert!(!matches(header("x-h", HeaderMatch::Present(false)), &["x-h: "]));
    assert!(matches(header("Host", HeaderMatch::String(StringMatcher::exact("ratings"))), &[]));
    assert!(matches(header(":path", HeaderMatch::String(StringMatcher::exact("/"))), &[]));
}

#[test]
fn hosts_are_found_as_envoy_finds_them() {
    let block_all = RouteTarget::DirectResponse(DirectResponse { status: 502, body: Vec::new() });
    let table = compile(vec![
        host("wild", &["*.wild.test"], vec![to("wild", prefix("/"))]),
        host("pre", &["pre.*"], vec![to("wild2", prefix("/"))]),
        host("partial", &["partial"], vec![to("only", prefix("/only"))]),
        ratings(),
        host("block_all", &["*"], vec![route("block_all", prefix("/"), block_all)]),
    ]);
    for (target, expected) in [
        // routing.host_{short,fqdn,port,upper,ip,trailing_dot,unknown_port,wild,wild_exact,prefix_wild}, no_route_in_vhost
        ("ratings/", "default"),
        ("ratings.bookinfo.svc.cluster.local/", "default"),
        ("ratings:9080/", "default"),
        ("RATINGS.Bookinfo.svc.cluster.local:9080/", "default"),
        ("10.96.7.2:9080/", "default"),
        ("ratings.bookinfo.svc.cluster.local./", "block_all"),
        ("nosuch.test:9080/", "block_all"),
        ("a.wild.test/", "wild"),
        ("wild.test/", "block_all"),
        ("pre.fix/", "wild2"),
        ("partial/only", "only"),
        ("partial/other", "NR"),
    ] {
        assert_eq!(found(&table, target, &[]), expected, "{target}");
    }
    let without = RouteTable::compile(
        &Arc::new(RouteConfiguration { ignore_port_in_host_matching: false, ..configuration(vec![ratings()]) }),
        &|_| None,
    );
    assert_eq!(found(&without.unwrap(), "ratings:9080/", &[]), "NR");
}

#[test]
fn connect_needs_a_route_of_its_own() {
    // malformed.connect
    let mut connect = RequestHead::new();
    connect.method = Method::CONNECT;
    connect.set_authority(b"other.test:443");
    let table = compile(vec![host("all", &["*"], vec![to("default", prefix("/"))])]);
    assert!(table.find(&connect).is_none());
    let upgrades = |action: &mut RouteAction| action.upgrades = vec![(UpgradeType::Connect, true)];
    let tunnel = forward("tunnel", config::RouteMatch::path(PathMatch::Connect), upgrades);
    let table = compile(vec![host("all", &["*"], vec![tunnel, to("default", prefix("/"))])]);
    let found_connect = table.find(&connect).unwrap();
    assert_eq!(&*found_connect.route.name, "tunnel");
    assert_eq!(found(&table, "other.test/", &[]), "default");
    let Action::Forward(forward) = &found_connect.route.action else { panic!("forwards") };
    assert!(forward.allows_connect(&[]));
}

#[test]
fn redirects_lead_where_envoy_leads() {
    let redirect = |name: &str, path: &str, redirect: config::Redirect| {
        route(name, prefix(path), RouteTarget::Redirect(config::Redirect { status: 301, ..redirect }))
    };
    let full = |path: &str| Some(RedirectPath::Full(path.into()));
    let default = config::Redirect::default;
    let substitute = RedirectPath::Regex { pattern: Regex::new("^/re/([^/]+)").unwrap(), substitution: "/x/\\1".into() };
    let routes = vec![
        redirect("own-query", "/pq", config::Redirect { path: full("/elsewhere?fixed=1"), strip_query: true, ..default() }),
        redirect("path", "/path", config::Redirect { path: full("/elsewhere"), ..default() }),
        redirect("host", "/host", config::Redirect { host: Some("new.test".into()), ..default() }),
        redirect("https", "/https", config::Redirect { scheme: Some("https".into()), ..default() }),
        redirect("port", "/port", config::Redirect { port: Some(8443), ..default() }),
        redirect("prefix", "/old", config::Redirect { path: Some(RedirectPath::Prefix("/new".into())), ..default() }),
        redirect("strip", "/strip", config::Redirect { path: full("/s"), strip_query: true, ..default() }),
        redirect("regex", "/re", config::Redirect { path: Some(substitute), ..default() }),
    ];
    let tls_only = config::VirtualHost { require_tls: true, ..host("tls", &["tlsreq"], vec![to("default", prefix("/"))]) };
    let table = compile(vec![host("redirect", &["redirect", "[::1]"], routes), tls_only]);
    for (target, expected) in [
        ("redirect:9080/path?q=1", "http://redirect:9080/elsewhere?q=1"),
        ("redirect:9080/pq?q=1", "http://redirect:9080/elsewhere?fixed=1"),
        ("redirect:9080/host/x?q=1", "http://new.test/host/x?q=1"),
        ("redirect:9080/https/x", "https://redirect:9080/https/x"),
        ("redirect:80/https/x", "https://redirect/https/x"),
        ("redirect:9080/port/x", "http://redirect:8443/port/x"),
        ("redirect:80/path", "http://redirect:80/elsewhere"),
        ("[::1]/port/x", "http://[::1]:8443/port/x"),
        ("[::1]:80/https", "https://[::1]/https"),
        ("redirect:9080/old/thing?q", "http://redirect:9080/new/thing?q"),
        ("redirect:9080/strip?q=1", "http://redirect:9080/s"),
        ("redirect/re/a/b?c", "http://redirect/x/a/b?c"),
        ("tlsreq/a?b=c", "https://tlsreq/a?b=c"),
    ] {
        let head = request(target, &[]);
        let location = table.find(&head).unwrap().route.redirect_location(&head).unwrap();
        assert_eq!(text(&location), expected, "{target}");
    }
    // routing.require_tls_xfp
    let mut head = request("tlsreq/", &[]);
    head.headers.set(Known::XForwardedProto, b"https");
    assert_eq!(&*table.find(&head).unwrap().route.name, "default");
}

/// Head and headers as they go upstream.
fn rewritten(table: &RouteTable, target: &str, headers: &[&str]) -> (String, Vec<String>) {
    let mut head = request(target, headers);
    head.headers.remove(Known::XForwardedProto);
    let route = Arc::clone(table.find(&head).unwrap().route);
    route.apply_request(&mut head, &ClusterChoice::named("details", &|_| None), &info(), true);
    (format!("{}{}", text(head.authority()), text(head.path())), lines(&head.headers))
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let literal = Some(HostRewrite::Literal("internal.test".into()));
    let swap = PathRewrite::Regex { pattern: Regex::new("^/rx/(\\d+)/(.*)$").unwrap(), substitution: "/\\2/\\1".into() };
    let to_prefix = |path: &str| Some(PathRewrite::Prefix(path.into()));
    let table = compile(vec![host(
        "rewrite",
        &["rewrite"],
        vec![
            forward("prefix", prefix("/api/"), |r| (r.path_rewrite, r.host_rewrite) = (to_prefix("/"), literal.clone())),
            forward("keep", prefix("/keep"), |r| r.path_rewrite = to_prefix("/kept")),
            forward("regex", prefix("/rx"), |r| r.path_rewrite = Some(swap)),
            forward("full", exact("/full"), |r| r.path_rewrite = to_prefix("/whole/new?x=1")),
            forward("xfh", prefix("/xfh"), |r| (r.host_rewrite, r.append_x_forwarded_host) = (literal.clone(), true)),
            forward("header", prefix("/hh"), |r| r.host_rewrite = Some(HostRewrite::Header("x-real-host".into()))),
            forward("auto", prefix("/auto"), |r| r.host_rewrite = Some(HostRewrite::Auto)),
        ],
    )]);
    let check = |target: &str, headers: &[&str], url: &str, expected: &[&str]| {
        let (got_url, got) = rewritten(&table, target, headers);
        assert_eq!((got_url.as_str(), got), (url, expected.iter().map(|line| (*line).to_owned()).collect()), "{target}");
    };
    // rewrite.{prefix,prefix_exact_noslash,regex,regex_nomatch,xfh,host_header,host_header_missing}
    check(
        "rewrite:9080/api/v1/x?q=1",
        &[],
        "internal.test/v1/x?q=1",
        &["x-envoy-original-host: rewrite:9080", "x-envoy-original-path: /api/v1/x?q=1"],
    );
    check("rewrite:9080/keep", &[], "rewrite:9080/kept", &["x-envoy-original-path: /keep"]);
    check("rewrite/rx/42/name?q", &[], "rewrite/name/42?q", &["x-envoy-original-path: /rx/42/name?q"]);
    check("rewrite/rx/abc/name", &[], "rewrite/rx/abc/name", &["x-envoy-original-path: /rx/abc/name"]);
    check("rewrite/full", &[], "rewrite/whole/new?x=1", &["x-envoy-original-path: /full"]);
    let forwarded_host = &["x-envoy-original-host: rewrite:9080", "x-forwarded-host: rewrite:9080"];
    check("rewrite:9080/xfh", &[], "internal.test/xfh", forwarded_host);
    check(
        "rewrite/xfh",
        &["x-forwarded-host: a, rewrite"],
        "internal.test/xfh",
        &["x-forwarded-host: a, rewrite", "x-envoy-original-host: rewrite"],
    );
    let real = "x-real-host: real.test";
    check("rewrite:9080/hh", &[real], "real.test/hh", &[real, "x-envoy-original-host: rewrite:9080"]);
    check("rewrite:9080/hh", &[], "rewrite:9080/hh", &[]);
    check("rewrite/hh", &["x-real-host: a b/c"], "rewrite/hh", &["x-real-host: a b/c"]);

    let mut head = request("rewrite/auto", &[]);
    let route = table.find(&head).unwrap().route;
    let Action::Forward(forward) = &route.action else { panic!("forwards") };
    forward.apply_endpoint_host(&mut head, "endpoint.test", true);
    assert_eq!(text(head.authority()), "endpoint.test");
}

fn set(name: &str, value: &str, action: AppendAction) -> HeaderValueOption {
    HeaderValueOption { name: name.into(), value: value.into(), action, keep_empty_value: false }
}

#[test]
fn headers_change_in_envoys_order() {
    use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd as Append, OverwriteIfExists, OverwriteIfExistsOrAdd as Overwrite};
    let mut with_headers = to("h", prefix("/"));
    with_headers.headers = Mutations {
        request_add: vec![
            set("x-append", "added", Append),
            set("X-Set", "set", Overwrite),
            set("x-ifabsent", "dflt", AddIfAbsent),
            set("x-empty", "", Append),
        ],
        request_remove: vec!["x-kill".into()],
        response_add: vec![set("x-resp", "r", Append), set("x-app-name", "over", OverwriteIfExists)],
        response_remove: vec!["x-dup".into()],
    };
    let mut headers = host("headers", &["headers"], vec![with_headers]);
    headers.headers.request_add.push(set("x-vh", "vh", Append));
    let mut config = configuration(vec![headers]);
    config.headers.request_add.push(set("x-rc", "rc", Append));
    let table = RouteTable::compile(&Arc::new(config), &|_| None).unwrap();
    // hdrmod.error_503, hdrmod.ifabsent_present
    assert_eq!(
        rewritten(&table, "headers/", &["x-kill: 1"]).1,
        ["x-set: set", "x-append: added", "x-ifabsent: dflt", "x-vh: vh", "x-rc: rc"]
    );
    assert_eq!(
        rewritten(&table, "headers/", &["x-ifabsent: mine", "x-set: old", "x-append: own"]).1,
        ["x-ifabsent: mine", "x-append: own", "x-set: set", "x-append: added", "x-vh: vh", "x-rc: rc"]
    );
    let mut response = ResponseHead::default();
    for (name, value) in [("x-app-name", "Alpha"), ("x-dup", "1"), ("content-length", "3"), ("x-dup", "2")] {
        response.headers.push(name.as_bytes(), value.as_bytes());
    }
    let head = request("headers/", &[]);
    table.find(&head).unwrap().route.apply_response(&mut response, &head, None, &info());
    assert_eq!(lines(&response.headers), ["content-length: 3", "x-app-name: over", "x-resp: r"]);
}

#[test]
fn invalid_configurations_are_refused() {
    let refused = |change: fn(&mut config::Route)| {
        let mut route = to("bad", prefix("/"));
        change(&mut route);
        RouteTable::compile(&Arc::new(configuration(vec![host("h", &["h"], vec![route])])), &|_| None).unwrap_err()
    };
    for name in ["host", "Host", ":path", "a b", ""] {
        let mut route = to("bad", prefix("/"));
        route.headers.request_add.push(set(name, "x", AppendAction::AppendIfExistsOrAdd));
        let config = configuration(vec![host("h", &["h"], vec![route])]);
        assert_eq!(RouteTable::compile(&Arc::new(config), &|_| None).unwrap_err(), RouteError::HeaderName(name.into()));
    }
    let no_weight = refused(|route| {
        if let RouteTarget::Forward(action) = &mut route.action {
            action.clusters[0].weight = 0;
        }
    });
    assert_eq!(no_weight, RouteError::NoCluster("bad".into()));
    let template = refused(|route| route.matches = config::RouteMatch::path(PathMatch::UriTemplate("/{".into())));
    assert_eq!(template, RouteError::UriTemplate("/{".into()));
    let twice = configuration(vec![host("a", &["x.test"], vec![]), host("b", &["X.test"], vec![])]);
    assert_eq!(RouteTable::compile(&Arc::new(twice), &|_| None).unwrap_err(), RouteError::DuplicateDomain("x.test".into()));
}

#[test]
fn clusters_that_do_not_exist_answer_with_the_status_of_the_route() {
    let weights = |action: &mut RouteAction| {
        let weighted = |name: &str, weight| WeightedCluster { weight, ..WeightedCluster::only(name) };
        action.clusters = vec![weighted("v1", 100), weighted("v2", 0)];
    };
    let named = |action: &mut RouteAction| action.cluster_header = Some("x-cluster".into());
    let table = compile(vec![host(
        "h",
        &["h"],
        vec![
            forward("500", prefix("/500"), |action| action.cluster_not_found_status = 500),
            forward("weighted", prefix("/w"), weights),
            forward("named", prefix("/n"), named),
        ],
    )]);
    for (target, status) in [("h/500", 500), ("h/w", 503), ("h/n", 503)] {
        let head = request(target, &["x-cluster: details"]);
        let Action::Forward(forward) = &table.find(&head).unwrap().route.action else { panic!("forwards") };
        assert_eq!(forward.choose(&head).unwrap_err(), ErrorKind::NoCluster(status));
    }
}

#[test]
fn what_a_route_lacks_comes_from_its_virtual_host() {
    let cors = |methods: &str| Some(config::CorsPolicy { allow_methods: Some(methods.into()), ..Default::default() });
    let retry = |num_retries| Some(RetryPolicy { num_retries, ..RetryPolicy::default() });
    let mut own = forward("own", prefix("/own"), |action| action.retry = retry(1));
    own.cors = cors("GET");
    let mut vhost = host("h", &["*"], vec![own, to("default", prefix("/"))]);
    (vhost.cors, vhost.retry_policy) = (cors("PUT"), retry(7));
    let table = compile(vec![vhost]);
    for (target, methods, retries) in [("h/own", "GET", 1), ("h/", "PUT", 7)] {
        let route = table.find(&request(target, &[])).unwrap().route;
        let Action::Forward(forward) = &route.action else { panic!("forwards") };
        assert_eq!(route.cors.as_ref().unwrap().allow_methods.as_deref(), Some(methods));
        assert_eq!(forward.retry.as_ref().unwrap().config().num_retries, retries);
    }
}

#[test]
fn upgrades_follow_the_route_then_the_listener() {
    let table = compile(vec![host(
        "h",
        &["*"],
        vec![
            forward("off", prefix("/off"), |action| action.upgrades = vec![(UpgradeType::WebSocket, false)]),
            forward("foo", prefix("/foo"), |action| action.upgrades = vec![(UpgradeType::Other("foo".into()), true)]),
        ],
    )]);
    let allows = |target: &str, token: &str| {
        let Action::Forward(forward) = &table.find(&request(target, &[])).unwrap().route.action else { panic!("forwards") };
        forward.allows_upgrade(token.as_bytes(), &[UpgradeType::WebSocket])
    };
    assert!(!allows("h/off", "websocket"));
    assert!(allows("h/foo", "WebSocket"));
    assert!(allows("h/foo", "FOO"));
    assert!(!allows("h/foo", "foo/2"));
    assert!(!allows("h/off", "connect"));
}

struct Packed(fn() -> config::VirtualHost);

impl config::Source<config::VirtualHost> for Packed {
    fn make(&self) -> Arc<config::VirtualHost> {
        Arc::new((self.0)())
    }
}

#[test]
fn a_packed_virtual_host_is_compiled_at_its_first_request() {
    use crate::config::{ClusterDiscovery, Snapshot};
    let clusters = Arc::new(Clusters::new(crate::tls::Secrets::new(), |_, _| {}));
    let details = config::Cluster::new("details", ClusterDiscovery::Eds("details".to_owned()));
    let snapshot = Snapshot { clusters: [("details".into(), details.into())].into(), ..Snapshot::default() };
    clusters.publish(&Arc::new(snapshot));
    let packed = |domain: &str, make| VirtualHostEntry::new([domain], config::Resource::packed(Arc::new(Packed(make))));
    let mut config = configuration(vec![host("whole", &["whole"], vec![to("whole", prefix("/"))])]);
    config.virtual_hosts.push(packed("Packed", || host("packed", &["packed"], vec![to("packed", prefix("/a"))])));
    // What was never to be packed: it answers as if it were not there, and harms nobody.
    config.virtual_hosts.push(packed("bad", || {
        host("bad", &["bad"], vec![to("bad", config::RouteMatch::path(PathMatch::UriTemplate("/{".into())))])
    }));
    let config = Arc::new(config);
    let table = RouteTable::publish(&config, &clusters, None).unwrap();
    let is_compiled = || table.virtual_hosts.iter().map(|host| host.get().is_some()).collect::<Vec<_>>();
    assert_eq!(is_compiled(), [true, false, false]);
    for (target, expected) in
        [("whole/", "whole"), ("packed:9080/a", "packed"), ("packed/b", "NR"), ("bad/", "NR"), ("other/", "NR")]
    {
        assert_eq!(found(&table, target, &[]), expected, "{target}");
    }
    assert_eq!(is_compiled(), [true; 3]);
    let head = request("packed/a", &[]);
    let Action::Forward(forward) = &table.find(&head).unwrap().route.action else { panic!() };
    assert!(Arc::ptr_eq(forward.choose(&head).unwrap().cluster.as_ref().unwrap(), &clusters.get("details").unwrap()));
    let again = RouteTable::publish(&config, &clusters, Some(&table)).unwrap();
    assert!(Arc::ptr_eq(&again.domains, &table.domains), "the same configuration has the same index");
    assert_eq!(found(&again, "packed/a", &[]), "packed");
}

#[test]
fn only_what_can_be_compiled_alone_may_be_packed() {
    let shell = configuration(vec![]);
    let may = |route: config::Route| may_be_packed(&host("h", &["h"], vec![route]), &shell);
    assert!(may(to("r", prefix("/"))));
    assert!(!may(forward("by header", prefix("/"), |action| action.cluster_header = Some("x-cluster".into()))));
    assert!(!may(to("bad", config::RouteMatch::path(PathMatch::UriTemplate("/{".into())))));
}
