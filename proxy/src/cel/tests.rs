use std::rc::Rc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::flags::ResponseFlags;
use crate::http::head::{Headers, Known, RequestHead, ResponseHead};
use crate::stream_info::{ConnectionInfo, StreamInfo};

struct Stream {
    info: StreamInfo,
    request: RequestHead,
    response: ResponseHead,
    trailers: Headers,
}

fn stream() -> Stream {
    let address = "127.0.0.1:9080".parse().unwrap();
    let mut info = StreamInfo::new(Rc::new(ConnectionInfo::new(7, address, "127.0.0.9:4000".parse().unwrap())));
    info.response_code = 404;
    info.flags = ResponseFlags::NO_ROUTE_FOUND;
    info.bytes_sent = 12;
    info.start_time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut request = RequestHead::new();
    request.set_authority(b"reviews:9080");
    request.set_path(b"/a/b?x=1");
    request.headers.push_known(Known::UserAgent, b"curl");
    request.headers.push(b"x-tag", b"a");
    request.headers.push(b"x-tag", b"b");
    let response = ResponseHead::default();
    Stream { info, request, response, trailers: Headers::new() }
}

impl Stream {
    fn context(&self) -> FormatContext<'_> {
        FormatContext {
            info: &self.info,
            request: Some(&self.request),
            response: Some(&self.response),
            trailers: Some(&self.trailers),
            now: self.info.start + Duration::from_millis(1500),
        }
    }

    fn written(&self, source: &str) -> Option<String> {
        let mut out = Vec::new();
        let expression = Expression::compile(source).unwrap();
        expression.write(&self.context(), false, &mut out).then(|| String::from_utf8(out).unwrap())
    }
}

#[track_caller]
fn assert_all(expected: bool, sources: &[&str]) {
    let stream = stream();
    for source in sources {
        let expression = Expression::compile(source).unwrap();
        assert_eq!(expression.holds(&stream.context()), expected, "{source}");
    }
}

#[test]
fn attributes_are_those_of_the_stream() {
    assert_all(
        true,
        &[
            "response.code >= 400",
            "response.code == 404 && request.method == 'GET'",
            "request.url_path.startsWith('/a') && request.query == 'x=1' && request.path == \"/a/b?x=1\"",
            "request.headers['user-agent'] == request.useragent",
            "request.headers['x-tag'] == 'a,b' && 'x-tag' in request.headers",
            "request.host.matches('^reviews:[0-9]+$') && request.headers[':authority'] == request.host",
            "has(request.headers.x_tag) == false && !has(request.headers.missing) && has(response.code)",
            "!connection.mtls && connection.id == 7u && source.address == '127.0.0.9:4000' && destination.port == 9080",
            "request.duration > duration('1s') && request.duration == duration('1500ms')",
            "request.time < timestamp('2030-01-01T00:00:00Z') && int(request.time) == 1700000000",
            "response.flags == 256",
            "response.size == 12 && request['method'] == 'GET'",
        ],
    );
}

#[test]
fn what_cannot_be_evaluated_does_not_hold() {
    assert_all(
        false,
        &[
            "response.code",
            "request.headers['missing'] == 'a'",
            "!(request.headers['missing'] == 'a')",
            "upstream.address == 'x'",
            "upstream.address != 'x'",
            "'1' < 2",
            "1 / 0 == 1",
            "9223372036854775807 + 1 > 0",
            "metadata['a']['b'] == 'c'",
            "filter_state['x'] == 'y'",
            "xds.node.id == 'x'",
            "-1u == 1",
        ],
    );
}

#[test]
fn one_side_may_decide_whatever_fails_on_the_other() {
    assert_all(
        true,
        &["upstream.address == 'x' || true", "true || upstream.address == 'x'", "!(upstream.address == 'x' && false)"],
    );
    assert_all(false, &["upstream.address == 'x' || false", "upstream.address == 'x' && true"]);
    assert_all(true, &["[1, 2].exists(i, i == 2 || request.headers[i] == 'x')"]);
}

