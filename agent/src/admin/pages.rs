//! Every path of the admin page: one table, one function each.

use std::fmt::Write;

use http::{Method, Request, Response, StatusCode, Uri, header};
use serde_json::json;

use super::{Admin, config_dump, dump, stats};
use crate::page::{self, Answer, Body, JSON, PROMETHEUS, json as json_answer, ok, text};

/// Compiled size of a `filter` expression, in bytes.
const MAX_FILTER: usize = 64 * 1024;

/// A path, the methods it takes and what it does.
struct Page {
    path: &'static str,
    method: Allowed,
    help: &'static str,
    answer: fn(&Admin, &Query) -> Answer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Allowed {
    Read,
    Change,
    /// What it does depends on the query: without one it only shows.
    Both,
}

const PAGES: &[Page] = &[
    Page { path: "/", method: Allowed::Read, help: "this list", answer: help },
    Page { path: "/certs", method: Allowed::Read, help: "certificates and trust bundles, without keys", answer: certs },
    Page {
        path: "/clusters",
        method: Allowed::Read,
        help: "clusters and their endpoints (format=json, filter=<regex>)",
        answer: clusters,
    },
    Page {
        path: "/config_dump",
        method: Allowed::Read,
        help: "the configuration in force (include_eds, resource=<field of a dump>, mask=<paths>, name_regex=<regex>, \
               format=skiff for skiff's own model)",
        answer: config_dump,
    },
    Page { path: "/contention", method: Allowed::Read, help: "contention of locks: it is not traced", answer: contention },
    Page { path: "/drain", method: Allowed::Change, help: "drain all listeners", answer: drain },
    Page {
        path: "/drain_listeners",
        method: Allowed::Change,
        help: "drain all listeners, or inbound ones only (inboundonly); always gracefully",
        answer: drain,
    },
    Page {
        path: "/healthcheck/fail",
        method: Allowed::Change,
        help: "be not ready until /healthcheck/ok, while requests are served on",
        answer: fail_health_checks,
    },
    Page { path: "/healthcheck/ok", method: Allowed::Change, help: "end /healthcheck/fail", answer: pass_health_checks },
    Page { path: "/healthz/ready", method: Allowed::Read, help: "200 when ready, 503 with the reason when not", answer: ready },
    Page { path: "/help", method: Allowed::Read, help: "this list", answer: help },
    Page { path: "/hot_restart_version", method: Allowed::Read, help: "disabled: there is none", answer: hot_restart_version },
    Page { path: "/init_dump", method: Allowed::Read, help: "what readiness waits for", answer: init_dump },
    Page { path: "/listeners", method: Allowed::Read, help: "listeners and their addresses (format=json)", answer: listeners },
    Page {
        path: "/logging",
        method: Allowed::Both,
        help: "show log levels; POST changes them (level=<level> or paths=<module>:<level>,…)",
        answer: logging,
    },
    Page { path: "/memory", method: Allowed::Read, help: "memory of the process", answer: memory },
    Page { path: "/metrics", method: Allowed::Read, help: "metrics for Prometheus", answer: prometheus },
    Page { path: "/quitquitquit", method: Allowed::Change, help: "drain and exit", answer: quit },
    Page { path: "/ready", method: Allowed::Read, help: "200 and LIVE when ready, 503 when not", answer: live },
    Page {
        path: "/reopen_logs",
        method: Allowed::Change,
        help: "open the access log files again, after a rotation",
        answer: reopen,
    },
    Page { path: "/runtime", method: Allowed::Read, help: "runtime values: there are none", answer: runtime },
    Page { path: "/server_info", method: Allowed::Read, help: "version, state, uptime, node", answer: server_info },
    Page {
        path: "/stats",
        method: Allowed::Read,
        help: "metrics as lines (filter=<regex>, format=prometheus|json, usedonly)",
        answer: stats,
    },
    Page {
        path: "/stats/prometheus",
        method: Allowed::Read,
        help: "metrics for Prometheus (filter=<regex>)",
        answer: prometheus,
    },
];

/// The answer to one request.
pub(super) fn answer<B>(admin: &Admin, request: &Request<B>) -> Response<Body> {
    let Some(page) = PAGES.iter().find(|page| page.path == request.uri().path()) else {
        return text(StatusCode::NOT_FOUND, format!("invalid path. admin commands are:\n{}", commands())).into();
    };
    let query = Query::of(request);
    if !page.method.allows(request.method(), &query) {
        let message = format!("method {} not allowed, use {}\n", request.method(), page.method.header());
        let mut response = Response::from(text(StatusCode::METHOD_NOT_ALLOWED, message));
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(page.method.header()));
        return response;
    }
    // Browsers send Origin with every POST: a web page must not be able to drain the sidecar of the machine it is read on.
    if query.changes && request.headers().contains_key(header::ORIGIN) {
        return text(StatusCode::FORBIDDEN, "requests from web pages change nothing here\n").into();
    }
    (page.answer)(admin, &query).into()
}

