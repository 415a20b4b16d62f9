//! Cross-origin requests (Envoy `envoy.filters.http.cors`): pure decisions on heads.

use std::sync::LazyLock;

use http::{Method, StatusCode};

use super::head::{HeaderName, Known, RequestHead, ResponseHead};
use crate::config::CorsPolicy;

/// Response code details of a preflight that is answered here.
pub const DETAILS: &str = "cors_response";

static ALLOW_ORIGIN: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::new("access-control-allow-origin"));
static ALLOW_CREDENTIALS: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::new("access-control-allow-credentials"));
static EXPOSE_HEADERS: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::new("access-control-expose-headers"));

/// The answer to a preflight (200, no body, details [`DETAILS`]); `None` when the request goes on to the upstream.
pub fn preflight(policy: &CorsPolicy, request: &RequestHead) -> Option<ResponseHead> {
    let origin = request.headers.get(Known::Origin).filter(|origin| !origin.is_empty())?;
    let asks = request.headers.get(Known::AccessControlRequestMethod).is_some_and(|method| !method.is_empty());
    if request.method != Method::OPTIONS || !asks {
        return None;
    }
    let mut response = ResponseHead::new(StatusCode::OK);
    if !allows(policy, origin) {
        return (!policy.forward_not_matching_preflights).then_some(response);
    }
    let headers = &mut response.headers;
    headers.push(b"access-control-allow-origin", origin);
    if policy.allow_credentials {
        headers.push(b"access-control-allow-credentials", b"true");
    }
    for (name, value) in [
        ("access-control-allow-methods", &policy.allow_methods),
        ("access-control-allow-headers", &policy.allow_headers),
        ("access-control-max-age", &policy.max_age),
        ("access-control-expose-headers", &policy.expose_headers),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            headers.push(name.as_bytes(), value.as_bytes());
        }
    }
    Some(response)
}

/// Adds what a browser wants to see to the response of a request from an allowed origin; the upstream's words are replaced.
pub fn actual(policy: &CorsPolicy, request: &RequestHead, response: &mut ResponseHead) {
    let Some(origin) = request.headers.get(Known::Origin).filter(|origin| allows(policy, origin)) else { return };
    let headers = &mut response.headers;
    headers.set_named(&ALLOW_ORIGIN, origin);
    if policy.allow_credentials {
        headers.set_named(&ALLOW_CREDENTIALS, b"true");
    }
    if let Some(exposed) = policy.expose_headers.as_deref().filter(|exposed| !exposed.is_empty()) {
        headers.set_named(&EXPOSE_HEADERS, exposed.as_bytes());
    }
}

/// `*` among the origins lets every origin in, as in Envoy.
fn allows(policy: &CorsPolicy, origin: &[u8]) -> bool {
    !origin.is_empty() && policy.allow_origins.iter().any(|allowed| allowed.matches(b"*") || allowed.matches(origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StringMatcher;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            allow_origins: vec![StringMatcher::exact("https://good.test"), StringMatcher::suffix(".trusted.test")],
            allow_methods: Some("GET,POST".into()),
            allow_headers: Some("x-a,x-b".into()),
            expose_headers: Some("x-e".into()),
            max_age: Some("600".into()),
            allow_credentials: true,
            forward_not_matching_preflights: true,
        }
    }

    fn request(method: Method, headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new();
        head.method = method;
        for (name, value) in headers {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn lines(response: &ResponseHead) -> Vec<String> {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        response.headers.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect()
    }

    #[test]
    fn a_preflight_of_an_allowed_origin_is_answered_here() {
        // golden cors.preflight_suffix
        let head = request(Method::OPTIONS, &[("origin", "https://x.trusted.test"), ("access-control-request-method", "PUT")]);
        let response = preflight(&policy(), &head).unwrap();
        assert_eq!(
            lines(&response),
            [
                "access-control-allow-origin: https://x.trusted.test",
                "access-control-allow-credentials: true",
                "access-control-allow-methods: GET,POST",
                "access-control-allow-headers: x-a,x-b",
                "access-control-max-age: 600",
                "access-control-expose-headers: x-e",
            ]
        );
    }

    #[test]
    fn other_options_requests_go_upstream() {
        // golden cors.preflight_bad_origin, cors.preflight_no_method
        let bad = [("origin", "https://evil.test"), ("access-control-request-method", "GET")];
        assert!(preflight(&policy(), &request(Method::OPTIONS, &bad)).is_none());
        assert!(preflight(&policy(), &request(Method::OPTIONS, &[("origin", "https://good.test")])).is_none());
        let here = CorsPolicy { forward_not_matching_preflights: false, ..policy() };
        let response = preflight(&here, &request(Method::OPTIONS, &bad)).unwrap();
        assert!(response.headers.is_empty());
    }

    #[test]
    fn a_simple_request_gets_the_headers_in_place() {
        // golden cors.simple_ok: the upstream said `*`.
        let mut response = ResponseHead::new(StatusCode::OK);
        for (name, value) in [("access-control-allow-origin", "*"), ("content-length", "2")] {
            response.headers.push(name.as_bytes(), value.as_bytes());
        }
        actual(&policy(), &request(Method::GET, &[("origin", "https://good.test")]), &mut response);
        assert_eq!(
            lines(&response),
            [
                "access-control-allow-origin: https://good.test",
                "content-length: 2",
                "access-control-allow-credentials: true",
                "access-control-expose-headers: x-e",
            ]
        );
        let mut untouched = ResponseHead::new(StatusCode::OK);
        actual(&policy(), &request(Method::GET, &[("origin", "https://evil.test")]), &mut untouched);
        assert!(untouched.headers.is_empty());
    }
}
