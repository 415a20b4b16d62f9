//! AWS Signature Version 4: requests that prove that their sender has certain credentials.
//!
//! Our own rather than AWS's crate, which brings 25 crates and a second implementation of SHA-256 for what is one page of
//! code. It is held against recordings of botocore's signer and AWS's published vectors.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderName, HeaderValue, Request};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::credentials::Credentials;

/// The only algorithm there is.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How every scope ends.
pub const TERMINATOR: &str = "aws4_request";

const TIMESTAMP: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// What a signature is for.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Such as `us-east-1`.
    pub region: &'a str,
    /// Such as `sts`.
    pub service: &'a str,
    /// When the request is made; kept to the second.
    pub time: SystemTime,
}

impl Scope<'_> {
    /// `20261129T160000Z`.
    pub fn timestamp(&self) -> String {
        // Fails for no time that a clock shows.
        OffsetDateTime::from(self.time).format(TIMESTAMP).unwrap_or_default()
    }

    /// `20261129/us-east-1/sts/aws4_request`.
    fn text(&self, timestamp: &str) -> String {
        let day = timestamp.get(..8).unwrap_or_default();
        format!("{day}/{}/{}/{TERMINATOR}", self.region, self.service)
    }
}

/// A request in the form that is signed.
#[derive(Clone, Copy, Debug)]
pub struct CanonicalRequest<'a> {
    /// Such as `GET`.
    pub method: &'a str,
    /// Percent-encoded as it is sent.
    pub path: &'a str,
    /// Decoded names and values, in any order.
    pub query: &'a [(String, String)],
    /// Names in lower case with their values, in any order: those that are signed.
    pub headers: &'a [(String, String)],
    /// What is sent.
    pub body: &'a [u8],
}

impl CanonicalRequest<'_> {
    /// The signature of this request, in hexadecimal digits.
    pub fn signature(&self, secret_access_key: &str, scope: &Scope<'_>) -> String {
        let timestamp = scope.timestamp();
        let text = self.text();
        let to_sign = format!(
            "{ALGORITHM}\n{timestamp}\n{}\n{}",
            scope.text(&timestamp),
            HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref())
        );
        let mut key = hmac_sha256(format!("AWS4{secret_access_key}").as_bytes(), timestamp.get(..8).unwrap_or_default());
        for part in [scope.region, scope.service, TERMINATOR] {
            key = hmac_sha256(key.as_ref(), part);
        }
        HEXLOWER.encode(hmac_sha256(key.as_ref(), &to_sign).as_ref())
    }

    /// The names of the signed headers, as they are listed.
    pub fn signed_headers(&self) -> String {
        let mut names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.join(";")
    }

    fn text(&self) -> String {
        let path = if self.path.is_empty() { "/" } else { self.path };
        let mut text = format!("{}\n{path}\n{}\n", self.method, query_string(self.query));
        let mut headers: Vec<_> = self.headers.iter().collect();
        headers.sort_unstable();
        for (name, value) in headers {
            let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
            // Writing to a string never fails.
            let _ = writeln!(text, "{name}:{value}");
        }
        let _ = write!(text, "\n{}\n{}", self.signed_headers(), HEXLOWER.encode(digest(&SHA256, self.body).as_ref()));
        text
    }
}

/// A URL that does something by itself, as whoever signed it. Never shown by `Debug`: it is as good as a credential.
#[derive(Clone, PartialEq, Eq)]
pub struct PresignedUrl(String);

impl PresignedUrl {
    /// The URL itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PresignedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresignedUrl { <hidden> }")
    }
}

/// Signs `GET https://<host>/?<query>` so that anybody may send it, with `headers`, until it expires. `Host` is signed as well.
pub fn presign(
    credentials: &Credentials,
    scope: &Scope<'_>,
    host: &str,
    query: &[(&str, &str)],
    headers: &[(&str, &str)],
    expires_seconds: u32,
) -> PresignedUrl {
    let timestamp = scope.timestamp();
    let mut headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    headers.push(("host".to_owned(), host.to_owned()));
    let mut query: Vec<_> = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let canonical = CanonicalRequest { method: "GET", path: "/", query: &[], headers: &headers, body: b"" };
    let own = [
        ("X-Amz-Algorithm", ALGORITHM.to_owned()),
        ("X-Amz-Credential", format!("{}/{}", credentials.access_key_id, scope.text(&timestamp))),
        ("X-Amz-Date", timestamp),
        ("X-Amz-Expires", expires_seconds.to_string()),
        ("X-Amz-SignedHeaders", canonical.signed_headers()),
    ];
    query.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    if let Some(token) = &credentials.session_token {
        query.push(("X-Amz-Security-Token".to_owned(), token.clone()));
    }
    let signature = CanonicalRequest { query: &query, ..canonical }.signature(&credentials.secret_access_key, scope);
    PresignedUrl(format!("https://{host}/?{}&X-Amz-Signature={signature}", query_string(&query)))
}

/// A request could not be signed: something in it or in the credentials cannot be in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request to AWS cannot be signed: its host, headers or credentials hold what a header cannot")]
pub struct SignError;

/// Signs a request without a query in its headers. `Host` has to be there; every header that is, is signed.
///
/// # Errors
/// When a header is not made of visible ASCII.
pub fn sign<B: AsRef<[u8]>>(request: &mut Request<B>, credentials: &Credentials, scope: &Scope<'_>) -> Result<(), SignError> {
    let timestamp = scope.timestamp();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| SignError);
    if !request.headers().contains_key(HOST) {
        return Err(SignError);
    }
    let date = value(&timestamp)?;
    request.headers_mut().insert(HeaderName::from_static("x-amz-date"), date);
    if let Some(token) = &credentials.session_token {
        let mut token = value(token)?;
        token.set_sensitive(true);
        request.headers_mut().insert(HeaderName::from_static("x-amz-security-token"), token);
    }
    let headers = request.headers().iter().map(|(name, value)| Ok((name.to_string(), value.to_str()?.to_owned())));
    let headers = headers.collect::<Result<Vec<_>, http::header::ToStrError>>().map_err(|_| SignError)?;
    let canonical = CanonicalRequest {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: &[],
        headers: &headers,
        body: request.body().as_ref(),
    };
    let mut authorization = value(&format!(
        "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={}",
        credentials.access_key_id,
        scope.text(&timestamp),
        canonical.signed_headers(),
        canonical.signature(&credentials.secret_access_key, scope),
    ))?;
    authorization.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, authorization);
    Ok(())
}

/// Names and values, sorted and encoded.
pub fn query_string(query: &[(String, String)]) -> String {
    let mut pairs: Vec<_> = query.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    pairs.sort_unstable();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn hmac_sha256(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

#[cfg(test)]
mod tests;
