//! A token in its parts (RFC 7519 in the compact form of RFC 7515), not verified yet.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::json;
use super::status::Status;

/// Bytes of the longest token that is looked at.
pub(super) const MAX_TOKEN: usize = 64 * 1024;

/// A token that is well formed. Nothing in it can be believed before its signature is verified.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) header: Map<String, Value>,
    pub(super) payload: Map<String, Value>,
    /// The payload as it is in the token.
    pub(super) payload_text: Box<str>,
    pub(super) algorithm: Algorithm,
    pub(super) audiences: Vec<String>,
    pub(super) not_before: u64,
    pub(super) expires: Option<u64>,
    /// What is signed.
    signed: Box<[u8]>,
    signature: Vec<u8>,
}

impl Token {
    /// Takes a token apart; the order of the checks is Envoy's.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Status> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= MAX_TOKEN).ok_or(Status::BadFormat)?;
        let mut parts = text.split('.');
        let (Some(first), Some(second), Some(third), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Status::BadFormat);
        };
        if first.is_empty() || second.is_empty() || third.is_empty() {
            return Err(Status::BadFormat);
        }
        let header = base64url(first).ok_or(Status::HeaderBase64)?;
        let header = json::object(&header).ok_or(Status::HeaderJson)?;
        let algorithm = header.get("alg").and_then(Value::as_str).ok_or(Status::HeaderAlg)?;
        let algorithm = Algorithm::named(algorithm).ok_or(Status::UnknownAlg)?;
        text_claim(&header, "kid", Status::HeaderKid)?;
        let payload = base64url(second).ok_or(Status::PayloadBase64)?;
        let payload = json::object(&payload).ok_or(Status::PayloadJson)?;
        text_claim(&payload, "iss", Status::Iss)?;
        text_claim(&payload, "sub", Status::Sub)?;
        time_claim(&payload, "iat", Status::Iat, Status::IatRange)?;
        let not_before = time_claim(&payload, "nbf", Status::Nbf, Status::NbfRange)?.unwrap_or(0);
        let expires = time_claim(&payload, "exp", Status::Exp, Status::ExpRange)?;
        text_claim(&payload, "jti", Status::Jti)?;
        let audiences = match payload.get("aud") {
            None => Vec::new(),
            Some(Value::String(audience)) => vec![audience.clone()],
            Some(Value::Array(list)) => {
                list.iter().map(|item| item.as_str().map(str::to_owned).ok_or(Status::Aud)).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(Status::Aud),
        };
        let signature = base64url(third).ok_or(Status::SignatureBase64)?;
        let signed = text.as_bytes()[..first.len() + 1 + second.len()].into();
        Ok(Self { header, payload, payload_text: second.into(), algorithm, audiences, not_before, expires, signed, signature })
    }

    /// `iss`; empty when missing.
    pub(super) fn issuer(&self) -> &str {
        self.claim("iss")
    }

    /// `sub`; empty when missing.
    pub(super) fn subject(&self) -> &str {
        self.claim("sub")
    }

    fn claim(&self, name: &str) -> &str {
        self.payload.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// `kid`; an empty one counts as missing.
    pub(super) fn key_id(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty())
    }

    /// What is signed, and the signature.
    pub(super) fn signed(&self) -> (&[u8], &[u8]) {
        (&self.signed, &self.signature)
    }

    /// Whether `now`, in seconds since 1970, lies in the time that the token is for. Envoy takes an `exp` of 0 for none; here
    /// it is a moment long past.
    pub(super) fn check_time(&self, now: u64, skew: u64) -> Result<(), Status> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Status::NotYetValid);
        }
        match self.expires {
            Some(expires) if now > expires.saturating_add(skew) => Err(Status::Expired),
            _ => Ok(()),
        }
    }

    /// The payload with `=` up to a multiple of four.
    pub(super) fn padded_payload(&self) -> Cow<'_, str> {
        match self.payload_text.len() % 4 {
            0 => Cow::Borrowed(&self.payload_text),
            rest => Cow::Owned(format!("{}{}", self.payload_text, &"==="[..4 - rest])),
        }
    }
}

/// Base64url. Padding, which the RFC forbids and some issuers write, may be there if it is right.
pub(super) fn base64url(text: &str) -> Option<Vec<u8>> {
    let padding =
        if text.len().is_multiple_of(4) { text.bytes().rev().take(2).take_while(|byte| *byte == b'=').count() } else { 0 };
    URL_SAFE_NO_PAD.decode(&text[..text.len() - padding]).ok()
}

fn text_claim(object: &Map<String, Value>, name: &str, wrong: Status) -> Result<(), Status> {
    if object.get(name).is_none_or(Value::is_string) { Ok(()) } else { Err(wrong) }
}

/// Seconds since 1970. Fractions are cut off, as in Envoy.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn time_claim(object: &Map<String, Value>, name: &str, wrong: Status, range: Status) -> Result<Option<u64>, Status> {
    const LIMIT: f64 = 18_446_744_073_709_551_616.0;
    let Some(value) = object.get(name) else { return Ok(None) };
    let number = value.as_f64().ok_or(wrong)?;
    if (0.0..LIMIT).contains(&number) { Ok(Some(number as u64)) } else { Err(range) }
}
