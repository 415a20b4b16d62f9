//! One whole request over loopback sockets: client, proxy with one worker, backend, each on a thread of its own.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use criterion::Criterion;
use metrics_exporter_prometheus::PrometheusBuilder;
use skiff_benches::client::Client;
use skiff_benches::{Lab, Role, backend};
use skiff_proxy::config::UpstreamProtocol;
use skiff_proxy::{Options, Proxy};

pub(crate) fn bench(criterion: &mut Criterion) {
    let backend = backend::start().unwrap();
    // What the sockets alone cost.
    let mut direct = Client::connect(backend).unwrap();
    criterion.bench_function("request/without a proxy", |bench| bench.iter(|| direct.get().unwrap()));
    let log = std::env::temp_dir().join(format!("skiff-bench-{}.log", std::process::id()));
    for (name, role, log) in [("http", Role::Http, None), ("http with log and metrics", Role::HttpLog, Some(log.as_path()))] {
        let listener = free_address();
        let snapshot = Lab::default().listener(role, listener, None, (backend, None, UpstreamProtocol::Http1), log).build();
        let recorder = Arc::new(PrometheusBuilder::new().build_recorder());
        let proxy = Proxy::start(&Options { workers: 1, ..Options::default() }, recorder).unwrap();
        let report = proxy.apply(snapshot);
        assert!(report.rejected.is_empty(), "{:?}", report.rejected);
        let mut client = Client::connect(listener).unwrap();
        criterion.bench_function(&format!("request/{name}"), |bench| bench.iter(|| client.get().unwrap()));
    }
    let _ = std::fs::remove_file(log);
}

fn free_address() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).unwrap()
}
