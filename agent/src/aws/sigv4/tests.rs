//! Held against botocore's signer (testdata/aws/botocore.json, made by testdata/aws/botocore.py) and the examples that AWS publishes.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::*;

fn recorded() -> Value {
    serde_json::from_str(include_str!("../../../testdata/aws/botocore.json")).unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn credentials(value: &Value) -> Credentials {
    Credentials {
        access_key_id: text(value, "access_key_id").to_owned(),
        secret_access_key: text(value, "secret_access_key").to_owned(),
        session_token: value["session_token"].as_str().map(str::to_owned),
        expires: None,
    }
}

/// A query in any order.
fn parts(url: &str) -> (&str, Vec<&str>) {
    let (place, query) = url.split_once('?').unwrap();
    let mut parts: Vec<_> = query.split('&').collect();
    parts.sort_unstable();
    (place, parts)
}

#[test]
fn urls_are_presigned_as_by_botocore() {
    let recorded = recorded();
    let time = UNIX_EPOCH + Duration::from_secs(recorded["seconds"].as_u64().unwrap());
    let vectors = recorded["presigned"].as_array().unwrap();
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let scope = Scope { region: text(vector, "region"), service: "sts", time };
        let headers = vector["headers"].as_object().unwrap();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
        let query = [("Action", "GetCallerIdentity"), ("Version", "2011-06-15")];
        let url = presign(&credentials(&vector["credentials"]), &scope, text(vector, "host"), &query, &headers, 60);
        assert_eq!(parts(url.expose()), parts(text(vector, "url")));
    }
}

#[test]
fn requests_are_signed_as_by_botocore() {
    let recorded = recorded();
    let time = UNIX_EPOCH + Duration::from_secs(recorded["seconds"].as_u64().unwrap());
    let vectors = recorded["signed"].as_array().unwrap();
    assert_eq!(vectors.len(), 4);
    for vector in vectors {
        let request = Request::post("/").header("host", text(vector, "host")).header("x-amz-target", text(vector, "target"));
        let request = request.header("content-type", "application/x-amz-json-1.1");
        let mut request = request.body(text(vector, "body").as_bytes()).unwrap();
        let scope = Scope { region: text(vector, "region"), service: text(vector, "service"), time };
        sign(&mut request, &credentials(&vector["credentials"]), &scope).unwrap();
        assert_eq!(request.headers()["authorization"], text(vector, "authorization"));
        assert!(request.headers()["authorization"].is_sensitive());
    }
}

#[test]
fn signatures_are_those_of_the_published_examples() {
    // AWS's test suite for version 4 (get-vanilla, get-vanilla-query-order-key-case, post-vanilla) and the example of its manual.
    let time = UNIX_EPOCH + Duration::from_secs(1_440_938_160);
    let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let suite = Scope { region: "us-east-1", service: "service", time };
    assert_eq!(suite.timestamp(), "20150830T123600Z");
    let headers = [pair("host", "example.amazonaws.com"), pair("x-amz-date", "20150830T123600Z")];
    let get = CanonicalRequest { method: "GET", path: "/", query: &[], headers: &headers, body: b"" };
    assert_eq!(get.signature(secret, &suite), "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
    let query = [pair("Param2", "value2"), pair("Param1", "value1")];
    let ordered = CanonicalRequest { query: &query, ..get };
    assert_eq!(ordered.signature(secret, &suite), "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500");
    let post = CanonicalRequest { method: "POST", ..get };
    assert_eq!(post.signature(secret, &suite), "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b");

    let query = [pair("Version", "2010-05-08"), pair("Action", "ListUsers")];
    let headers = [
        pair("x-amz-date", "20150830T123600Z"),
        pair("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
        pair("host", "iam.amazonaws.com"),
    ];
    let manual = CanonicalRequest { method: "GET", path: "/", query: &query, headers: &headers, body: b"" };
    let scope = Scope { region: "us-east-1", service: "iam", time };
    assert_eq!(manual.signature(secret, &scope), "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7");
}

#[test]
fn secrets_do_not_show() {
    let recorded = recorded();
    let credentials = credentials(&recorded["presigned"][0]["credentials"]);
    let scope = Scope { region: "us-east-1", service: "sts", time: UNIX_EPOCH };
    let url = presign(&credentials, &scope, "sts.us-east-1.amazonaws.com", &[], &[], 60);
    let shown = format!("{credentials:?} {url:?}");
    for secret in [&credentials.secret_access_key[..], "IQoJb3", "Signature"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
