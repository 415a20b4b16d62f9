use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::fetch::TrustedRoots;
use crate::identity::crypto_provider;

const NOW: u64 = 1_795_968_000;
const UID: &str = "3b241101-e2bb-4255-8caf-4136c566a962";
const ISSUER: &str = "https://issuer.example";

fn clock() -> Clock {
    Clock::new(|| UNIX_EPOCH + Duration::from_secs(NOW))
}

/// An issuer's key.
struct Key {
    id: &'static str,
    pair: KeyPair,
}

impl Key {
    fn new(id: &'static str) -> Self {
        Self { id, pair: KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    fn jwks(&self) -> String {
        let point = self.pair.der_bytes();
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": self.id, "x": coordinate(&point[1..33]), "y": coordinate(&point[33..]) }] })
            .to_string()
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_der(self.pair.serialized_der())).unwrap()
    }
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "sub": "vm-1", "aud": UID, "exp": NOW + 600, "nbf": NOW - 10,
        "custom": { "attributes": { "region": ["a", "b"], "team": "x", "level": 3, "nested": { "a": "b" } } } })
}

fn issuer(text: &Value) -> JwtIssuer {
    serde_json::from_value(text.clone()).unwrap()
}

fn verifier(issuers: Vec<JwtIssuer>) -> JwtVerifier {
    JwtVerifier::new(issuers, UID.to_owned(), &Client::new(TrustedRoots::System), clock())
}

/// An issuer's web server, over TLS: pages that can change.
struct Server {
    url: String,
    client: Client,
    pages: Arc<Mutex<HashMap<String, (u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _running: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let builder = ServerConfig::builder_with_provider(crypto_provider()).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (pages, asked) = (Arc::new(Mutex::new(HashMap::<String, (u16, String)>::new())), Arc::new(Mutex::new(Vec::new())));
        let (served, seen, mut running) = (pages.clone(), asked.clone(), JoinSet::new());
        running.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let path = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(path.clone());
                let (status, body) = served.lock().unwrap().get(&path).cloned().unwrap_or((404, String::new()));
                let location = "location: /keys\r\n";
                let answer = format!("HTTP/1.1 {status} x\r\n{location}content-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { url, client: Client::new(TrustedRoots::Given(Arc::new(roots))), pages, asked, _running: running }
    }

    fn page(&self, path: &str, status: u16, body: &str) {
        self.pages.lock().unwrap().insert(path.to_owned(), (status, body.to_owned()));
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn verifier(&self, issuers: Vec<JwtIssuer>) -> JwtVerifier {
        JwtVerifier::new(issuers, UID.to_owned(), &self.client, clock())
    }
}

#[tokio::test]
async fn a_token_says_who_a_workload_is() {
    let key = Key::new("one");
    let issuer = issuer(&json!({
        "issuer": ISSUER, "jwks": key.jwks(), "shortName": "my-issuer",
        "tokenFields": { "attributes": { "jsonPath": ".custom.attributes" } },
    }));
    let verified = verifier(vec![issuer]).verify(&key.sign(&claims())).await.unwrap();
    assert_eq!(verified.issuer_short_name.as_deref(), Some("my-issuer"));
    assert_eq!((verified.identity.issuer.as_str(), verified.identity.subject.as_str()), (ISSUER, "vm-1"));
    let attributes = serde_json::to_value(&verified.identity.attributes).unwrap();
    assert_eq!(attributes, json!({ "region": ["a", "b"], "team": ["x"], "level": ["3"] }));
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_refused() {
    let key = Key::new("one");
    let verifier = verifier(vec![issuer(&json!({ "issuer": ISSUER, "jwks": key.jwks() }))]);
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        key.sign(&claims)
    };
    verifier.verify(&with("aud", json!(["other", UID]))).await.unwrap();
    let stranger = Key::new("one").sign(&claims());
    let refused = [
        ("another audience", with("aud", json!("other"))),
        ("no audience", with("aud", Value::Array(Vec::new()))),
        ("part of the audience", with("aud", json!(&UID[1..]))),
        ("over", with("exp", json!(NOW - 61))),
        ("endless", with("exp", Value::Null)),
        ("not yet", with("nbf", json!(NOW + 61))),
        ("another's key", stranger),
        ("an unknown key", Key::new("two").sign(&claims())),
        ("nobody's signature", key.sign(&claims()).rsplit_once('.').unwrap().0.to_owned() + "."),
        ("no token", "a.b.c".to_owned()),
    ];
    for (what, token) in refused {
        assert!(matches!(verifier.verify(&token).await, Err(JwtError::Refused(_))), "{what}");
    }
    for subject in [json!(""), Value::Null, json!("x".repeat(2000))] {
        assert!(verifier.verify(&with("sub", subject.clone())).await.is_err(), "{subject}");
    }
    assert!(matches!(verifier.verify(&with("iss", json!("https://issuer.example/"))).await, Err(JwtError::UnknownIssuer(_))));
    assert!(matches!(verifier.verify(&"x".repeat(20_000)).await, Err(JwtError::Size)));
}

#[tokio::test]
async fn no_signature_and_no_shared_secret_will_do() {
    let key = Key::new("one");
    // The public key taken for a secret, as those do who know nothing but it; and a set with a real secret.
    let secret = URL_SAFE_NO_PAD.encode("secret of thirty-two or more bytes");
    let shared = json!({ "keys": [{ "kty": "oct", "k": secret }] }).to_string();
    let issuers = vec![
        issuer(&json!({ "issuer": ISSUER, "jwks": key.jwks() })),
        issuer(&json!({ "issuer": "https://shared.example", "jwks": shared })),
    ];
    let verifier = verifier(issuers);
    let encode = |claims: &Value, secret: &[u8]| {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret)).unwrap()
    };
    let mut theirs = claims();
    theirs["iss"] = json!("https://shared.example");
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = |algorithm: &str| format!("{}.{}.{}", part(&json!({ "alg": algorithm })), part(&claims()), "AA");
    for token in [
        encode(&claims(), key.pair.der_bytes()),
        encode(&claims(), key.jwks().as_bytes()),
        encode(&theirs, b"secret of thirty-two or more bytes"),
        unsigned("none"),
        unsigned("NONE"),
        unsigned("HS256"),
    ] {
        assert!(matches!(verifier.verify(&token).await, Err(JwtError::Refused(_))), "{token}");
    }
}

