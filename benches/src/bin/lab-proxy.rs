//! The data plane alone in the roles of the side-by-side lab.
//!
//! `lab-proxy ingress CERTS LOGS` listens on 10080 (HTTP/1), 10081 (HTTP/1 with log and metrics), 10082 (h2c), 10443 (mutual TLS),
//! 10090 (TCP), 10091 (TCP over mutual TLS), all to 127.0.0.1:9000. `lab-proxy egress CERTS LOGS` listens on 127.0.0.2:10070
//! (HTTP to mutual TLS on 10443) and 127.0.0.2:10071 (TCP to mutual TLS on 10091).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use skiff_benches::{Lab, Role, downstream_tls, upstream_tls};
use skiff_proxy::config::{Snapshot, UpstreamProtocol};
use skiff_proxy::{Options, Proxy};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("usage: lab-proxy ingress|egress CERTS LOGS");
    let (role, certs, logs) = (next()?, PathBuf::from(next()?), PathBuf::from(next()?));
    let snapshot = match role.as_str() {
        "ingress" => ingress(&certs, &logs),
        "egress" => egress(&certs),
        other => bail!("role {other:?}: expected ingress or egress"),
    };
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let proxy = Proxy::start(&Options { workers: 1, ..Options::default() }, Arc::new(recorder))?;
    let report = proxy.apply(snapshot);
    if let Some(rejected) = report.rejected.first() {
        bail!("{} {}: {}", rejected.kind, rejected.name, rejected.reason);
    }
    loop {
        std::thread::sleep(std::time::Duration::from_secs(5));
        handle.run_upkeep();
    }
}

fn ingress(certs: &std::path::Path, logs: &std::path::Path) -> Snapshot {
    let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let backend = || (SocketAddr::from(([127, 0, 0, 1], 9000)), None, UpstreamProtocol::Http1);
    let tls = Some(downstream_tls(certs));
    let log = logs.join("skiff-access.log");
    Lab::default()
        .listener(Role::Http, at(10080), None, backend(), None)
        .listener(Role::HttpLog, at(10081), None, backend(), Some(&log))
        .listener(Role::Http2, at(10082), None, backend(), None)
        .listener(Role::Http, at(10443), tls.clone(), backend(), None)
        .listener(Role::Tcp, at(10090), None, backend(), None)
        .listener(Role::Tcp, at(10091), tls, backend(), None)
        .build()
}

fn egress(certs: &std::path::Path) -> Snapshot {
    let at = |port| SocketAddr::from(([127, 0, 0, 2], port));
    let to = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let http = (to(10443), Some(upstream_tls(certs, &["http/1.1"])), UpstreamProtocol::Http1);
    let tcp = (to(10091), Some(upstream_tls(certs, &[])), UpstreamProtocol::Http1);
    Lab::default().listener(Role::Http, at(10070), None, http, None).listener(Role::Tcp, at(10071), None, tcp, None).build()
}
