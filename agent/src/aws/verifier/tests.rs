//! Every rule for a proof has a case here that would let somebody in, or send us somewhere, without it. What STS says about it is in
//! tests/aws.rs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::aws::caller_identity::prove;
use crate::aws::credentials::Credentials;
use crate::aws::sigv4::{Scope, presign};

const NOW: u64 = 1_795_968_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn credentials() -> Credentials {
    Credentials {
        access_key_id: "ASIAEXAMPLEEXAMPLE00".to_owned(),
        secret_access_key: "secret".to_owned(),
        session_token: Some("IQoJb3JpZ2luX2VjE//+abc==".to_owned()),
        expires: None,
    }
}

fn proof() -> String {
    proof_in("us-east-1")
}

fn proof_in(region: &str) -> String {
    let binding = Binding::new("3b241101-e2bb-4255-8caf-4136c566a962", "nonce").unwrap();
    prove(&credentials(), &region.parse().unwrap(), &binding, now()).expose().to_owned()
}

fn refused(url: &str) -> ProofError {
    Proof::parse(url, now()).expect_err(url)
}

#[test]
fn what_an_agent_makes_is_taken_and_sent_as_it_was_signed() {
    for region in ["us-east-1", "cn-north-1", "us-gov-west-1", "eusc-de-east-1"] {
        let url = proof_in(region);
        let proof = Proof::parse(&url, now()).unwrap();
        assert_eq!(proof.region().name(), region);
        let mut sent: Vec<_> = proof.path_and_query().trim_start_matches("/?").split('&').map(str::to_owned).collect();
        let mut signed: Vec<_> = url.split_once('?').unwrap().1.split('&').map(str::to_owned).collect();
        sent.sort_unstable();
        signed.sort_unstable();
        assert_eq!(sent, signed);
        assert_eq!(proof.signature().len(), 64);
        assert!(!format!("{proof:?}").contains(proof.signature()));
    }
}

