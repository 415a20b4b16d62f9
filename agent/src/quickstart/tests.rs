//! The parts of the quickstart; the whole of it is an end-to-end test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_proxy::config::{
    AccessLog, AccessLogSink, FilterChain, FilterChainMatch, HttpConnectionManager, Listener, LogFormat, NetworkFilter,
    RouteConfiguration, RouteSource, Snapshot, TrafficDirection,
};

use super::*;
use crate::sidecar::{Translate, Translation};

fn log_to(sink: AccessLogSink) -> AccessLog {
    AccessLog { filter: None, format: LogFormat::Text("x\n".to_owned()), sink }
}

fn snapshot() -> Snapshot {
    let routes = RouteSource::Inline(Arc::new(RouteConfiguration::default()));
    let mut http = HttpConnectionManager::new("in", TrafficDirection::Inbound, routes);
    http.access_log = vec![log_to(AccessLogSink::Stdout), log_to(AccessLogSink::Stderr)];
    let chain = FilterChain {
        name: "http".to_owned(),
        matches: FilterChainMatch::default(),
        tls: None,
        handshake_timeout: Duration::from_secs(15),
        connection_limit: None,
        peer_exchange: None,
        rbac: Vec::new(),
        filter: NetworkFilter::Http(Arc::new(http)),
    };
    let listener = Listener {
        name: "in".to_owned(),
        address: DETAILS.ingress,
        additional_addresses: Vec::new(),
        traffic_direction: TrafficDirection::Inbound,
        inspect_tls: false,
        inspect_http: false,
        inspect_timeout: None,
        continue_on_inspect_timeout: true,
        filter_chains: vec![chain],
        default_filter_chain: None,
        access_log: vec![log_to(AccessLogSink::Stdout)],
    };
    Snapshot { listeners: [("in".to_owned(), Arc::new(listener))].into(), ..Snapshot::default() }
}

#[test]
fn a_check_reads_what_would_go_to_stdout() {
    let translate: Translate = Box::new(|_| Ok(Translation { snapshot: snapshot(), warnings: Vec::new() }));
    let file = PathBuf::from("/tmp/details.log");
    let translation = access_logs::redirected(translate, file.clone())(&[]).unwrap();
    let listener = &translation.snapshot.listeners["in"];
    let NetworkFilter::Http(http) = &listener.filter_chains[0].filter else { panic!("not HTTP") };
    assert_eq!(listener.access_log[0].sink, AccessLogSink::File(file.clone()));
    assert_eq!(
        http.access_log.iter().map(|log| &log.sink).collect::<Vec<_>>(),
        [&AccessLogSink::File(file), &AccessLogSink::Stderr]
    );
}

#[test]
fn the_folder_goes_with_the_quickstart() {
    let folder = Folder::create().unwrap();
    let path = folder.configuration();
    assert!(path.join("sidecars.yaml").is_file());
    drop(folder);
    assert!(!path.parent().is_some_and(Path::exists));
}

#[test]
fn the_curl_line_goes_through_the_callers_sidecar() {
    assert_eq!(
        curl(&RATINGS, &DETAILS, "/details/0"),
        "curl --resolve details.bookinfo:9080:127.0.0.2 http://details.bookinfo:9080/details/0"
    );
}

#[test]
fn a_failed_scenario_is_a_failure() {
    assert_eq!(verdict(Outcome { total: 7, failed: 0 }), Ok(()));
    assert_eq!(verdict(Outcome { total: 7, failed: 2 }).unwrap_err().code(), 1);
}
