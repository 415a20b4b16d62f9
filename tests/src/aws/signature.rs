//! The other side of a signature: made anew with the secret of whom it says it is of.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use skiff_agent::aws::sigv4::{CanonicalRequest, Scope};

use super::{Session, State};

/// AWS's words for a signature that does not hold.
pub(super) type Wrong = &'static str;

/// Whose request it is.
pub(super) fn verify<'a>(request: &Request<Bytes>, service: &str, state: &'a State) -> Result<&'a Session, Wrong> {
    let (parameters, in_query) = match request.headers().get("authorization") {
        Some(authorization) => (in_header(authorization.to_str().map_err(|_| "IncompleteSignature")?)?, false),
        None => (query(request), true),
    };
    let find = |name: &str| parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let need = |name: &str| find(name).ok_or("MissingAuthenticationToken");
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let credential = need("X-Amz-Credential")?;
    let [key, day, region, of, "aws4_request"] = credential.split('/').collect::<Vec<_>>()[..] else {
        return Err("IncompleteSignature");
    };
    let session = state.sessions.get(key).ok_or("InvalidClientTokenId")?;
    let (date, token) = if in_query {
        (need("X-Amz-Date")?, find("X-Amz-Security-Token"))
    } else {
        (header("x-amz-date").ok_or("IncompleteSignature")?, header("x-amz-security-token"))
    };
    if token != session.token {
        return Err("InvalidClientTokenId");
    }
    let time = time_of(&date).ok_or("IncompleteSignature")?;
    let age = SystemTime::now().duration_since(time).unwrap_or_default();
    if of != service || !date.starts_with(day) || age > Duration::from_secs(15 * 60) {
        return Err("SignatureDoesNotMatch");
    }
    let signed = need("X-Amz-SignedHeaders")?;
    let headers = signed.split(';').map(|name| Some((name.to_owned(), header(name)?))).collect::<Option<Vec<_>>>();
    let mut rest = query(request);
    rest.retain(|(name, _)| name != "X-Amz-Signature");
    let canonical = CanonicalRequest {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: &rest,
        headers: &headers.ok_or("SignatureDoesNotMatch")?,
        body: request.body(),
    };
    let expected = canonical.signature(&session.secret, &Scope { region, service, time });
    if need("X-Amz-Signature")? == expected { Ok(session) } else { Err("SignatureDoesNotMatch") }
}

/// `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…` under the names of a query.
fn in_header(text: &str) -> Result<Vec<(String, String)>, Wrong> {
    let parts = text.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("IncompleteSignature")?;
    let parts = parts.split(", ").filter_map(|part| part.split_once('='));
    Ok(parts.map(|(name, value)| (format!("X-Amz-{name}"), value.to_owned())).collect())
}

/// The query, decoded.
pub(super) fn query(request: &Request<Bytes>) -> Vec<(String, String)> {
    form(request.uri().query().unwrap_or_default())
}

/// Names and values, decoded.
pub(super) fn form(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let (mut decoded, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).unwrap()
}

/// `20261129T160000Z`, by the days of the civil calendar.
fn time_of(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    // Years begin in March here, so that a leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400 + hour * 3600 + minute * 60 + second))
}