#[tokio::test]
async fn keys_are_fetched_once_and_again_when_a_token_has_another() {
    let (one, two) = (Key::new("one"), Key::new("two"));
    let server = Server::start().await;
    server.page("/keys?v=1", 200, &one.jwks());
    let verifier = server.verifier(vec![issuer(&json!({ "issuer": ISSUER, "jwksUri": format!("{}/keys?v=1", server.url) }))]);
    for _ in 0..3 {
        verifier.verify(&one.sign(&claims())).await.unwrap();
    }
    assert_eq!(server.asked(), ["/keys?v=1"]);
    // Unknown keys are no way to make us ask the issuer as often as anybody likes.
    server.page("/keys?v=1", 200, &two.jwks());
    for _ in 0..3 {
        assert!(matches!(verifier.verify(&two.sign(&claims())).await, Err(JwtError::Refused(_))));
    }
    assert_eq!(server.asked().len(), 1, "not twice within {:?}", keys::PAUSE);
}

#[tokio::test]
async fn without_keys_no_token_is_accepted() {
    let key = Key::new("one");
    let server = Server::start().await;
    server.page("/redirect", 302, &key.jwks());
    server.page("/keys", 200, &key.jwks());
    server.page("/empty", 200, "{\"keys\":[]}");
    server.page("/large", 200, &"x".repeat(2 * 1024 * 1024));
    for path in ["/missing", "/redirect", "/empty", "/large"] {
        let verifier = server.verifier(vec![issuer(&json!({ "issuer": ISSUER, "jwksUri": format!("{}{path}", server.url) }))]);
        let error = verifier.verify(&key.sign(&claims())).await.unwrap_err();
        assert!(error.is_retryable(), "{path}: {error}");
        // And it is not asked again at once.
        verifier.verify(&key.sign(&claims())).await.unwrap_err();
        assert_eq!(server.asked().iter().filter(|asked| *asked == path).count(), 1, "{path}");
    }
    assert!(!server.asked().contains(&"/keys".to_owned()), "redirects are not followed");
    // A server that nobody trusts.
    let untrusted = JwtVerifier::new(
        vec![issuer(&json!({ "issuer": ISSUER, "jwksUri": format!("{}/keys", server.url) }))],
        UID.to_owned(),
        &Client::new(TrustedRoots::Given(Arc::new(RootCertStore::empty()))),
        clock(),
    );
    assert!(matches!(untrusted.verify(&key.sign(&claims())).await, Err(JwtError::Keys { .. })));
}

