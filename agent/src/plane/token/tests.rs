use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);

fn at(seconds: u64) -> Clock {
    Clock::new(move || UNIX_EPOCH + Duration::from_secs(seconds))
}

fn issuer(state: &StateFolder, name: &str, now: u64) -> TokenIssuer {
    TokenIssuer::load_or_create(state, name.to_owned(), "cluster.local".parse().unwrap(), HOUR, at(now)).unwrap()
}

fn sign(issuer: &TokenIssuer, claims: &Value) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &issuer.encoding).unwrap()
}

fn claims() -> Value {
    json!({"iss": "plane", "aud": ["istio-ca"], "sub": "system:serviceaccount:bookinfo:ratings-vm", "iat": NOW, "nbf": NOW, "exp": NOW + 3600})
}

#[test]
fn a_token_says_who_the_workload_is_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let token = issuer(&state, "plane", NOW).issue("bookinfo", "ratings-vm").unwrap();
    let restarted = issuer(&state, "plane", NOW + 3599);
    let id = restarted.verify(token.expose()).unwrap();
    assert_eq!(id.to_string(), "spiffe://cluster.local/ns/bookinfo/sa/ratings-vm");
    assert_eq!(issuer(&state, "plane", NOW + 3660).verify(token.expose()), Err(TokenError::Expired(Duration::from_secs(60))));
    assert_eq!(issuer(&state, "plane", NOW - 1).verify(token.expose()), Err(TokenError::NotYetValid(Duration::from_secs(1))));
}

#[test]
fn names_that_could_change_the_identity_get_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = issuer(&StateFolder::open(folder.path()).unwrap(), "plane", NOW);
    for (namespace, service_account) in
        [("", "a"), ("a", ""), ("a/sa/b", "c"), ("a", "b/c"), ("a:b", "c"), ("a", "b:c"), ("a", "b c")]
    {
        assert!(matches!(issuer.issue(namespace, service_account), Err(TokenError::Subject(_))), "{namespace} {service_account}");
    }
}

#[test]
fn tokens_that_are_not_exactly_ours_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    let ours = issuer(&state, "plane", NOW);
    ours.verify(&sign(&ours, &claims())).unwrap();

    let changed = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        sign(&ours, &claims)
    };
    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        sign(&ours, &claims)
    };
    let token = sign(&ours, &claims());
    let (head, signature) = token.rsplit_once('.').unwrap();
    let (_, payload) = head.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    // The classic: our public key as the secret of a symmetric algorithm.
    let public_key = ours.decoding.try_get_as_bytes().unwrap();
    let hs256 = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(public_key)).unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let other_key = issuer(&StateFolder::open(other_folder.path()).unwrap(), "plane", NOW);
    let other_payload = URL_SAFE_NO_PAD.encode(claims().to_string().replace("ratings-vm", "admin"));

    for (what, token) in [
        ("empty", String::new()),
        ("garbage", "garbage".to_owned()),
        ("other audience", changed("aud", json!(["https://kubernetes.default.svc"]))),
        ("other issuer", changed("iss", json!("plane2"))),
        ("expired", changed("exp", json!(NOW))),
        ("expired before 1970", changed("exp", json!(-1))),
        ("no expiry", without("exp")),
        ("no audience", without("aud")),
        ("no issuer", without("iss")),
        ("no subject", without("sub")),
        ("a user", changed("sub", json!("system:admin"))),
        ("no service account", changed("sub", json!("system:serviceaccount:bookinfo"))),
        ("too many parts", changed("sub", json!("system:serviceaccount:a:b:c"))),
        ("a path", changed("sub", json!("system:serviceaccount:a/sa/b:c"))),
        ("alg none, signed", format!("{none}.{payload}.{signature}")),
        ("alg none, unsigned", format!("{none}.{payload}.")),
        ("alg HS256", hs256),
        ("other key", sign(&other_key, &claims())),
        ("other payload", format!("{}.{other_payload}.{signature}", head.split_once('.').unwrap().0)),
        ("no signature", format!("{head}.")),
        ("too long", format!("{token}{}", "A".repeat(MAX_TOKEN_BYTES))),
    ] {
        let error = ours.verify(&token).expect_err(what).to_string();
        assert!(token.is_empty() || !error.contains(&token), "{what}: the token is in {error}");
    }
}

#[test]
fn a_corrupt_key_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path()).unwrap();
    state.write(KEY_FILE, "-----BEGIN PRIVATE KEY-----\n").unwrap();
    let error = TokenIssuer::load_or_create(&state, "plane".to_owned(), "td".parse().unwrap(), HOUR, at(NOW)).unwrap_err();
    assert!(matches!(&error, StateError::Corrupt { path, .. } if path.ends_with(KEY_FILE)), "{error}");
}
