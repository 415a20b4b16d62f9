//! Heads on their way through: parsed, prepared, written.

use std::rc::Rc;

use criterion::{BatchSize, Criterion};
use skiff_proxy::config::{HttpConnectionManager, RouteConfiguration, RouteSource, TrafficDirection};
use skiff_proxy::http::body::BodySize;
use skiff_proxy::http::forwarding::{Asked, Forwarding, prepare_request, prepare_response};
use skiff_proxy::http::h1::encode::{HeaderCase, WriteHead, encode_request, encode_response};
use skiff_proxy::http::h1::head::{HeadLimits, RequestKind, parse_request, parse_response};
use skiff_proxy::http::head::{RequestHead, ResponseHead};
use skiff_proxy::http::path::{PathOptions, normalize};
use skiff_proxy::stream_info::ConnectionInfo;

const REQUEST: &[u8] =
    b"GET /details/0?full=1 HTTP/1.1\r\nhost: details.bookinfo:9080\r\nuser-agent: curl/8.9.1\r\naccept: */*\r\n\
    accept-encoding: gzip, deflate\r\nx-request-id: 8f7d3a0e-9c1b-9f60-b5f1-2d9a53a8f2c4\r\nx-b3-traceid: 463ac35c9f6413ad\r\n\
    x-b3-spanid: a2fb4a1d1a96d312\r\ncookie: session=0123456789abcdef\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 178\r\nserver: webrick\r\n\
    date: Thu, 01 Jan 2026 00:00:00 GMT\r\ncache-control: no-store\r\n\r\n";

pub(crate) fn bench(criterion: &mut Criterion) {
    codec(criterion);
    forwarding(criterion);
}

fn codec(criterion: &mut Criterion) {
    let limits = HeadLimits::default();
    let mut request = RequestHead::new();
    criterion.bench_function("heads/parse a request", |bench| {
        bench.iter(|| {
            request.clear();
            parse_request(REQUEST, &limits, &mut request).unwrap().unwrap().consumed
        });
    });
    let mut response = ResponseHead::default();
    criterion.bench_function("heads/parse a response", |bench| {
        bench.iter(|| {
            response.clear();
            parse_response(RESPONSE, &limits, RequestKind::default(), &mut response).unwrap().unwrap().consumed
        });
    });
    let mut out = Vec::with_capacity(4096);
    criterion.bench_function("heads/encode a request", |bench| {
        bench.iter(|| {
            out.clear();
            encode_request(&request, BodySize::Empty, HeaderCase::Lower, &mut out)
        });
    });
    criterion.bench_function("heads/encode a response", |bench| {
        bench.iter(|| {
            out.clear();
            encode_response(&response, BodySize::Known(178), WriteHead::default(), HeaderCase::Lower, &mut out)
        });
    });
}

fn forwarding(criterion: &mut Criterion) {
    let routes = RouteSource::Inline(RouteConfiguration::default().into());
    let mut manager = HttpConnectionManager::new("inbound", TrafficDirection::Inbound, routes);
    manager.normalize_path = true;
    let (forwarding, paths) = (Forwarding::from(&manager), PathOptions::from(&manager));
    let connection = Rc::new(ConnectionInfo::new(1, "127.0.0.1:9080".parse().unwrap(), "10.0.0.9:40000".parse().unwrap()));
    let limits = HeadLimits::default();
    let mut request = RequestHead::new();
    parse_request(REQUEST, &limits, &mut request).unwrap();
    let mut response = ResponseHead::default();
    parse_response(RESPONSE, &limits, RequestKind::default(), &mut response).unwrap();
    criterion.bench_function("heads/normalise a path", |bench| bench.iter(|| normalize(request.path(), paths)));
    criterion.bench_function("heads/prepare a request", |bench| {
        let prepare = |mut head: RequestHead| {
            prepare_request(&mut head, &connection, b"", &forwarding).unwrap();
            head
        };
        bench.iter_batched(|| request.clone(), prepare, BatchSize::SmallInput);
    });
    criterion.bench_function("heads/prepare a response", |bench| {
        let prepare = |mut head: ResponseHead| {
            prepare_response(&mut head, Some(&request), Asked::default(), &forwarding);
            head
        };
        bench.iter_batched(|| response.clone(), prepare, BatchSize::SmallInput);
    });
}