#[tokio::test]
async fn an_issuer_says_itself_where_its_keys_are() {
    let key = Key::new("one");
    let server = Server::start().await;
    let discovery = "/.well-known/openid-configuration";
    server.page("/keys", 200, &key.jwks());
    let mut claims = claims();
    claims["iss"] = json!(server.url);
    let token = key.sign(&claims);
    let verify = async |document: Value| {
        server.page(discovery, 200, &document.to_string());
        server.verifier(vec![issuer(&json!({ "issuer": server.url }))]).verify(&token).await
    };
    verify(json!({ "issuer": server.url, "jwks_uri": format!("{}/keys", server.url) })).await.unwrap();
    // A document of somebody else, and keys that anybody on the way could replace.
    for document in [
        json!({ "issuer": "https://other.example", "jwks_uri": format!("{}/keys", server.url) }),
        json!({ "issuer": server.url, "jwks_uri": format!("{}/keys", server.url.replace("https", "http")) }),
        json!({ "issuer": server.url, "jwks_uri": "file:///etc/passwd" }),
        json!({ "issuer": server.url }),
    ] {
        assert!(matches!(verify(document.clone()).await, Err(JwtError::Keys { .. })), "{document}");
    }
}

#[test]
fn issuers_are_read_strictly() {
    for (text, reason) in [
        (json!({ "issuer": "http://a.example" }), "issuer \"http://a.example\": expected an https URL"),
        (json!({ "issuer": "a" }), "expected an https URL"),
        (json!({ "issuer": ISSUER, "jwksUri": "http://a.example/keys" }), "jwksUri"),
        (json!({ "issuer": ISSUER, "jwksUri": "https://user@a.example/keys" }), "jwksUri"),
        (json!({ "issuer": ISSUER, "jwksUri": "https://a.example", "jwks": "{}" }), "at most one"),
        (json!({ "issuer": ISSUER, "jwks": "{}" }), "jwks: "),
        (json!({ "issuer": ISSUER, "shortName": "My" }), "shortName"),
        (json!({ "issuer": ISSUER, "shortName": "a--b" }), "shortName"),
        (json!({ "issuer": ISSUER, "tokenFields": { "attributes": { "jsonPath": "custom" } } }), "jsonPath"),
        (json!({ "issuer": ISSUER, "tokenFields": { "attributes": { "jsonPath": ".a[*]" } } }), "jsonPath"),
        (
            json!({ "issuer": format!("{OF_AWS}/"), "tokenFields": { "attributes":
                { "jsonPath": "$['https://sts.amazonaws.com/'].request_tags" } } }),
            "request_tags are what a workload says of itself",
        ),
        (json!({ "issuer": ISSUER, "audience": "x" }), "unknown field"),
    ] {
        let error = serde_json::from_value::<JwtIssuer>(text.clone()).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    issuer(&json!({ "issuer": ISSUER, "jwks_uri": "https://a.example/k", "short_name": "a-1" }));
}

const OF_AWS: &str = "https://abc12345-def4-5678-90ab-cdef12345678.tokens.sts.global.api.aws";

#[tokio::test]
async fn a_token_of_aws_says_role_and_account_and_nothing_that_its_owner_has_made_up() {
    let key = Key::new("aws");
    let aws = issuer(&json!({ "issuer": OF_AWS, "jwks": key.jwks(), "shortName": "aws", "tokenFields": { "attributes":
        { "jsonPath": "$['https://sts.amazonaws.com/']" } } }));
    let claims = json!({ "iss": OF_AWS, "sub": "arn:aws:iam::123456789012:role/vm", "aud": [UID], "exp": NOW + 60, "iat": NOW,
        "https://sts.amazonaws.com/": { "aws_account": "123456789012", "source_region": "us-east-1",
            "request_tags": { "aws_account": "210987654321" }, "principal_tags": { "team": "x" } } });
    let verified = verifier(vec![aws]).verify(&key.sign(&claims)).await.unwrap();
    assert_eq!(verified.identity.subject, "arn:aws:iam::123456789012:role/vm");
    let attributes: Vec<_> = verified.identity.attributes.into_iter().collect();
    let one = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
    assert_eq!(attributes, [one("aws_account", "123456789012"), one("source_region", "us-east-1")]);
}

#[test]
fn paths_lead_to_members() {
    let claims = json!({ "a": { "b.c": { "d": 1 } }, "https://x.example/y": { "e": 2 } });
    let claims = claims.as_object().unwrap();
    for (path, expected) in [
        (".a['b.c'].d", Some(json!(1))),
        ("$.a[\"b.c\"].d", Some(json!(1))),
        ("$['https://x.example/y'].e", Some(json!(2))),
        (".a.b", None),
        (".z", None),
    ] {
        assert_eq!(JsonPath::parse(path).unwrap().find(claims).cloned(), expected, "{path}");
    }
    for bad in ["", "$", ".", "..a", ".a.", "a", "$a", ".a[0]", ".*", ".a['b", "[]"] {
        assert!(JsonPath::parse(bad).is_none(), "{bad}");
    }
}
