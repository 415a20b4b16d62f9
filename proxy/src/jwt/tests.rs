//! Whole requests against a filter: which tokens pass, what becomes of them, what the answer says.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self as signatures, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use std::sync::LazyLock;

use super::*;
use crate::config::{ClaimToHeader, Jwks, JwtCache, JwtProvider, JwtRequirement, JwtRule, LocalJwks, RouteMatch};

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A private key and the JWK of its public half.
struct Signer {
    key: PrivateKey,
    jwk: Value,
}

enum PrivateKey {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Secret(Vec<u8>),
}

impl Signer {
    fn rsa(id: &str, size: KeySize) -> Self {
        let key = RsaKeyPair::generate(size).unwrap();
        let public = key.public_key();
        let (n, e) = (public.modulus(), public.exponent());
        let jwk = json!({ "kty": "RSA", "kid": id, "n": base64(n.big_endian_without_leading_zero()),
            "e": base64(e.big_endian_without_leading_zero()) });
        Self { key: PrivateKey::Rsa(key), jwk }
    }

    fn ec(id: &str, algorithm: &'static EcdsaSigningAlgorithm, curve: &str, size: usize) -> Self {
        let key = EcdsaKeyPair::generate(algorithm).unwrap();
        let point = key.public_key().as_ref();
        let jwk = json!({ "kty": "EC", "kid": id, "crv": curve, "x": base64(&point[1..=size]), "y": base64(&point[1 + size..]) });
        Self { key: PrivateKey::Ec(key), jwk }
    }

    fn ed(id: &str) -> Self {
        let key = Ed25519KeyPair::generate().unwrap();
        let jwk = json!({ "kty": "OKP", "kid": id, "crv": "Ed25519", "x": base64(key.public_key()) });
        Self { key: PrivateKey::Ed(key), jwk }
    }

    fn secret(id: &str) -> Self {
        let secret = vec![7; 40];
        Self { jwk: json!({ "kty": "oct", "kid": id, "k": base64(&secret) }), key: PrivateKey::Secret(secret) }
    }

    fn sign(&self, algorithm: &str, text: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            PrivateKey::Rsa(key) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &signatures::RSA_PKCS1_SHA384,
                    "RS512" => &signatures::RSA_PKCS1_SHA512,
                    "PS256" => &signatures::RSA_PSS_SHA256,
                    "PS384" => &signatures::RSA_PSS_SHA384,
                    "PS512" => &signatures::RSA_PSS_SHA512,
                    _ => &signatures::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, text, &mut signature).unwrap();
                signature
            }
            PrivateKey::Ec(key) => key.sign(&random, text).unwrap().as_ref().to_vec(),
            PrivateKey::Ed(key) => key.sign(text).as_ref().to_vec(),
            PrivateKey::Secret(secret) => {
                let hash = match algorithm {
                    "HS384" => aws_lc_rs::hmac::HMAC_SHA384,
                    "HS512" => aws_lc_rs::hmac::HMAC_SHA512,
                    _ => aws_lc_rs::hmac::HMAC_SHA256,
                };
                aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(hash, secret), text).as_ref().to_vec()
            }
        }
    }

    /// A token with this header and payload.
    fn token(&self, header: &Value, payload: &Value) -> String {
        let text = format!("{}.{}", base64(header.to_string()), base64(payload.to_string()));
        let signature = self.sign(header["alg"].as_str().unwrap_or_default(), text.as_bytes());
        format!("{text}.{}", base64(signature))
    }

    fn id(&self) -> &Value {
        &self.jwk["kid"]
    }
}