impl Allowed {
    fn allows(self, method: &Method, query: &Query) -> bool {
        match self {
            Self::Read => matches!(*method, Method::GET | Method::HEAD),
            Self::Change => method == Method::POST,
            Self::Both => method == Method::POST || (matches!(*method, Method::GET | Method::HEAD) && query.pairs.is_empty()),
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Read => "GET, HEAD",
            Self::Change => "POST",
            Self::Both => "GET, HEAD, POST",
        }
    }
}

fn help(_: &Admin, _: &Query) -> Answer {
    text(StatusCode::OK, format!("admin commands are:\n{}", commands()))
}

fn commands() -> String {
    PAGES.iter().fold(String::new(), |mut list, page| {
        let post = if page.method == Allowed::Change { " (POST)" } else { "" };
        let _ = writeln!(list, "  {}{post}: {}", page.path, page.help);
        list
    })
}

fn ready(admin: &Admin, _: &Query) -> Answer {
    match admin.readiness.reason() {
        None => text(StatusCode::OK, "LIVE\n"),
        Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// As [`ready`], with Envoy's word for a server that is about to end.
fn live(admin: &Admin, query: &Query) -> Answer {
    match State::of(admin) {
        State::Draining => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", State::Draining.name())),
        State::Live | State::Initializing => ready(admin, query),
    }
}

fn fail_health_checks(admin: &Admin, _: &Query) -> Answer {
    admin.readiness.fail_health_checks(true);
    ok("OK\n")
}

fn pass_health_checks(admin: &Admin, _: &Query) -> Answer {
    admin.readiness.fail_health_checks(false);
    ok("OK\n")
}

fn hot_restart_version(_: &Admin, _: &Query) -> Answer {
    ok("disabled\n")
}

fn runtime(_: &Admin, _: &Query) -> Answer {
    json_answer(&json!({"layers": [], "entries": {}}))
}

/// Envoy's `admin.v3.Memory`; what our allocator has no number for is zero.
fn memory(_: &Admin, _: &Query) -> Answer {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        (kibibytes.unwrap_or(0) * 1024).to_string()
    };
    json_answer(&json!({
        "allocated": bytes("RssAnon"),
        "heap_size": bytes("VmData"),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": bytes("VmRSS"),
    }))
}

fn contention(_: &Admin, _: &Query) -> Answer {
    ok("Mutex contention tracing is not enabled.\n")
}

/// Envoy's `admin.v3.UnreadyTargetsDumps`; empty when nothing is waited for.
fn init_dump(admin: &Admin, _: &Query) -> Answer {
    json_answer(&match admin.readiness.reason() {
        None => json!({}),
        Some(reason) => json!({"unready_targets_dumps": [{"name": "readiness", "target_names": [reason]}]}),
    })
}

fn config_dump(admin: &Admin, query: &Query) -> Answer {
    let names = match query.regex("name_regex") {
        Ok(names) => names,
        Err(answer) => return answer,
    };
    let resource = query.get("resource");
    if query.get("format") == Some("skiff") || resource.is_some_and(|name| dump::RESOURCES.contains(&name)) {
        return model_dump(admin, resource, names.as_ref());
    }
    let include_endpoints = query.get("include_eds").is_some_and(|value| value != "false");
    let wanted = config_dump::Wanted { resource, mask: query.get("mask"), names, include_endpoints };
    match config_dump::body(admin, wanted) {
        Ok(body) => Answer { status: StatusCode::OK, content_type: JSON, body },
        Err(reason) => text(StatusCode::NOT_FOUND, format!("{reason}\n")),
    }
}

fn model_dump(admin: &Admin, resource: Option<&str>, names: Option<&regex::Regex>) -> Answer {
    if let Some(unknown) = resource.filter(|name| !dump::RESOURCES.contains(name)) {
        return text(StatusCode::BAD_REQUEST, format!("unknown resource {unknown}: expected {}\n", dump::RESOURCES.join(", ")));
    }
    match dump::config(&admin.proxy.snapshot(), &admin.proxy.certificates(), resource) {
        Ok(mut dump) => {
            if let Some(names) = names {
                dump::retain(&mut dump, |name| names.is_match(name));
            }
            json_answer(&dump)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn clusters(admin: &Admin, query: &Query) -> Answer {
    let mut clusters = admin.proxy.clusters();
    match query.regex("filter") {
        Ok(Some(wanted)) => clusters.retain(|cluster| wanted.is_match(&cluster.name)),
        Ok(None) => {}
        Err(answer) => return answer,
    }
    let snapshot = admin.proxy.snapshot();
    if query.wants_json() {
        json_answer(&dump::clusters_json(&clusters, &snapshot, admin.mesh.is_some()))
    } else {
        ok(dump::clusters_text(&clusters, &snapshot, admin.mesh.is_some()))
    }
}

fn listeners(admin: &Admin, query: &Query) -> Answer {
    let listeners = admin.proxy.listeners();
    if query.wants_json() { json_answer(&dump::listeners_json(&listeners)) } else { ok(dump::listeners_text(&listeners)) }
}

fn certs(admin: &Admin, _: &Query) -> Answer {
    json_answer(&dump::certificates(&admin.proxy.certificates()))
}

fn prometheus(admin: &Admin, query: &Query) -> Answer {
    let body = match query.regex("filter") {
        Ok(None) => admin.metrics.render(),
        Ok(Some(wanted)) => stats::families(&admin.metrics.render(), |name| wanted.is_match(name)),
        Err(answer) => return answer,
    };
    Answer { status: StatusCode::OK, content_type: PROMETHEUS, body: page::whole(body) }
}

fn stats(admin: &Admin, query: &Query) -> Answer {
    if query.get("format") == Some("prometheus") {
        return prometheus(admin, query);
    }
    let wanted = match query.regex("filter") {
        Ok(wanted) => wanted,
        Err(answer) => return answer,
    };
    let state = State::of(admin);
    // Every other value here is in use: metrics begin to exist with it.
    let server = [
        ("server.live", u64::from(matches!(state, State::Live))),
        ("server.state", u64::from(state.number())),
        ("server.uptime", admin.started.elapsed().as_secs()),
    ];
    let lines = stats::lines(admin, &server, |name| wanted.as_ref().is_none_or(|wanted| wanted.is_match(name)));
    if query.wants_json() { json_answer(&stats::json(&lines)) } else { ok(stats::text(&lines)) }
}

fn server_info(admin: &Admin, _: &Query) -> Answer {
    let uptime = format!("{}s", admin.started.elapsed().as_secs());
    json_answer(&json!({
        "version": concat!("skiff/", env!("CARGO_PKG_VERSION")),
        "state": State::of(admin).name(),
        "hot_restart_version": "disabled",
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "command_line_options": {
            "service_node": admin.node.id,
            "service_cluster": admin.node.cluster,
            "log_level": admin.logging.current(),
            "mode": "Serve",
            "disable_hot_restart": true,
        },
        "node": {"id": admin.node.id, "cluster": admin.node.cluster, "user_agent_name": "skiff"},
    }))
}

fn logging(admin: &Admin, query: &Query) -> Answer {
    let changed = match (query.get("level"), query.get("paths")) {
        (None, None) if query.pairs.is_empty() => Ok(()),
        (Some(level), None) => admin.logging.set_level(level),
        (None, Some(paths)) => admin.logging.set_paths(paths),
        _ => return text(StatusCode::BAD_REQUEST, "expected level=<level> or paths=<module>:<level>,…\n"),
    };
    match changed {
        Ok(()) => ok(format!("active loggers:\n  {}\n", admin.logging.current().replace(',', "\n  "))),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn drain(admin: &Admin, query: &Query) -> Answer {
    admin.readiness.draining();
    admin.proxy.drain(query.get("inboundonly").is_some());
    ok("OK\n")
}

fn reopen(admin: &Admin, _: &Query) -> Answer {
    admin.proxy.reopen_access_logs();
    ok("OK\n")
}

fn quit(admin: &Admin, _: &Query) -> Answer {
    admin.shutdown.request();
    ok("OK\n")
}

/// Envoy's `ServerInfo.State`.
#[derive(Clone, Copy)]
enum State {
    Live,
    Draining,
    Initializing,
}

impl State {
    fn of(admin: &Admin) -> Self {
        match admin.readiness.reason() {
            None => Self::Live,
            Some(_) if admin.readiness.is_draining() => Self::Draining,
            Some(_) => Self::Initializing,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::Initializing => "INITIALIZING",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::Initializing => 3,
        }
    }
}

/// The query of a request, decoded.
struct Query {
    pairs: Vec<(String, String)>,
    changes: bool,
}

impl Query {
    fn of<B>(request: &Request<B>) -> Self {
        Self { pairs: parse_query(request.uri()), changes: request.method() == Method::POST }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The expression of this name; the error is an answer.
    fn regex(&self, name: &str) -> Result<Option<regex::Regex>, Answer> {
        let compiled = self.get(name).map(|source| regex::RegexBuilder::new(source).size_limit(MAX_FILTER).build());
        compiled.transpose().map_err(|_| text(StatusCode::BAD_REQUEST, format!("invalid or too large {name} expression\n")))
    }

    fn wants_json(&self) -> bool {
        self.get("format") == Some("json")
    }
}

fn parse_query(uri: &Uri) -> Vec<(String, String)> {
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Percent-decoding; what is not valid stays as it is.
fn decode(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|&b| char::from(b).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high * 16 + low);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