#[test]
fn only_the_sts_of_a_known_region_is_asked() {
    let host = "https://sts.us-east-1.amazonaws.com/";
    for (other, expected) in [
        // Hosts that others own, or that are no STS.
        ("https://sts.x.s3.amazonaws.com/", ProofError::Host),
        ("https://sts.us-east-1.s3.amazonaws.com/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com.evil.example/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.community/", ProofError::Host),
        ("https://evil.example/", ProofError::Host),
        ("https://xsts.us-east-1.amazonaws.com/", ProofError::Host),
        ("https://sts.us-east-1.evil.amazonaws.com/", ProofError::Host),
        ("https://s3.us-east-1.amazonaws.com/", ProofError::Host),
        ("https://127.0.0.1/", ProofError::Host),
        ("https://[::1]/", ProofError::Host),
        // The one for all regions says nothing about where; a partition's domain for another's region.
        ("https://sts.amazonaws.com/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com.cn/", ProofError::Host),
        ("https://sts.cn-north-1.amazonaws.com/", ProofError::Host),
        ("https://sts.moon-base-1.amazonaws.com/", ProofError::Host),
        // The same host written otherwise, which a parser could read otherwise.
        ("https://STS.us-east-1.amazonaws.com/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com./", ProofError::Host),
        ("https://sts%2eus-east-1.amazonaws.com/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com:443/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com:8443/", ProofError::Host),
        ("https://user@sts.us-east-1.amazonaws.com/", ProofError::Host),
        ("https://user:password@sts.us-east-1.amazonaws.com/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com@evil.example/", ProofError::Host),
        ("https://evil.example\\sts.us-east-1.amazonaws.com/", ProofError::Host),
        ("https://evil.example/x/sts.us-east-1.amazonaws.com/", ProofError::Host),
        // Another scheme or path.
        ("http://sts.us-east-1.amazonaws.com/", ProofError::Form),
        ("HTTPS://sts.us-east-1.amazonaws.com/", ProofError::Form),
        ("https:sts.us-east-1.amazonaws.com/", ProofError::Form),
        ("//sts.us-east-1.amazonaws.com/", ProofError::Form),
        ("https://sts.us-east-1.amazonaws.com", ProofError::Form),
        ("https://sts.us-east-1.amazonaws.com/x", ProofError::Form),
        ("https://sts.us-east-1.amazonaws.com/x/", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com//", ProofError::Host),
        ("https://sts.us-east-1.amazonaws.com/;/", ProofError::Host),
    ] {
        assert_eq!(refused(&proof().replace(host, other)), expected, "{other}");
    }
}

#[test]
fn nothing_but_the_nine_parameters_each_once() {
    let url = proof();
    for (more, reason) in [
        ("&Action=GetCallerIdentity", "twice"),
        ("&action=AssumeRole", "in another case"),
        ("&ACTION=AssumeRole", "in another case"),
        ("&x-amz-signedheaders=host", "in another case"),
        ("&Actio%6e=AssumeRole", "encoded"),
        ("&RoleArn=arn", "unknown"),
        ("&X-Amz-Target=x", "unknown"),
        ("&=x", "without a name"),
    ] {
        assert_eq!(refused(&format!("{url}{more}")), ProofError::Parameter(10), "{reason}");
    }
    assert_eq!(refused(&format!("{url}&")), ProofError::Encoding);
    assert_eq!(refused(&format!("{url}&x")), ProofError::Encoding);
    assert_eq!(refused(&url.replace("Action=", "action=")), ProofError::Parameter(1));
    let (place, query) = url.split_once('?').unwrap();
    let pairs: Vec<_> = query.split('&').collect();
    for index in 0..pairs.len() {
        let mut fewer = pairs.clone();
        let missing = fewer.remove(index).split_once('=').unwrap().0;
        let error = refused(&format!("{place}?{}", fewer.join("&")));
        assert!(matches!(error, ProofError::Missing(name) if name == missing), "{missing}: {error}");
    }
}

#[test]
fn another_action_or_version_is_not_asked() {
    let url = proof();
    for (from, to, name) in [
        ("Action=GetCallerIdentity", "Action=AssumeRole", "Action"),
        ("Action=GetCallerIdentity", "Action=getcalleridentity", "Action"),
        ("Action=GetCallerIdentity", "Action=", "Action"),
        ("Version=2011-06-15", "Version=2010-05-08", "Version"),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1", "X-Amz-Algorithm"),
        ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", "X-Amz-Algorithm"),
        ("X-Amz-Expires=60", "X-Amz-Expires=61", "X-Amz-Expires"),
        ("X-Amz-Expires=60", "X-Amz-Expires=604800", "X-Amz-Expires"),
        ("X-Amz-Expires=60", "X-Amz-Expires=0", "X-Amz-Expires"),
        ("X-Amz-Expires=60", "X-Amz-Expires=-1", "X-Amz-Expires"),
        ("X-Amz-Expires=60", "X-Amz-Expires=%2B60", "X-Amz-Expires"),
        ("X-Amz-Security-Token=IQoJb3JpZ2luX2VjE%2F%2F%2Babc%3D%3D", "X-Amz-Security-Token=", "X-Amz-Security-Token"),
        ("X-Amz-Signature=", "X-Amz-Signature=0", "X-Amz-Signature"),
        ("ASIAEXAMPLEEXAMPLE00", "ASIA", "X-Amz-Credential"),
        ("ASIAEXAMPLEEXAMPLE00", "ASIAEXAMPLEEXAMPLE-0", "X-Amz-Credential"),
    ] {
        assert_ne!(url.replace(from, to), url, "{from}");
        assert_eq!(refused(&url.replace(from, to)), ProofError::Value(name), "{to}");
    }
    // The same proof in other letters would pass for one that was not shown yet.
    let signature = Proof::parse(&url, now()).unwrap().signature().to_owned();
    let shouted = url.replace(&signature, &signature.to_ascii_uppercase());
    assert_eq!(refused(&shouted), ProofError::Value("X-Amz-Signature"));
}

#[test]
fn it_is_bound_to_the_plane_and_its_nonce() {
    // Without these headers under the signature, anybody to whom a workload has shown a proof could show it to this plane, or show it
    // again.
    let sign = |headers: &[(&str, &str)]| {
        let scope = Scope { region: "us-east-1", service: "sts", time: now() };
        let query = [("Action", "GetCallerIdentity"), ("Version", "2011-06-15")];
        presign(&credentials(), &scope, "sts.us-east-1.amazonaws.com", &query, headers, 60).expose().to_owned()
    };
    let (plane, nonce) = ((PLANE_HEADER, "plane"), (NONCE_HEADER, "nonce"));
    Proof::parse(&sign(&[plane, nonce]), now()).unwrap();
    for headers in [&[][..], &[plane], &[nonce], &[plane, nonce, ("x-k8s-aws-id", "other")]] {
        assert_eq!(refused(&sign(headers)), ProofError::SignedHeaders);
    }
    for list in ["x-onboarding-nonce%3Bx-onboarding-plane", "host%3Bhost%3Bx-onboarding-nonce%3Bx-onboarding-plane", ""] {
        let url = proof().replace("host%3Bx-onboarding-nonce%3Bx-onboarding-plane", list);
        assert_eq!(refused(&url), ProofError::SignedHeaders);
    }
}

#[test]
fn the_scope_is_that_of_the_host() {
    let url = proof();
    for (from, to) in [
        ("%2Fus-east-1%2F", "%2Fus-west-2%2F"),
        ("%2Fsts%2F", "%2Fs3%2F"),
        ("aws4_request", "aws3_request"),
        ("aws4_request", "aws4_request%2Fmore"),
        ("%2F20261129%2F", "%2F20261128%2F"),
    ] {
        assert_ne!(url.replace(from, to), url, "{from}");
        assert_eq!(refused(&url.replace(from, to)), ProofError::Scope, "{to}");
    }
}

#[test]
fn its_time_is_now() {
    let at = |seconds: u64| Proof::parse(&proof(), UNIX_EPOCH + Duration::from_secs(seconds)).map(drop);
    assert_eq!(at(NOW - 300), Ok(()));
    assert_eq!(at(NOW - 301), Err(ProofError::NotYetValid));
    assert_eq!(at(NOW + 360), Ok(()));
    assert_eq!(at(NOW + 361), Err(ProofError::Expired));
    for date in ["20261129T160000", "2026-11-29T16:00:00Z", "20261129T160000%2B0000", "20261129T250000Z", "00001129T160000Z"] {
        let error = refused(&proof().replace("20261129T160000Z", date));
        let expected =
            matches!(error, ProofError::Value("X-Amz-Date") | ProofError::Scope | ProofError::Expired | ProofError::Encoding);
        assert!(expected, "{date}: {error}");
    }
}

#[test]
fn it_is_written_in_one_way() {
    let url = proof();
    for (bad, expected) in [
        (format!("{url}#"), ProofError::Form),
        (url.replace("/?", "/#?"), ProofError::Form),
        (format!("{url}\r\nx: y"), ProofError::Form),
        (format!(" {url}"), ProofError::Form),
        (url.replace("60", "6\u{660}"), ProofError::Form),
        (url.replace("%3D%3D", "=="), ProofError::Encoding),
        (url.replace("%2B", "+"), ProofError::Encoding),
        (url.replace("%3D%3D", "%3D%3"), ProofError::Encoding),
        (url.replace("%2B", "%zz"), ProofError::Encoding),
        (url.replace("%2B", "%0D%0A"), ProofError::Encoding),
        (url.replace("%2B", "%FF"), ProofError::Encoding),
        (url.replace("%2B", "%00"), ProofError::Encoding),
    ] {
        assert_eq!(refused(&bad), expected, "{bad:?}");
    }
    let long = url.replace("IQoJ", &"a".repeat(4096));
    assert_eq!(refused(&long), ProofError::Size);
}

fn answered(arn: &str, account: &str, user_id: &str) -> Result<CallerIdentity, VerifyError> {
    let body = serde_json::json!({ "GetCallerIdentityResponse": { "GetCallerIdentityResult": {
        "Account": account, "Arn": arn, "UserId": user_id,
    } } });
    identity(body.to_string().as_bytes(), &"us-east-1".parse().unwrap())
}

#[test]
fn only_the_session_of_a_role_is_somebody() {
    let arn = "arn:aws:sts::123456789012:assumed-role/task-role/3a15";
    let caller = answered(arn, "123456789012", "AROA:3a15").unwrap();
    assert_eq!((caller.role.as_str(), caller.session.as_str()), ("task-role", "3a15"));
    for other in [
        "arn:aws:iam::123456789012:user/3a15",
        "arn:aws:iam::123456789012:root",
        "arn:aws:sts::123456789012:federated-user/3a15",
        "arn:aws:sts::123456789012:assumed-role/a/b/3a15",
    ] {
        assert!(matches!(answered(other, "123456789012", "AROA:3a15"), Err(VerifyError::NoRole(_))), "{other}");
    }
    for (arn, account, user_id) in [
        (arn, "210987654321", "AROA:3a15"),
        (arn, "123456789012", "AROA:other"),
        (arn, "123456789012", "AROA"),
        ("arn:aws-cn:sts::123456789012:assumed-role/task-role/3a15", "123456789012", "AROA:3a15"),
    ] {
        assert!(matches!(answered(arn, account, user_id), Err(VerifyError::Unavailable(_))), "{arn} {account} {user_id}");
    }
    assert!(matches!(identity(b"<xml/>", &"us-east-1".parse().unwrap()), Err(VerifyError::Unavailable(_))));
}

#[test]
fn codes_of_errors_are_words() {
    for (body, code) in [
        (r#"{"Error":{"Code":"SignatureDoesNotMatch","Message":"secret"}}"#, "SignatureDoesNotMatch"),
        (r#"{"__type":"com.amazonaws.ecs#AccessDeniedException","message":"secret"}"#, "AccessDeniedException"),
        (r#"{"Error":{"Code":"a\nb"}}"#, "unknown"),
        ("<html>secret</html>", "unknown"),
        ("", "unknown"),
    ] {
        assert_eq!(error_code(body.as_bytes()), code);
    }
    assert!(is_throttling(StatusCode::BAD_REQUEST, br#"{"Error":{"Code":"Throttling"}}"#));
    assert!(is_throttling(StatusCode::BAD_REQUEST, br#"{"__type":"ThrottlingException"}"#));
    assert!(!is_throttling(StatusCode::FORBIDDEN, br#"{"Error":{"Code":"AccessDenied","Message":"Throttling"}}"#));
}
