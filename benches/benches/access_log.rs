//! Rendering Istio's access log line.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use criterion::Criterion;
use http::StatusCode;
use skiff_proxy::config::LogFormat;
use skiff_proxy::http::head::{Known, RequestHead, ResponseHead, Version};
use skiff_proxy::stream_info::{ConnectionInfo, FormatContext, StreamInfo, UpstreamConnectionInfo};
use skiff_proxy::telemetry::format::{Format, LogTemplate};

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut request = RequestHead::new();
    request.set_authority(b"details.bookinfo:9080");
    request.set_path(b"/details/0");
    request.headers.push(b"user-agent", b"curl/8.9.1");
    request.headers.push(b"x-forwarded-for", b"10.0.0.9");
    request.headers.push(b"x-request-id", b"8f7d3a0e-9c1b-9f60-b5f1-2d9a53a8f2c4");
    let mut response = ResponseHead::new(StatusCode::OK);
    response.headers.push_known(Known::XEnvoyUpstreamServiceTime, b"3");
    let info = stream();
    let context = || FormatContext {
        info: &info,
        request: Some(&request),
        response: Some(&response),
        trailers: None,
        now: info.start + Duration::from_millis(4),
    };
    let mut line = Vec::with_capacity(1024);
    let text = Format::compile(LogFormat::ISTIO).unwrap();
    criterion.bench_function("access log/Istio's line", |bench| {
        bench.iter(|| {
            line.clear();
            text.render(&context(), &mut line);
            line.len()
        });
    });
    let fields =
        [("time", "%START_TIME%"), ("method", "%REQ(:METHOD)%"), ("status", "%RESPONSE_CODE%"), ("host", "%UPSTREAM_HOST%")];
    let fields = fields.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let json = LogTemplate::compile(&LogFormat::Json { fields, omit_empty_values: false, sort: true }).unwrap();
    criterion.bench_function("access log/JSON of four fields", |bench| {
        bench.iter(|| {
            line.clear();
            json.render(&context(), &mut line);
            line.len()
        });
    });
}

/// A request that went well.
fn stream() -> StreamInfo {
    let connection = Rc::new(ConnectionInfo::new(1, "127.0.0.1:9080".parse().unwrap(), "10.0.0.9:40000".parse().unwrap()));
    let mut info = StreamInfo::new(connection);
    let after = |milliseconds| Some(info.start + Duration::from_millis(milliseconds));
    info.request_end = after(0);
    info.upstream_start = after(1);
    info.response_start = after(3);
    info.response_end = after(4);
    info.start_time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123);
    info.protocol = Some(Version::Http11);
    info.response_code = 200;
    info.details = "via_upstream".into();
    info.bytes_sent = 1024;
    info.upstream_host = Some("127.0.0.21:9080".into());
    info.upstream_cluster = Some("outbound|9080||details.bookinfo.svc.cluster.local".into());
    info.upstream = Some(Rc::new(UpstreamConnectionInfo {
        local: Some("127.0.0.1:51234".parse().unwrap()),
        ..UpstreamConnectionInfo::default()
    }));
    info.route_name = Some("default".into());
    info.attempts = 1;
    info
}
