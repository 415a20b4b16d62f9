//! The data plane alone in the roles of the side-by-side lab.
//!
//! `lab-proxy ingress CERTS LOGS` listens on 10080 (HTTP/1), 10081 (HTTP/1 with log and metrics), 10082 (h2c), 10443 (mutual TLS),
//! 10090 (TCP), 10091 (TCP over mutual TLS), all to 127.0.0.1:9000. `lab-proxy egress CERTS LOGS` listens on 127.0.0.2:10070
//! (HTTP to mutual TLS on 10443) and 127.0.0.2:10071 (TCP to mutual TLS on 10091).
//!
//! `lab-proxy one ROLE UPSTREAM LOG` needs nothing prepared: one listener, in the role `http`, `http+log+metrics` or `tcp`, on a free
//! port of 127.0.0.1 that it prints. `benches/instructions.sh` counts its instructions, with `lab-proxy backend` (which prints its
//! address too) behind it and `lab-proxy load ADDRESS REQUESTS` in front.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use skiff_benches::client::Client;
use skiff_benches::{Lab, Role, backend, downstream_tls, upstream_tls};
use skiff_proxy::config::{Snapshot, UpstreamProtocol};
use skiff_proxy::{Options, Proxy};

#[global_allocator]
static ALLOCATOR: skiff_memory::Allocator = skiff_memory::ALLOCATOR;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: lab-proxy ingress|egress CERTS LOGS, one ROLE UPSTREAM LOG, backend, or load ADDRESS REQUESTS";
    let mut next = || arguments.next().context(usage);
    let snapshot = match next()?.as_str() {
        "ingress" => ingress(&PathBuf::from(next()?), &PathBuf::from(next()?)),
        "egress" => egress(&PathBuf::from(next()?)),
        "one" => one(&next()?, next()?.parse()?, &PathBuf::from(next()?))?,
        "backend" => return serve_backend(),
        "load" => return load(next()?.parse()?, next()?.parse()?),
        other => bail!("{other:?}: expected ingress, egress, one, backend or load"),
    };
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let proxy = Proxy::start(&Options { workers: 1, ..Options::default() }, Arc::new(recorder))?;
    let report = proxy.apply(snapshot);
    if let Some(rejected) = report.rejected.first() {
        bail!("{} {}: {}", rejected.kind, rejected.name, rejected.reason);
    }
    for listener in proxy.listeners() {
        writeln!(std::io::stdout(), "listening on {}", listener.address)?;
    }
    loop {
        std::thread::sleep(std::time::Duration::from_secs(5));
        handle.run_upkeep();
    }
}

/// One listener, of which the log and the metrics belong to its role.
fn one(role: &str, upstream: SocketAddr, log: &Path) -> anyhow::Result<Snapshot> {
    let (role, log) = match role {
        "http" => (Role::Http, None),
        "http+log+metrics" => (Role::HttpLog, Some(log)),
        "tcp" => (Role::Tcp, None),
        other => bail!("role {other:?}: expected http, http+log+metrics or tcp"),
    };
    // The port is free again at once, and nobody else is likely to get it in between.
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    Ok(Lab::default().listener(role, address, None, (upstream, None, UpstreamProtocol::Http1), log).build())
}

fn serve_backend() -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "listening on {}", backend::start()?)?;
    loop {
        std::thread::park();
    }
}

fn load(address: SocketAddr, requests: u32) -> anyhow::Result<()> {
    let mut client = Client::connect(address)?;
    for number in 0..requests {
        client.get().with_context(|| format!("request {number}"))?;
    }
    Ok(())
}

fn ingress(certs: &Path, logs: &Path) -> Snapshot {
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

fn egress(certs: &Path) -> Snapshot {
    let at = |port| SocketAddr::from(([127, 0, 0, 2], port));
    let to = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let http = (to(10443), Some(upstream_tls(certs, &["http/1.1"])), UpstreamProtocol::Http1);
    let tcp = (to(10091), Some(upstream_tls(certs, &[])), UpstreamProtocol::Http1);
    Lab::default().listener(Role::Http, at(10070), None, http, None).listener(Role::Tcp, at(10071), None, tcp, None).build()
}
