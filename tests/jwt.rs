//! JSON Web Tokens of callers: RequestAuthentication and what policies make of the claims; answer, log line and metric together.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http::{self, Answer, Connection};
use skiff_tests::mesh::{DETAILS_V1, Mesh};
use skiff_tests::skiff::Skiff;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Signs tokens.
struct Issuer(KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ED25519).unwrap())
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key_raw());
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","alg":"EdDSA","x":"{x}"}}]}}"#)
    }

    fn token(&self, claims: &str) -> String {
        let text = [r#"{"alg":"EdDSA","kid":"k1"}"#, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let signature = self.0.sign(text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The sidecar of details and its application, called in plaintext, with these documents.
async fn details(documents: &str) -> (Mesh, Skiff, App) {
    let mesh = Mesh::prepare().await;
    mesh.edit("security.yaml", "STRICT", "PERMISSIVE");
    mesh.write("jwt.yaml", documents);
    let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    let details = mesh.spawn(DETAILS_V1, &[]);
    details.ready().await;
    (mesh, details, app)
}

fn request_authentication(rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: bookinfo}}\n\
         spec:\n  selector: {{matchLabels: {{app: details}}}}\n  jwtRules:\n  - issuer: https://issuer.example\n{rule}"
    )
}

async fn ask(mesh: &Mesh, id: &str, headers: &str) -> Answer {
    let headers = format!("x-request-id: {id}\r\n{headers}");
    http::exchange(mesh.ingress(DETAILS_V1, 9080), &http::get_request("details", "/books", &headers)).await
}

async fn line(details: &Skiff, id: &str) -> AccessLogLine {
    AccessLogLine::parse(&details.stdout.line_with(id).await)
}

const ONLY_ADMINS: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admins, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: details}}
  rules:
  - from: [{source: {requestPrincipals: [\"https://issuer.example/*\"]}}]
    when: [{key: \"request.auth.claims[groups]\", values: [admin]}]
";

#[tokio::test]
async fn claims_of_verified_tokens_decide_who_may_pass() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let rule = format!(
        "    audiences: [details]\n    jwks: '{}'\n    outputClaimToHeaders: [{{header: x-jwt-sub, claim: sub}}]\n",
        issuer.jwks()
    );
    let (mesh, details, app) = details(&format!("{}{ONLY_ADMINS}", request_authentication(&rule))).await;
    let claims = |more: &str| format!(r#"{{"iss":"https://issuer.example","aud":"details"{more}}}"#);
    let alice = claims(r#","sub":"alice","exp":4102444800,"groups":["admin","user"]"#);
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\nx-jwt-sub: root\r\n");

    let answer = ask(&mesh, "id-good", &bearer(&issuer.token(&alice))).await;
    assert_eq!(answer.status, 200);
    let reached = app.last_request();
    let subjects: Vec<_> = reached.headers.iter().filter(|(name, _)| name == "x-jwt-sub").map(|(_, value)| &**value).collect();
    assert_eq!(subjects, ["alice"], "what a caller claims is replaced by what the token says");
    assert_eq!(reached.header("authorization"), None, "the application does not get the token");
    line(&details, "id-good").await.assert(&[("response_code", "200"), ("response_code_details", "via_upstream")]);

    let bob = claims(r#","sub":"bob","exp":4102444800,"groups":["user"]"#);
    let refused = [
        ("id-none", String::new(), 403, "RBAC: access denied", "rbac_access_denied_matched_policy[none]"),
        ("id-bob", bearer(&issuer.token(&bob)), 403, "RBAC: access denied", "rbac_access_denied_matched_policy[none]"),
        (
            "id-expired",
            bearer(&issuer.token(&claims(r#","sub":"alice","exp":1500000000"#))),
            401,
            "Jwt is expired",
            "jwt_authn_access_denied{Jwt_is_expired}",
        ),
        (
            "id-forged",
            bearer(&stranger.token(&alice)),
            401,
            "Jwt verification fails",
            "jwt_authn_access_denied{Jwt_verification_fails}",
        ),
        (
            "id-audience",
            bearer(&issuer.token(&alice.replace("\"details\"", "\"other\""))),
            403,
            "Audiences in Jwt are not allowed",
            "jwt_authn_access_denied{Audiences_in_Jwt_are_not_allowed}",
        ),
    ];
    for (id, headers, status, body, details_of_line) in &refused {
        let answer = ask(&mesh, id, headers).await;
        assert_eq!((answer.status, &*answer.text()), (*status, *body), "{id}");
        if body.starts_with("Jwt") {
            let challenge = "Bearer realm=\"http://details/books\", error=\"invalid_token\"";
            assert_eq!(answer.header("www-authenticate"), Some(challenge), "{id}");
        }
        let status = status.to_string();
        line(&details, id).await.assert(&[("response_code", &status), ("response_code_details", details_of_line)]);
    }
    assert_eq!(app.requests().len(), 1);
    let metrics = details.metrics().await;
    assert_eq!(metrics.sum("envoy_http_jwt_authn_denied", &[]), 3.0);
    // Who has no token passes this filter; the policy refuses.
    assert_eq!(metrics.sum("envoy_http_jwt_authn_allowed", &[]), 3.0);
}

/// Answers every request with this body.
async fn key_server(address: SocketAddr, body: String) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = body.clone();
            tokio::spawn(async move {
                let mut connection = Connection::over(stream);
                while let Ok(Some(_)) = connection.head().await {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if connection.send(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

#[tokio::test]
async fn without_keys_tokens_are_refused_until_there_are_some() {
    let issuer = Issuer::new();
    let (mesh, details, app) = details(&request_authentication("    jwksUri: http://127.0.0.40:8090/keys\n")).await;
    let token = issuer.token(r#"{"iss":"https://issuer.example","sub":"alice","exp":4102444800}"#);
    let bearer = format!("authorization: Bearer {token}\r\n");

    let answer = ask(&mesh, "id-early", &bearer).await;
    assert_eq!((answer.status, &*answer.text()), (401, "Jwks remote fetch is failed"));
    let expected = "jwt_authn_access_denied{Jwks_remote_fetch_is_failed}";
    line(&details, "id-early").await.assert(&[("response_code", "401"), ("response_code_details", expected)]);
    // Who has no token needs no keys.
    assert_eq!(ask(&mesh, "id-none", "").await.status, 200);
    let metrics = details.metrics().await;
    assert!(metrics.sum("envoy_http_jwt_authn_jwks_fetch_failed", &[]) >= 1.0);
    assert_eq!(metrics.sum("envoy_http_jwt_authn_jwks_fetch_success", &[]), 0.0);

    let keys = key_server(mesh.network.at(40, 8090), issuer.jwks()).await;
    assert_eq!(ask(&mesh, "id-late", &bearer).await.status, 200);
    line(&details, "id-late").await.assert(&[("response_code", "200"), ("response_code_details", "via_upstream")]);
    assert!(details.metrics().await.sum("envoy_http_jwt_authn_jwks_fetch_success", &[]) >= 1.0);

    // Keys that are there are used on, whatever becomes of who gave them.
    keys.abort();
    assert_eq!(ask(&mesh, "id-later", &bearer).await.status, 200);
    assert_eq!(app.requests().len(), 3);
}
