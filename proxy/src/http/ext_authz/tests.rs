use super::answer::{Changes, Refusal, Write, write_response};
use super::*;
use crate::http::head::RequestHead;

fn lines(headers: &Headers) -> Vec<String> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    headers.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect()
}

fn writes(all: &[(&str, &str, Write)]) -> Vec<HeaderWrite> {
    all.iter().map(|(name, value, how)| (name.as_bytes().into(), value.as_bytes().into(), *how)).collect()
}

#[test]
fn a_request_is_changed_in_envoys_order() {
    // Recorded from Envoy 1.40: overwrites, additions, appends to what is there, removals, the query.
    let mut head = RequestHead::new();
    head.set_authority(b"h:1");
    head.set_path(b"/old?q=old&rm=1");
    for (name, value) in [("x-auth", "spoof"), ("x-cur", "c"), ("x-rm", "1"), ("content-length", "3")] {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    let changes = Changes {
        request: writes(&[
            ("x-cur", "ap", Write::Append),
            ("x-new", "ap", Write::Append),
            ("x-add", "1", Write::Add),
            ("x-auth", "alice", Write::Set),
            (":path", "/new?q=1", Write::Set),
            ("content-length", "99", Write::Set),
            ("host", "other", Write::Set),
        ]),
        remove: [&b"x-rm"[..], b":path", b"host"].map(Into::into).into(),
        query_set: vec![("q".to_owned(), "2".to_owned())],
        ..Changes::default()
    };
    assert!(changes.check().is_ok());
    assert!(changes.apply(&mut head));
    assert_eq!(lines(&head.headers), ["x-cur: c,ap", "content-length: 3", "x-auth: alice", "x-add: 1"]);
    assert_eq!((head.path(), head.authority()), (&b"/new?q=2"[..], &b"other"[..]));
}

#[test]
fn a_response_is_changed_in_envoys_order() {
    let mut headers = Headers::new();
    for name in [&b"x-up"[..], b"x-ok"] {
        headers.push(name, b"app");
    }
    let all = writes(&[
        ("x-ok", "set", Write::Set),
        ("x-none", "never", Write::SetIfPresent),
        ("x-up", "more", Write::Add),
        ("x-up", "never", Write::AddIfAbsent),
        ("x-new", "new", Write::AddIfAbsent),
    ]);
    write_response(&mut headers, &all);
    assert_eq!(lines(&headers), ["x-up: app", "x-up: more", "x-ok: set", "x-new: new"]);
}

#[test]
fn nothing_that_breaks_a_head_gets_into_one() {
    for (name, value) in
        [("x bad", "v"), ("x-bad", "v\r\nx: y"), (":path", "no-slash"), (":path", "/a b"), (":method", "a b"), ("host", "")]
    {
        let changes = Changes { request: writes(&[(name, value, Write::Set)]), ..Changes::default() };
        assert!(changes.check().is_err(), "{name}: {value}");
        let refusal = Refusal { headers: vec![(name.as_bytes().into(), value.as_bytes().into())], ..Refusal::default() };
        assert!(name.starts_with(':') || refusal.reply(StatusCode::FORBIDDEN, "x").is_none(), "{name}: {value}");
    }
    let fault = Changes { request: writes(&[("x bad", "v", Write::Set)]), ..Changes::default() }.check().err().unwrap().reply();
    assert_eq!((fault.status.as_u16(), &*fault.body), (503, &b"invalid header name: x bad"[..]));
    assert_eq!(fault.details, "filter_removed_required_request_headers{invalid_header_name:_x_bad}");
}

#[test]
fn a_refusal_carries_no_framing_of_its_own() {
    let headers = [("x-why", "policy"), ("content-length", "6"), ("transfer-encoding", "chunked"), (":status", "200")];
    let headers = headers.map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).into();
    let refusal = Refusal { status: Some(StatusCode::UNAUTHORIZED), headers, body: b"denied".to_vec() };
    let reply = refusal.reply(StatusCode::FORBIDDEN, "ext_authz_denied").unwrap();
    assert_eq!((reply.status.as_u16(), lines(&reply.headers)), (401, vec!["x-why: policy".to_owned()]));
    assert_eq!((reply.flag, reply.details), (ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE, "ext_authz_denied".into()));
}