static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa("rsa", KeySize::Rsa2048));
static OTHER: LazyLock<Signer> = LazyLock::new(|| Signer::rsa("other", KeySize::Rsa2048));
static P256: LazyLock<Signer> = LazyLock::new(|| Signer::ec("p256", &signatures::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32));
static P384: LazyLock<Signer> = LazyLock::new(|| Signer::ec("p384", &signatures::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48));
static P521: LazyLock<Signer> = LazyLock::new(|| Signer::ec("p521", &signatures::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521", 66));
static ED: LazyLock<Signer> = LazyLock::new(|| Signer::ed("ed"));
static SECRET: LazyLock<Signer> = LazyLock::new(|| Signer::secret("secret"));

fn jwks(keys: &[&Value]) -> Jwks {
    Jwks::Local(LocalJwks(json!({ "keys": keys }).to_string()))
}

fn all_keys() -> Jwks {
    let all = [&RSA, &OTHER, &P256, &P384, &P521, &ED, &SECRET];
    jwks(&all.map(|signer| &signer.jwk))
}

fn provider() -> JwtProvider {
    JwtProvider { payload_in_metadata: Some("payload".into()), ..JwtProvider::new("iss", all_keys()) }
}

fn needs(name: &str) -> JwtRequirement {
    JwtRequirement::Provider { name: name.into(), audiences: Vec::new() }
}

fn counters() -> Counters {
    let counter = Counter::noop;
    Counters {
        allowed: counter(),
        denied: counter(),
        cors_preflight_bypassed: counter(),
        jwks_fetch_success: counter(),
        jwks_fetch_failed: counter(),
        cache_hit: counter(),
        cache_miss: counter(),
    }
}

fn compile(config: &JwtAuthn) -> Result<JwtFilter, String> {
    let context = JwtContext { resolve: &|_| None, remote_keys: &RemoteKeySets::default(), start: &|_| {} };
    JwtFilter::compile(config, counters(), &context).map_err(|error| error.to_string())
}

fn filter_of(providers: &[(&str, JwtProvider)], requirement: JwtRequirement) -> JwtFilter {
    compile(&JwtAuthn {
        providers: providers.iter().map(|(name, provider)| ((*name).to_owned(), provider.clone())).collect(),
        requirement_map: [("it".to_owned(), requirement)].into(),
        ..JwtAuthn::default()
    })
    .unwrap()
}

fn request(headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new();
    head.set_authority(b"details:9080");
    head.set_path(b"/must?q=1");
    for (name, value) in headers {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

fn lines(head: &RequestHead) -> Vec<String> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    head.headers.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect()
}

/// What comes of a request, for which the requirement named `it` holds.
fn walk(filter: &JwtFilter, head: &mut RequestHead) -> Result<Map<String, Value>, Status> {
    let walked = filter.walk(&filter.requirements[0].1, head, &[]);
    match walked.outcome {
        Ok(outcome) => outcome.map(|()| walked.metadata),
        Err(_) => panic!("interrupted"),
    }
}

fn judged(filter: &JwtFilter, token: &str) -> Result<(), Status> {
    walk(filter, &mut request(&[("authorization", &format!("Bearer {token}"))])).map(drop)
}

fn claims() -> Value {
    json!({ "iss": "iss", "sub": "alice", "exp": 4_102_444_800_u64 })
}

fn with(more: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn good() -> String {
    RSA.token(&json!({ "alg": "RS256", "kid": "rsa" }), &claims())
}

#[test]
fn every_algorithm_of_envoy_verifies() {
    let filter = filter_of(&[("p", provider())], needs("p"));
    let cases: [(&str, &Signer); 13] = [
        ("RS256", &RSA),
        ("RS384", &RSA),
        ("RS512", &RSA),
        ("PS256", &RSA),
        ("PS384", &RSA),
        ("PS512", &RSA),
        ("ES256", &P256),
        ("ES384", &P384),
        ("ES512", &P521),
        ("HS256", &SECRET),
        ("HS384", &SECRET),
        ("HS512", &SECRET),
        ("EdDSA", &ED),
    ];
    for (algorithm, signer) in cases {
        let token = signer.token(&json!({ "alg": algorithm, "kid": signer.id() }), &claims());
        assert_eq!(judged(&filter, &token), Ok(()), "{algorithm}");
        let nameless = signer.token(&json!({ "alg": algorithm }), &claims());
        assert_eq!(judged(&filter, &nameless), Ok(()), "{algorithm} without kid");
        let wrong_key = signer.token(&json!({ "alg": algorithm, "kid": "other" }), &claims());
        assert_eq!(judged(&filter, &wrong_key), Err(Status::VerificationFails), "{algorithm} with the key of another");
        let (signed, _) = token.rsplit_once('.').unwrap();
        for cut in ["AAAA", "AA"] {
            let expected = if algorithm == "EdDSA" { Status::Ed25519Length } else { Status::VerificationFails };
            assert_eq!(judged(&filter, &format!("{signed}.{cut}")), Err(expected), "{algorithm} signed with {cut}");
        }
    }
}

#[test]
fn a_key_serves_its_own_algorithms_only() {
    let filter = filter_of(&[("p", provider())], needs("p"));
    // The public key of RSA as the secret of HMAC, which a verifier that believes `alg` would take.
    let modulus = URL_SAFE_NO_PAD.decode(RSA.jwk["n"].as_str().unwrap()).unwrap();
    let confused = Signer { key: PrivateKey::Secret(modulus), jwk: Value::Null };
    let token = confused.token(&json!({ "alg": "HS256", "kid": "rsa" }), &claims());
    assert_eq!(judged(&filter, &token), Err(Status::VerificationFails));
    for (algorithm, signer) in [("ES256", &P384), ("EdDSA", &P256), ("RS256", &SECRET), ("HS256", &ED), ("ES256", &RSA)] {
        let token = signer.token(&json!({ "alg": algorithm, "kid": signer.id() }), &claims());
        assert_eq!(judged(&filter, &token), Err(Status::VerificationFails), "{algorithm} with {}", signer.id());
    }
    let mut named = RSA.jwk.clone();
    named["alg"] = json!("PS256");
    let one = filter_of(&[("p", JwtProvider { jwks: jwks(&[&named]), ..provider() })], needs("p"));
    assert_eq!(judged(&one, &good()), Err(Status::NoMatchingKey));
    assert_eq!(judged(&one, &RSA.token(&json!({ "alg": "PS256" }), &claims())), Ok(()));
}

#[test]
fn what_is_no_token_is_refused_in_envoys_words() {
    let filter = filter_of(&[("p", provider())], needs("p"));
    let good = good();
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let raw = |header: &str, payload: &str| {
        let text = format!("{}.{}", base64(header), base64(payload));
        format!("{text}.{}", base64(RSA.sign("RS256", text.as_bytes())))
    };
    let rs = r#"{"alg":"RS256","kid":"rsa"}"#;
    let iss = r#"{"iss":"iss"}"#;
    let unsigned = format!("{}.{}.", base64(r#"{"alg":"none"}"#), base64(iss));
    let cases = [
        (unsigned.clone(), Status::BadFormat),
        (format!("{unsigned}AAAA"), Status::UnknownAlg),
        (raw(r#"{"alg":"None"}"#, iss), Status::UnknownAlg),
        (raw(r#"{"alg":"rs256"}"#, iss), Status::UnknownAlg),
        (raw(r#"{"kid":"rsa"}"#, iss), Status::HeaderAlg),
        (raw(r#"{"alg":["RS256"]}"#, iss), Status::HeaderAlg),
        (raw(r#"{"alg":"RS256","kid":1}"#, iss), Status::HeaderKid),
        (raw(r#"{"alg":"RS256","kid":"unknown"}"#, iss), Status::NoMatchingKey),
        (raw(r#"{"alg":"RS256","alg":"HS256"}"#, iss), Status::HeaderJson),
        (raw("{\"alg\":", iss), Status::HeaderJson),
        (raw(rs, "[]"), Status::PayloadJson),
        (raw(rs, r#"{"iss":"x","iss":"iss"}"#), Status::PayloadJson),
        (raw(rs, r#"{"iss":"iss"} x"#), Status::PayloadJson),
        ("x".into(), Status::BadFormat),
        ("abc.def".into(), Status::BadFormat),
        (format!("..{good}"), Status::BadFormat),
        (format!("{header}..{payload}.{signature}"), Status::BadFormat),
        (format!("{good}.x"), Status::BadFormat),
        (format!("!{header}.{payload}.{signature}"), Status::HeaderBase64),
        (format!("{header}.!!.{signature}"), Status::PayloadBase64),
        (format!("{header}.{payload}.+{}", &signature[1..]), Status::SignatureBase64),
        (format!("{header}.{payload}.{} {}", &signature[..9], &signature[9..]), Status::SignatureBase64),
        (format!("{good}="), Status::SignatureBase64),
        (format!("{good},Bearer abc"), Status::SignatureBase64),
        (format!("{header}.{}.{signature}", base64(r#"{"iss":"iss","sub":"root"}"#)), Status::VerificationFails),
        (format!("{header}.{payload}.{}", "A".repeat(token::MAX_TOKEN)), Status::BadFormat),
    ];
    for (index, (token, expected)) in cases.iter().enumerate() {
        // The first character that no token has is passed over.
        let expected = if token.starts_with('!') { Ok(()) } else { Err(*expected) };
        assert_eq!(judged(&filter, token), expected, "{index}: {}", &token[..token.len().min(80)]);
    }
    assert_eq!(judged(&filter, &format!("{good}==")), Ok(()), "right padding");
}

#[test]
fn claims_are_judged() {
    let filter = filter_of(&[("p", provider())], needs("p"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let cases = [
        (json!({ "iss": "x@y.z" }), Err(Status::UnknownIssuer)),
        (json!({ "iss": 1 }), Err(Status::Iss)),
        (json!({ "iss": null }), Err(Status::Iss)),
        (json!({ "sub": ["a"] }), Err(Status::Sub)),
        (json!({ "jti": 1 }), Err(Status::Jti)),
        (json!({ "aud": 1 }), Err(Status::Aud)),
        (json!({ "aud": ["a", 1] }), Err(Status::Aud)),
        (json!({ "aud": ["a", "b"] }), Ok(())),
        (json!({ "exp": "4102444800" }), Err(Status::Exp)),
        (json!({ "exp": true }), Err(Status::Exp)),
        (json!({ "exp": -1 }), Err(Status::ExpRange)),
        (json!({ "exp": 1e30 }), Err(Status::ExpRange)),
        (json!({ "exp": 0 }), Err(Status::Expired)),
        (json!({ "exp": 1.5 }), Err(Status::Expired)),
        (json!({ "exp": now - 30 }), Ok(())),
        (json!({ "exp": now - 70 }), Err(Status::Expired)),
        (json!({ "exp": u64::MAX - 5000 }), Ok(())),
        (json!({ "nbf": now + 30 }), Ok(())),
        (json!({ "nbf": now + 90 }), Err(Status::NotYetValid)),
        (json!({ "nbf": "1" }), Err(Status::Nbf)),
        (json!({ "nbf": -1 }), Err(Status::NbfRange)),
        (json!({ "iat": now + 99_999 }), Ok(())),
        (json!({ "iat": "1" }), Err(Status::Iat)),
        (json!({ "iat": -1 }), Err(Status::IatRange)),
    ];
    for (more, expected) in cases {
        let token = RSA.token(&json!({ "alg": "RS256" }), &with(&more));
        assert_eq!(judged(&filter, &token), expected, "{more}");
    }
}

#[test]
fn a_provider_may_ask_for_more() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let judged = |provider: JwtProvider, claims: &Value| {
        judged(&filter_of(&[("p", provider)], needs("p")), &RSA.token(&json!({ "alg": "RS256" }), claims))
    };
    let audiences = || JwtProvider { audiences: vec!["golden".into()], ..provider() };
    assert_eq!(judged(audiences(), &with(&json!({ "aud": "golden" }))), Ok(()));
    assert_eq!(judged(audiences(), &with(&json!({ "aud": "nope" }))), Err(Status::AudienceNotAllowed));
    assert_eq!(judged(audiences(), &claims()), Err(Status::AudienceNotAllowed));
    let subjects = || JwtProvider { subjects: Some(config::StringMatcher::prefix("ali")), ..provider() };
    assert_eq!(judged(subjects(), &claims()), Ok(()));
    assert_eq!(judged(subjects(), &with(&json!({ "sub": "bob" }))), Err(Status::VerificationFails));
    let eternal = json!({ "iss": "iss" });
    let expiring = || JwtProvider { require_expiration: true, ..provider() };
    assert_eq!(judged(provider(), &eternal), Ok(()));
    assert_eq!(judged(expiring(), &claims()), Ok(()));
    assert_eq!(judged(expiring(), &eternal), Err(Status::VerificationFails));
    let short = || JwtProvider { max_lifetime: Some(std::time::Duration::from_secs(3600)), ..provider() };
    assert_eq!(judged(short(), &with(&json!({ "exp": now + 100 }))), Ok(()));
    assert_eq!(judged(short(), &claims()), Err(Status::VerificationFails));
    assert_eq!(judged(short(), &eternal), Err(Status::VerificationFails));
    let anybody = || JwtProvider { issuer: String::new(), ..provider() };
    assert_eq!(judged(anybody(), &with(&json!({ "iss": "whoever" }))), Ok(()));
    assert_eq!(judged(anybody(), &json!({})), Ok(()));
}

#[test]
fn a_verified_token_becomes_headers_and_metadata() {
    let to = |header: &str, claim: &[&str]| ClaimToHeader {
        header: header.into(),
        claim: claim.iter().map(|key| (*key).to_owned()).collect(),
    };
    let provider = JwtProvider {
        forward_payload_header: Some("x-payload".into()),
        claim_to_headers: vec![to("x-sub", &["sub"]), to("x-deep", &["a", "b"]), to("x-none", &["none"])],
        space_delimited_claims: vec!["scope".into()],
        header_in_metadata: Some("header".into()),
        ..provider()
    };
    let payload = with(&json!({ "scope": "read  write", "a": { "b": 7 } }));
    let token = RSA.token(&json!({ "alg": "RS256" }), &payload);
    let bearer = format!("Bearer {token}");
    let mut head = request(&[("x-sub", "evil"), ("x-first", "1"), ("authorization", &bearer), ("X-None", "evil")]);
    let metadata = walk(&filter_of(&[("p", provider.clone())], needs("p")), &mut head).unwrap();
    let payload_line = format!("x-payload: {}", base64(payload.to_string()));
    assert_eq!(lines(&head), ["x-first: 1", &payload_line, "x-sub: alice", "x-deep: 7"]);
    assert_eq!(metadata["header"], json!({ "alg": "RS256" }));
    assert_eq!(metadata["payload"]["scope"], json!(["read", "write"]));
    assert_eq!(metadata["payload"]["sub"], "alice");

    let stays = JwtProvider { forward: true, ..provider.clone() };
    let mut head = request(&[("authorization", &bearer)]);
    walk(&filter_of(&[("p", stays)], needs("p")), &mut head).unwrap();
    assert!(head.headers.contains(Known::Authorization));

    // Nobody may write a header of his own with a claim.
    let filter = filter_of(&[("p", provider)], needs("p"));
    let token = RSA.token(&json!({ "alg": "RS256" }), &with(&json!({ "sub": "a\r\nx-admin: true" })));
    let mut head = request(&[("authorization", &format!("Bearer {token}"))]);
    let walked = filter.walk(&filter.requirements[0].1, &mut head, &[]);
    assert!(matches!(walked.outcome, Err(Interrupt::BadHeaderValue(name)) if name.as_str() == "x-sub"));
    assert!(lines(&head).iter().all(|line| !line.contains("admin")));
}

#[test]
fn requirements_are_combined() {
    use JwtRequirement::{All, AllowMissing, AllowMissingOrFailed, Any, Nothing};
    let header = |name: &str| vec![config::JwtHeader { name: name.into(), value_prefix: String::new() }];
    let other = JwtProvider { issuer: "oth".into(), jwks: jwks(&[&OTHER.jwk]), from_headers: header("x-oth"), ..provider() };
    let a = good();
    let o = OTHER.token(&json!({ "alg": "RS256" }), &with(&json!({ "iss": "oth" })));
    let expired = RSA.token(&json!({ "alg": "RS256" }), &with(&json!({ "exp": 1 })));
    let outcome = |requirement: &JwtRequirement, bearer: Option<&str>, oth: Option<&str>| {
        let filter = filter_of(&[("a", provider()), ("o", other.clone())], requirement.clone());
        let mut head = request(&[]);
        if let Some(token) = bearer {
            head.headers.push(b"authorization", format!("Bearer {token}").as_bytes());
        }
        if let Some(token) = oth {
            head.headers.push(b"x-oth", token.as_bytes());
        }
        walk(&filter, &mut head).map(drop)
    };
    let any = Any(vec![needs("a"), needs("o")]);
    assert_eq!(outcome(&any, Some(&a), None), Ok(()));
    assert_eq!(outcome(&any, None, Some(&o)), Ok(()));
    assert_eq!(outcome(&any, None, None), Err(Status::Missing));
    assert_eq!(outcome(&any, Some(&o), None), Err(Status::UnknownIssuer));
    assert_eq!(outcome(&any, Some(&o), Some("bad")), Err(Status::BadFormat));
    assert_eq!(outcome(&any, Some(&expired), None), Err(Status::Expired));
    assert_eq!(outcome(&any, Some("bad"), Some(&o)), Ok(()));
    let all = All(vec![needs("a"), needs("o")]);
    assert_eq!(outcome(&all, Some(&a), Some(&o)), Ok(()));
    assert_eq!(outcome(&all, Some(&a), None), Err(Status::Missing));
    let missing = Any(vec![needs("a"), AllowMissing]);
    assert_eq!(outcome(&missing, None, None), Ok(()));
    assert_eq!(outcome(&missing, Some("bad"), None), Err(Status::BadFormat));
    assert_eq!(outcome(&missing, Some(&o), None), Err(Status::UnknownIssuer));
    let failed = Any(vec![needs("a"), AllowMissing, AllowMissingOrFailed]);
    assert_eq!(outcome(&failed, Some("bad"), None), Ok(()));
    assert_eq!(outcome(&AllowMissing, None, None), Ok(()));
    assert_eq!(outcome(&AllowMissing, Some(&a), Some(&o)), Ok(()));
    assert_eq!(outcome(&AllowMissing, Some(&a), Some("bad")), Err(Status::BadFormat));
    assert_eq!(outcome(&AllowMissing, Some("bad"), Some(&o)), Err(Status::BadFormat));
    assert_eq!(outcome(&AllowMissingOrFailed, Some("bad"), Some(&o)), Ok(()));
    assert_eq!(outcome(&Nothing, Some("bad"), None), Ok(()));
    let audiences = JwtRequirement::Provider { name: "a".into(), audiences: vec!["only".into()] };
    assert_eq!(outcome(&audiences, Some(&a), None), Err(Status::AudienceNotAllowed));
}

#[test]
fn every_token_of_a_request_must_be_good() {
    let filter = filter_of(&[("p", provider())], needs("p"));
    let with_query = |token: &str| {
        let mut head = request(&[("authorization", &format!("Bearer {}", good()))]);
        head.set_path(format!("/a?access_token={token}").as_bytes());
        walk(&filter, &mut head).map(drop)
    };
    assert_eq!(with_query(&good()), Ok(()));
    assert_eq!(with_query("bad"), Err(Status::BadFormat));
    let many =
        JwtProvider { from_headers: vec![config::JwtHeader { name: "x-tok".into(), value_prefix: String::new() }], ..provider() };
    let filter = filter_of(&[("p", many)], needs("p"));
    let good = good();
    assert_eq!(walk(&filter, &mut request(&[("x-tok", good.as_str()); 16])).map(drop), Ok(()));
    assert_eq!(walk(&filter, &mut request(&[("x-tok", good.as_str()); 17])).map(drop), Err(Status::MultipleTokens));
}

#[test]
fn remembered_tokens_expire_all_the_same() {
    let cached = JwtProvider { cache: Some(JwtCache { size: 2, max_token_size: 4096 }), ..provider() };
    let filter = filter_of(&[("p", cached)], needs("p"));
    let token = good();
    assert_eq!(judged(&filter, &token), Ok(()));
    let Keys::Local(keys) = &filter.providers[0].keys else { panic!() };
    let cache = filter.providers[0].cache.as_ref().unwrap();
    assert!(cache.get(token.as_bytes(), keys).is_some());
    assert_eq!(judged(&filter, &token), Ok(()));
    // Other keys know nothing of what these have verified.
    let Jwks::Local(set) = all_keys() else { panic!() };
    assert!(cache.get(token.as_bytes(), &Arc::new(KeySet::parse(set.0.as_bytes()).unwrap())).is_none());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let remembered = cache.get(token.as_bytes(), keys).unwrap();
    assert_eq!(filter.providers[0].check(&remembered, None, now), Ok(()));
    assert_eq!(filter.providers[0].check(&remembered, None, 4_102_444_861), Err(Status::Expired));
    for sub in ["a", "b", "c", "d"] {
        assert_eq!(judged(&filter, &RSA.token(&json!({ "alg": "RS256" }), &with(&json!({ "sub": sub })))), Ok(()));
    }
    assert!(cache.get(token.as_bytes(), keys).is_none(), "the memory is bounded");
}

#[test]
fn a_refusal_says_why() {
    let filter = filter_of(&[("p", provider())], needs("p"));
    let reply = filter.refusal(Status::Expired, &request(&[]), None);
    assert_eq!((reply.status, &*reply.body), (StatusCode::UNAUTHORIZED, &b"Jwt is expired"[..]));
    assert_eq!(reply.details, "jwt_authn_access_denied{Jwt_is_expired}");
    let challenge = |reply: &LocalReply| {
        reply.headers.iter().map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(challenge(&reply), ["Bearer realm=\"http://details:9080/must?q=1\", error=\"invalid_token\""]);
    let missing = filter.refusal(Status::Missing, &request(&[]), None);
    assert_eq!(challenge(&missing), ["Bearer realm=\"http://details:9080/must?q=1\""]);
    assert_eq!(filter.refusal(Status::AudienceNotAllowed, &request(&[]), None).status, StatusCode::FORBIDDEN);
    let mut long = request(&[]);
    long.set_path("/".repeat(300).as_bytes());
    assert_eq!(
        challenge(&filter.refusal(Status::Missing, &long, None)),
        [format!("Bearer realm=\"http://details:9080{}\"", "/".repeat(256))]
    );
    let silent = compile(&JwtAuthn { strip_failure_response: true, ..JwtAuthn::default() }).unwrap();
    let reply = silent.refusal(Status::Expired, &request(&[]), None);
    assert!(reply.body.is_empty() && reply.headers.is_empty());
}

#[test]
fn rules_and_routes_choose_the_requirement() {
    let path = |prefix: &str| RouteMatch::path(config::PathMatch::Prefix(prefix.into()));
    let rule = |prefix: &str, requires| JwtRule { matches: path(prefix), requires };
    let filter = compile(&JwtAuthn {
        providers: [("p".to_owned(), provider())].into(),
        rules: vec![
            rule("/open", JwtRuleRequirement::None),
            rule("/named", JwtRuleRequirement::Named("it".into())),
            rule("/must", JwtRuleRequirement::Inline(needs("p"))),
        ],
        requirement_map: [("it".to_owned(), needs("p"))].into(),
        ..JwtAuthn::default()
    })
    .unwrap();
    let asks = |path: &str, told: Option<&JwtPerRoute>| {
        let mut head = request(&[]);
        head.set_path(path.as_bytes());
        filter.requirement(&head, told).map(|requirement| requirement.is_some())
    };
    for (path, expected) in [("/open/must", false), ("/named", true), ("/must?x=/open", true), ("/other", false)] {
        assert_eq!(asks(path, None).unwrap(), expected, "{path}");
    }
    assert!(!asks("/must", Some(&JwtPerRoute::Disabled)).unwrap());
    assert!(asks("/other", Some(&JwtPerRoute::Requirement("it".into()))).unwrap());
    let refusal = asks("/open", Some(&JwtPerRoute::Requirement("that".into()))).unwrap_err();
    assert_eq!(refusal.status, StatusCode::FORBIDDEN);
    assert_eq!(&*refusal.body, b"Failed JWT authentication: Wrong requirement_name: that. It should be one of [it]");
    assert_eq!(refusal.details, "jwt_authn_access_denied{Wrong_requirement_name:_that._It_should_be_one_of_[it]}");
}

#[test]
fn a_filter_that_cannot_work_is_refused() {
    let error = |jwks: Jwks| {
        let provider = JwtProvider { jwks, ..provider() };
        compile(&JwtAuthn { providers: [("p".to_owned(), provider)].into(), ..JwtAuthn::default() }).unwrap_err()
    };
    let text = |text: &str| Jwks::Local(LocalJwks(text.into()));
    let invalid = |reason: &str| format!("Provider 'p' in jwt_authn config has invalid local jwks: {reason}");
    let mut short = RSA.jwk.clone();
    short["n"] = json!(base64([0xff; 128]));
    let mut exponent = RSA.jwk.clone();
    exponent["e"] = json!(base64([5]));
    let mut curve = P256.jwk.clone();
    curve["alg"] = json!("ES384");
    let mut point = P256.jwk.clone();
    point["x"] = json!(base64([1; 32]));
    let mut hmac = RSA.jwk.clone();
    hmac["alg"] = json!("HS256");
    for (jwks, reason) in [
        (text("junk"), "Jwks is an invalid JSON"),
        (text("{}"), "Jwks does not have [keys] field"),
        (text(r#"{"keys":{}}"#), "[keys] in Jwks is not an array"),
        (text(r#"{"keys":[]}"#), "Jwks doesn't have any valid public key"),
        (text(r#"{"keys":[{"kty":"zz"}]}"#), "[kty] is not supported in [keys]"),
        (text(r#"{"keys":[{"kty":"RSA"}]}"#), "[n] field is missing for a RSA key"),
        (jwks(&[&short]), "RSA keys of less than 2048 bits are not accepted"),
        (jwks(&[&exponent]), "Jwks RSA [n] or [e] field is missing or has a parse error"),
        (jwks(&[&hmac]), "[alg] is not started with [RS] or [PS] for an RSA key"),
        (jwks(&[&curve]), "[crv] field specified is not compatible with [alg] for an EC key"),
        (jwks(&[&point]), "Jwks EC [x] and [y] fields have a parse error."),
    ] {
        assert_eq!(error(jwks), invalid(reason));
    }
    assert!(error(Jwks::File("/nowhere/jwks.json".into())).starts_with("Provider 'p': local_jwks.filename /nowhere/jwks.json: "));
    let unknown = JwtAuthn { requirement_map: [("it".to_owned(), needs("zz"))].into(), ..JwtAuthn::default() };
    assert_eq!(compile(&unknown).unwrap_err(), "Required provider ['zz'] is not configured.");
    let claim = ClaimToHeader { header: "host".into(), claim: vec!["sub".into()] };
    let reserved = JwtProvider { claim_to_headers: vec![claim], ..provider() };
    assert!(compile(&JwtAuthn { providers: [("p".to_owned(), reserved)].into(), ..JwtAuthn::default() }).is_err());
    // One usable key is enough: sets hold keys for others, too.
    let mixed = jwks(&[&json!({ "kty": "zz" }), &RSA.jwk]);
    let filter = filter_of(&[("p", JwtProvider { jwks: mixed, ..provider() })], needs("p"));
    assert_eq!(judged(&filter, &good()), Ok(()));
}

#[test]
fn keys_are_no_part_of_dumps_and_logs() {
    let Jwks::Local(set) = jwks(&[&SECRET.jwk]) else { panic!() };
    let secret = SECRET.jwk["k"].as_str().unwrap();
    assert!(set.0.contains(secret));
    assert!(!serde_json::to_string(&set).unwrap().contains(secret) && !format!("{set:?}").contains(secret));
    assert_ne!(serde_json::to_string(&set).unwrap(), serde_json::to_string(&LocalJwks("{}".into())).unwrap());
}