#[test]
fn the_language_is_the_standards() {
    assert_all(
        true,
        &[
            "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && 7 % 4 == 3 && -2 - -3 == 1 && 10 / 4 == 2",
            "1 == 1.0 && 2u > 1 && 0x10 == 16 && 1e3 == 1000.0 && 'a' + 'b' == \"ab\"",
            "true ? 1 == 1 : 1 == 2",
            "[1, 2, 3].all(i, i > 0) && [1, 2].exists_one(i, i == 2) && [1, 2, 3].filter(i, i > 1) == [2, 3]",
            "[1, 2].map(i, i * i) == [1, 4] && [1, 2].map(i, i > 1, i) == [2] && [[1], [2]].all(l, l.all(i, i > 0))",
            "{'a': 1}.a == 1 && 'a' in {'a': 1} && size({'a': 1}) == 1 && 'abc'.size() == 3 && [1][0] == 1",
            "'x\\u0041\\n' == 'xA\\n' && r'\\d' == '\\\\d' && null == null && 'a' != 1",
            "int('3') == 3 && string(3) == '3' && double('1.5') == 1.5 && uint(3) == 3u",
            "'abc'.contains('b') && 'abc'.endsWith('c') // a remark",
            "!!true && !(!true)",
        ],
    );
}

#[test]
fn values_are_written_as_text_or_json() {
    let stream = stream();
    let written = |source: &str| stream.written(source).unwrap();
    assert_eq!(written("request.headers['x-tag']"), "a,b");
    assert_eq!(written("response.code"), "404");
    assert_eq!(written("response.code > 400 ? 'bad' : 'good'"), "bad");
    assert_eq!(written("request.time"), "2023-11-14T22:13:20Z");
    assert_eq!(written("request.duration"), "1.5s");
    assert_eq!(written("null"), "NULL");
    assert_eq!(stream.written("upstream.address"), None);
    let mut out = Vec::new();
    assert!(Expression::compile("['a', 1]").unwrap().write(&stream.context(), true, &mut out));
    assert_eq!(out, b"[\"a\",1]");
}

#[test]
fn what_is_refused_says_why() {
    let refused = |source: &str| Expression::compile(source).unwrap_err().reason;
    for (source, reason) in [
        ("", "expected a value at the end"),
        ("response.code >=", "expected a value at the end"),
        ("response.cod > 1", "response.cod is no attribute"),
        ("respons.code > 1", "respons at byte 0 is no attribute"),
        ("request", "request has no value of its own"),
        ("(1", "expected ) at byte 2"),
        ("1 2", "is one too many"),
        ("'abc", "a text without its closing quote at byte 0"),
        ("'a'.matches(request.path)", "matches() takes a pattern that is written out"),
        ("'a'.matches('(')", "matches(): "),
        ("foo('a')", "foo() at byte 0 is not supported"),
        ("1 = 2", "'=' is not part of the language at byte 2"),
        ("99999999999999999999", "a number that is too large"),
        ("has(1)", "takes a member"),
    ] {
        assert!(refused(source).contains(reason), "{source}: {}", refused(source));
    }
    assert!(refused(&"(".repeat(MAX_NESTING + 1)).contains("levels of nesting"));
    assert!(refused(&"1+".repeat(MAX_NODES)).contains("operators and operands"));
    assert!(refused(&"!".repeat(MAX_NODES + 2).replace('!', "! ").replace("! ! ", "!!")).contains("expected"));
    assert!(refused(&" ".repeat(MAX_SOURCE + 1)).contains("bytes"));
}

#[test]
fn an_evaluation_ends_in_a_bounded_number_of_steps() {
    let ten = "[1,2,3,4,5,6,7,8,9,0]";
    let nested = (0..6).fold("true".to_owned(), |inner, level| format!("{ten}.all(v{level}, {inner})"));
    assert_all(false, &[&nested]);
    let long = format!("'{}'", "x".repeat(1000));
    let grown = format!("{ten}.map(a, {ten}.map(b, {ten}.map(c, {long} + {long} + {long}))).size() == 10");
    assert_all(false, &[&grown]);
}
