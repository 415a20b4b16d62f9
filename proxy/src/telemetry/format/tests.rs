use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};

use super::{Format, LogTemplate};
use crate::config::LogFormat;
use crate::flags::ResponseFlags;
use crate::http::head::{Headers, RequestHead, ResponseHead, Version};
use crate::rbac::Metadata;
use crate::stream_info::{ConnectionInfo, FormatContext, StreamInfo, UpstreamConnectionInfo};
use crate::tls::PeerCertificate;

/// 2021-10-25T11:06:13.553Z, the example of Envoy's documentation.
fn start_time() -> SystemTime {
    UNIX_EPOCH + Duration::new(1_635_159_973, 553_042_007)
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn connection() -> ConnectionInfo {
    ConnectionInfo::new(7, socket("127.0.0.1:28080"), socket("127.0.0.1:50123"))
}

fn certificate() -> PeerCertificate {
    PeerCertificate {
        uri_sans: vec!["spiffe://cluster.local/ns/bookinfo/sa/productpage".into(), "spiffe://second".into()],
        dns_sans: vec!["productpage".into()],
        email_sans: vec!["a@b.c".into()],
        ip_sans: vec!["10.0.0.1".into(), "::1".into()],
        issuer: "O=mesh".into(),
        validity: Some((UNIX_EPOCH + Duration::from_secs(86_400), UNIX_EPOCH + Duration::from_secs(2 * 86_400))),
        subject: "CN=\"a\nb\"".into(),
        sha256: "00ff".into(),
        serial: "1a".into(),
        ..PeerCertificate::default()
    }
}

fn own() -> PeerCertificate {
    let uri = "spiffe://cluster.local/ns/bookinfo/sa/details";
    PeerCertificate { uri_sans: vec![uri.into()], dns_sans: vec!["details".into()], ..PeerCertificate::default() }
}

/// A request that went well, as in golden `basic.quote_in_ua_text_log`.
fn info(connection: ConnectionInfo) -> StreamInfo {
    let mut info = StreamInfo::new(Rc::new(connection));
    let after = |ms| info.start + Duration::from_millis(ms);
    let (request_end, upstream_start, response_start, response_end) = (after(1), after(2), after(5), after(6));
    info.start_time = start_time();
    info.protocol = Some(Version::Http11);
    info.response_code = 200;
    info.details = Cow::Borrowed("via_upstream");
    info.bytes_sent = 3;
    info.request_end = Some(request_end);
    info.upstream_start = Some(upstream_start);
    info.response_start = Some(response_start);
    info.response_end = Some(response_end);
    info.upstream_host = Some("127.0.0.1:29080".into());
    info.upstream_cluster = Some("inbound|9080||".into());
    info.upstream =
        Some(Rc::new(UpstreamConnectionInfo { local: Some(socket("127.0.0.1:40001")), ..UpstreamConnectionInfo::default() }));
    info.route_name = Some("default".into());
    info.attempts = 1;
    info
}

fn request(headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new();
    head.method = Method::GET;
    head.set_authority(b"details.bookinfo:9080");
    head.set_path(b"/");
    for (name, value) in headers {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

fn response(headers: &[(&str, &str)]) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK);
    for (name, value) in headers {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

fn context<'a>(info: &'a StreamInfo, request: Option<&'a RequestHead>, response: Option<&'a ResponseHead>) -> FormatContext<'a> {
    FormatContext { info, request, response, trailers: None, now: info.start + Duration::from_millis(8) }
}

fn render(format: &str, context: &FormatContext<'_>) -> String {
    let mut out = Vec::new();
    Format::compile(format).unwrap().render(context, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn istio_line_is_the_golden_one() {
    let info = info(connection());
    let request = request(&[("user-agent", "a \"q\" b"), ("x-request-id", "f1b2")]);
    let response = response(&[("x-envoy-upstream-service-time", "4")]);
    assert_eq!(
        render(LogFormat::ISTIO, &context(&info, Some(&request), Some(&response))),
        "[2021-10-25T11:06:13.553Z] \"GET / HTTP/1.1\" 200 - via_upstream - \"-\" 0 3 8 4 \"-\" \"a \"q\" b\" \"f1b2\" \
         \"details.bookinfo:9080\" \"127.0.0.1:29080\" inbound|9080|| 127.0.0.1:40001 127.0.0.1:28080 127.0.0.1:50123 - default\n"
    );
}

/// Golden `flags.UF_refused`: flag order of HTTP, white space of the failure reason.
#[test]
fn refused_connection_is_logged_as_envoy_does() {
    let mut info = info(connection());
    info.response_code = 503;
    info.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
    info.details = Cow::Borrowed("a{b|delayed connect error: Connection refused}");
    info.upstream_transport_failure = Some("delayed connect error: Connection refused".into());
    info.upstream = None;
    let request = request(&[]);
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %RESPONSE_CODE_DETAILS% \
                  %UPSTREAM_TRANSPORT_FAILURE_REASON% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%";
    assert_eq!(
        render(format, &context(&info, Some(&request), None)),
        "503 URX,UF UpstreamRetryLimitExceeded,UpstreamConnectionFailure a{b|delayed_connect_error:_Connection_refused} \
         delayed_connect_error:_Connection_refused - 127.0.0.1:29080 -"
    );
}

/// Golden `tcp.sni_dead`.
#[test]
fn tcp_connection_is_logged_as_envoy_does() {
    let mut info = StreamInfo::new(Rc::new(ConnectionInfo {
        server_name: Some("b.test".into()),
        local: socket("127.0.0.1:28487"),
        ..connection()
    }));
    info.start_time = start_time();
    info.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE | ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
    info.upstream_transport_failure = Some("delayed connect error: Connection refused".into());
    info.upstream_host = Some("127.0.0.1:29099".into());
    info.upstream_cluster = Some("inbound|9099||".into());
    assert_eq!(
        render(LogFormat::ISTIO, &context(&info, None, None)),
        "[2021-10-25T11:06:13.553Z] \"- - -\" 0 UF,URX - - \"delayed_connect_error:_Connection_refused\" 0 0 8 - \"-\" \"-\" \"-\" \
         \"-\" \"127.0.0.1:29099\" inbound|9099|| - 127.0.0.1:28487 127.0.0.1:50123 b.test -\n"
    );
}

/// Golden `basic.json_access_log`.
#[test]
fn json_is_typed_sorted_and_escaped() {
    let fields = [
        ("user_agent", "%REQ(USER-AGENT)%"),
        ("authority", "%REQ(:AUTHORITY)%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
        ("mixed", "%BYTES_SENT%-%ROUTE_NAME%-%REQ(absent)%"),
        ("ke\"y", "static"),
        ("empty", ""),
        ("port", "%DOWNSTREAM_LOCAL_PORT%"),
    ];
    let info = info(connection());
    let request = request(&[("user-agent", "ua \"quoted\" \\ x")]);
    let response = response(&[("x-envoy-upstream-service-time", "4")]);
    let json = |omit_empty_values, sort| {
        let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut line = Vec::new();
        LogTemplate::compile(&LogFormat::Json { fields, omit_empty_values, sort })
            .unwrap()
            .render(&context(&info, Some(&request), Some(&response)), &mut line);
        String::from_utf8(line).unwrap()
    };
    assert_eq!(
        json(false, true),
        "{\"authority\":\"details.bookinfo:9080\",\"bytes_sent\":3,\"empty\":\"\",\"ke\\\"y\":\"static\",\"mixed\":\"3-default--\",\
         \"port\":28080,\"response_flags\":\"-\",\"upstream_service_time\":\"4\",\"user_agent\":\"ua \\\"quoted\\\" \\\\ x\",\
         \"x_forwarded_for\":null}\n"
    );
    let omitted = json(true, false);
    assert!(omitted.starts_with("{\"user_agent\":") && !omitted.contains("x_forwarded_for"), "{omitted}");
    assert!(omitted.contains("\"mixed\":\"3-default-\","), "{omitted}");
}

#[test]
fn json_without_members_is_an_object() {
    let fields = vec![("gone".to_owned(), "%ROUTE_NAME%".to_owned())];
    let template = LogTemplate::compile(&LogFormat::Json { fields, omit_empty_values: true, sort: false }).unwrap();
    let info = StreamInfo::new(Rc::new(connection()));
    let mut line = b"before\n".to_vec();
    template.render(&context(&info, None, None), &mut line);
    assert_eq!(line, b"before\n{}\n");
}

/// Security case 53: whatever a peer sends stays in its line, and JSON stays JSON.
#[test]
fn values_cannot_forge_lines() {
    let hostile = "a\r\n[2021] \"GET /forged\"\u{1b}[2J\t\0\u{7f}é";
    let mut connection = connection();
    connection.server_name = Some("x\ny".into());
    connection.peer = Some(Arc::new(certificate()));
    let mut info = info(connection);
    info.details = Cow::Owned(hostile.to_owned());
    let mut request = request(&[("user-agent", hostile)]);
    request.headers.push(b"x-latin", b"\xe9\xff ok");
    request.set_path(b"/p?q=%0d%0aforged");
    let context = context(&info, Some(&request), None);
    let line = render("%REQ(user-agent)%|%DOWNSTREAM_PEER_SUBJECT%|%REQUESTED_SERVER_NAME%|%QUERY_PARAMS(DECODED)%", &context);
    assert_eq!(line, "a\\x0d\\x0a[2021] \"GET /forged\"\\x1b[2J\t\\x00\\x7fé|CN=\"a\\x0ab\"|invalid:x_y|q=\\x0d\\x0aforged");
    assert!(!render("%RESPONSE_CODE_DETAILS%", &context).contains(['\r', '\n', '\t', ' ']));

    let fields = vec![("ua".to_owned(), "%REQ(user-agent)%".to_owned()), ("latin".to_owned(), "%REQ(x-latin)%".to_owned())];
    let mut json = Vec::new();
    LogTemplate::compile(&LogFormat::Json { fields, omit_empty_values: false, sort: false }).unwrap().render(&context, &mut json);
    assert_eq!(json.iter().filter(|byte| **byte == b'\n').count(), 1);
    let parsed: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(parsed["ua"], hostile);
    assert_eq!(parsed["latin"], "\u{fffd}\u{fffd} ok");
}

#[test]
fn headers_have_alternatives_limits_and_envoys_idea_of_repetition() {
    let info = info(connection());
    let mut request = request(&[("x-forwarded-for", "1.2.3.4"), ("x-two", "a"), ("x-forwarded-for", "5.6.7.8"), ("x-two", "b")]);
    request.headers.push(b"x-none", b"");
    let context = context(&info, Some(&request), None);
    let cases = [
        ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/"),
        ("%REQ(x-two?:path):1%", "a"),
        ("%REQ(:AUTHORITY):7%", "details"),
        ("%REQ(host)%", "details.bookinfo:9080"),
        ("%REQ(x-forwarded-for)%", "1.2.3.4,5.6.7.8"),
        ("%REQ(x-two)%", "a"),
        ("%REQ(x-none)%", ""),
        ("%REQ(nothing?neither)%", "-"),
        ("%RESP(server)%", "-"),
        ("100%% %REQ(:METHOD)%%%", "100% GET%"),
    ];
    for (format, expected) in cases {
        assert_eq!(render(format, &context), expected, "{format}");
    }
    let mut header = Vec::new();
    Format::compile("%REQ(nothing)%").unwrap().render_header(&context, &mut header);
    assert_eq!(header, b"", "a header mutation without value is left out");
}

#[test]
fn paths_and_queries_are_taken_apart() {
    let info = info(connection());
    let mut request = request(&[("x-envoy-original-path", "/old?a=0")]);
    request.set_path(b"/new?a=1&b&c=%20x");
    let context = context(&info, Some(&request), None);
    let cases = [
        ("%PATH%", "/old?a=0"),
        ("%PATH(NQ)%", "/old"),
        ("%PATH(WQ:PATH):6%", "/new?a"),
        ("%PATH(NQ:PATH)%", "/new"),
        ("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/old"),
        ("%QUERY_PARAM(a)%", "1"),
        ("%QUERY_PARAM(b)%", ""),
        ("%QUERY_PARAM(d)%", "-"),
        ("%QUERY_PARAMS%", "a=1&b&c=%20x"),
        ("%QUERY_PARAMS(DECODED)%", "a=1&b&c= x"),
    ];
    for (format, expected) in cases {
        assert_eq!(render(format, &context), expected, "{format}");
    }
}

#[test]
fn times_follow_strftime() {
    let info = info(connection());
    let context = context(&info, None, None);
    let cases = [
        ("%START_TIME%", "2021-10-25T11:06:13.553Z"),
        ("%EMIT_TIME%", "2021-10-25T11:06:13.561Z"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z)%", "2021/10/25T11:06:13+0000"),
        ("%START_TIME(%s.%3f)%", "1635159973.553"),
        ("%START_TIME(%s)%", "1635159973"),
        ("%START_TIME(%f %6f %9f %1f)%", "553042007 553042 553042007 5"),
        ("%START_TIME(%a, %d %b %Y %T %Z)%", "Mon, 25 Oct 2021 11:06:13 UTC"),
        ("%START_TIME(%A %B %e %j %I%p %F %R %y %%)%", "Monday October 25 298 11AM 2021-10-25 11:06 21 %"),
        ("%DURATION% %REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "8 1 5 3"),
        ("%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)% %COMMON_DURATION(US_RX_BEG:US_RX_END)%", "2000 1"),
        ("%COMMON_DURATION(DS_TX_END:DS_RX_BEG:ms)% %COMMON_DURATION(mine:DS_TX_END:ms)%", "- -"),
    ];
    for (format, expected) in cases {
        assert_eq!(render(format, &context), expected, "{format}");
    }
}

#[test]
fn default_time_changes_with_the_second() {
    let mut info = info(connection());
    let times = [(1_635_159_973, 1), (1_635_159_974, 999_000_000), (0, 0), (951_827_696, 20_000_000), (1_635_159_973, 1)];
    let rendered = times.map(|(seconds, nanos)| {
        info.start_time = UNIX_EPOCH + Duration::new(seconds, nanos);
        render("%START_TIME%", &context(&info, None, None))
    });
    assert_eq!(
        rendered,
        [
            "2021-10-25T11:06:13.000Z",
            "2021-10-25T11:06:14.999Z",
            "1970-01-01T00:00:00.000Z",
            "2000-02-29T12:34:56.020Z",
            "2021-10-25T11:06:13.000Z"
        ]
    );
}

#[test]
fn addresses_come_whole_and_in_parts() {
    let connection = ConnectionInfo { local: socket("[2001:db8::1]:443"), ..connection() };
    let mut info = info(connection);
    // x-forwarded-for has no port.
    info.remote = socket("10.1.10.23:0");
    let context = context(&info, None, None);
    let cases = [
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_LOCAL_PORT%", "[2001:db8::1]:443 443"),
        ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(32)%", "2001:db8::1 2001:db8::/32"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%", "10.1.10.23:0 10.1.0.0/16"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_PORT%", "127.0.0.1:50123 50123"),
        ("%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %UPSTREAM_LOCAL_PORT%", "127.0.0.1 40001"),
        (
            "%UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%",
            "127.0.0.1:29080 127.0.0.1 29080",
        ),
    ];
    for (format, expected) in cases {
        assert_eq!(render(format, &context), expected, "{format}");
    }
}

#[test]
fn tls_facts_are_there_on_mtls_only() {
    let format = "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_SERIAL% %DOWNSTREAM_PEER_FINGERPRINT_256% \
                  %DOWNSTREAM_LOCAL_URI_SAN% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %REQUESTED_SERVER_NAME%";
    let plain = info(connection());
    assert_eq!(render(format, &context(&plain, None, None)), "- - - - - - - -");
    let mutual = info(ConnectionInfo {
        peer: Some(Arc::new(certificate())),
        local_certificate: Some(Arc::new(own())),
        tls_version: Some("TLSv1.3"),
        tls_cipher: Some("TLS_AES_256_GCM_SHA384"),
        server_name: Some("details.test".into()),
        ..connection()
    });
    assert_eq!(
        render(format, &context(&mutual, None, None)),
        "spiffe://cluster.local/ns/bookinfo/sa/productpage,spiffe://second productpage 1a 00ff \
         spiffe://cluster.local/ns/bookinfo/sa/details TLSv1.3 TLS_AES_256_GCM_SHA384 details.test"
    );
    assert_eq!(
        render(
            "%DOWNSTREAM_PEER_ISSUER% %DOWNSTREAM_PEER_IP_SAN% %DOWNSTREAM_PEER_EMAIL_SAN% %DOWNSTREAM_LOCAL_DNS_SAN% \
             %DOWNSTREAM_PEER_CERT_V_START% %DOWNSTREAM_PEER_CERT_V_END(%Y-%m-%d)% %DOWNSTREAM_PEER_CERT% %UPSTREAM_TLS_CIPHER%",
            &context(&mutual, None, None)
        ),
        "O=mesh 10.0.0.1,::1 a@b.c details 1970-01-02T00:00:00.000Z 1970-01-03 - -"
    );
    let failed = info(ConnectionInfo { transport_failure: Some("TLS_error:_no".into()), ..connection() });
    assert_eq!(render("%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", &context(&failed, None, None)), "TLS_error:_no");
    let request = request(&[]);
    assert_eq!(
        render("%REQUESTED_SERVER_NAME(HOST_FIRST)% %REQUESTED_SERVER_NAME(SNI_FIRST)%", &context(&mutual, Some(&request), None)),
        "details.bookinfo:9080 details.test"
    );
}

#[test]
fn grpc_status_comes_from_trailers_head_or_http() {
    let mut info = info(connection());
    let grpc = request(&[("content-type", "application/grpc")]);
    let plain = request(&[]);
    let ok = response(&[]);
    let trailers_only = response(&[("grpc-status", "7")]);
    let mut trailers = Headers::new();
    trailers.push(b"grpc-status", b"4");
    let format = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%";
    let with_trailers = FormatContext { trailers: Some(&trailers), ..context(&info, Some(&grpc), Some(&ok)) };
    assert_eq!(render(format, &with_trailers), "DeadlineExceeded DEADLINE_EXCEEDED 4 4");
    assert_eq!(render("%TRAILER(GRPC-STATUS)%", &with_trailers), "4");
    assert_eq!(render(format, &context(&info, Some(&grpc), Some(&trailers_only))), "PermissionDenied PERMISSION_DENIED 7 7");
    assert_eq!(render(format, &context(&info, Some(&plain), Some(&trailers_only))), "- - - -");
    info.response_code = 503;
    assert_eq!(render(format, &context(&info, Some(&grpc), Some(&ok))), "Unavailable UNAVAILABLE 14 14");
    let odd = response(&[("grpc-status", "99")]);
    assert_eq!(render(format, &context(&info, Some(&grpc), Some(&odd))), "99 99 99 99");
}

#[test]
fn what_filters_have_found_out() {
    let mut info = info(connection());
    let payload = serde_json::json!({ "payload": { "sub": "ali\nce", "aud": ["a", "b"], "exp": 4_102_444_800_u64, "ok": true } });
    let mut metadata = Metadata::default();
    metadata.set("jwt", payload);
    info.metadata = Some(Box::new(metadata));
    let context = context(&info, None, None);
    for (format, expected) in [
        ("%DYNAMIC_METADATA(jwt:payload:sub)%", "ali\\x0ace"),
        ("%DYNAMIC_METADATA(jwt:payload:sub):3%", "ali"),
        ("%DYNAMIC_METADATA(jwt:payload:aud)%", r#"["a","b"]"#),
        ("%DYNAMIC_METADATA(jwt:payload:exp)% %DYNAMIC_METADATA(jwt:payload:ok)%", "4102444800 true"),
        ("%DYNAMIC_METADATA(jwt:payload:none)%%DYNAMIC_METADATA(other)%%DYNAMIC_METADATA(jwt:payload:sub:x)%", "---"),
    ] {
        assert_eq!(render(format, &context), expected, "{format}");
    }
    let fields = [("exp", "exp"), ("aud", "aud"), ("sub", "sub"), ("none", "none")];
    let fields = fields.map(|(key, claim)| (key.to_owned(), format!("%DYNAMIC_METADATA(jwt:payload:{claim})%")));
    let json = LogFormat::Json { fields: fields.into(), omit_empty_values: false, sort: false };
    let mut line = Vec::new();
    LogTemplate::compile(&json).unwrap().render(&context, &mut line);
    assert_eq!(
        String::from_utf8(line).unwrap(),
        "{\"exp\":4102444800,\"aud\":[\"a\",\"b\"],\"sub\":\"ali\\nce\",\"none\":null}\n"
    );
    for wrong in ["%DYNAMIC_METADATA%", "%DYNAMIC_METADATA()%", "%DYNAMIC_METADATA(:a)%"] {
        assert!(Format::compile(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_rest_of_the_operators() {
    let info = info(connection());
    let request = request(&[("x-request-id", "r1")]);
    let context = context(&info, Some(&request), None);
    let cases = [
        ("%CONNECTION_ID% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %STREAM_ID% %ACCESS_LOG_TYPE%", "7 1 r1 DownstreamEnd"),
        ("%ENVIRONMENT(SKIFF_TEST_SURELY_UNSET)%", "-"),
        ("%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%", "inbound|9080|| inbound|9080||"),
        ("%FILTER_STATE(wasm.x:PLAIN):7%%DYNAMIC_METADATA(a:b)%%METADATA(ROUTE:a)%%CEL(filter_state['x'].y)%", "----"),
        ("%TRACE_ID%|%CUSTOM_FLAGS%|", "-||"),
    ];
    for (format, expected) in cases {
        assert_eq!(render(format, &context), expected, "{format}");
    }
    let unique = render("%UNIQUE_ID%", &context);
    assert_eq!((unique.len(), &unique[14..15]), (36, "4"));
    assert!(matches!(&unique[19..20], "8" | "9" | "a" | "b"), "{unique}");
    assert_ne!(unique, render("%UNIQUE_ID%", &context));
    let hosted = Format::compile("%HOSTNAME%").unwrap();
    assert!(hosted.as_static().is_some_and(|name| !name.is_empty()));
}

#[test]
fn bad_formats_are_refused_with_operator_and_position() {
    let cases = [
        ("abc %BOGUS%", "%BOGUS% at byte 4: unknown operator, or one that does not take this parameter"),
        ("%REQ%", "%REQ% at byte 0: needs a parameter"),
        ("a %REQ(x", "%REQ(… has no closing )% at byte 2"),
        ("%DURATION", "%DURATION has no closing % at byte 0"),
        ("5 % 3", "an operator or %% is expected behind % at byte 2"),
        ("%REQ(a?b?c)%", "%REQ% at byte 0: takes one alternative header at most"),
        ("%REQ(a b)%", "%REQ% at byte 0: \"a b\" is no header name"),
        ("%REQ()%", "%REQ% at byte 0: \"\" is no header name"),
        ("%DURATION(x)%", "%DURATION% at byte 0: takes no parameters"),
        ("%DURATION:5%", "%DURATION% at byte 0: takes no length"),
        ("%START_TIME(%Q)%", "%START_TIME% at byte 0: time specifier %Q is not supported"),
        ("%START_TIME(%n)%", "%START_TIME% at byte 0: time specifier %n is not supported"),
        ("%START_TIME_LOCAL%", "%START_TIME_LOCAL% at byte 0: local time is not supported, logs are in UTC"),
        ("%CEL(response.cod)%", "%CEL% at byte 0: response.cod is no attribute"),
        (
            "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(129)%",
            "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% at byte 0: the parameter must be a prefix length",
        ),
        ("%é%", "an operator or %% is expected behind % at byte 0"),
        ("%START_TIME(é%é)%", "%START_TIME% at byte 0: time specifier %é is not supported"),
    ];
    for (format, expected) in cases {
        let error = Format::compile(format).unwrap_err();
        assert_eq!(error.reason, expected, "{format}");
        assert!(error.to_string().contains(&format!("{format:?}")));
    }
}
