//! The rules for a presigned request that somebody unknown hands over.

use std::fmt;
use std::time::{Duration, SystemTime};

use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::aws::arn::Region;
use crate::aws::caller_identity::{ACTION, EXPIRES_SECONDS, NONCE_HEADER, PLANE_HEADER, SERVICE, VERSION};
use crate::aws::sigv4::{ALGORITHM, TERMINATOR, query_string};

/// Bytes of the longest proof.
const MAX_PROOF: usize = 4096;
/// How far the clocks may be apart.
const SKEW: Duration = Duration::from_secs(5 * 60);

const TIMESTAMP: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// Each once, in this spelling, and nothing else.
const PARAMETERS: [&str; 9] = [
    "Action",
    "Version",
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
];

/// A proof that obeys every rule. Whose it is only STS can say. `Debug` shows its region alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof {
    region: Region,
    /// Decoded; all of [`PARAMETERS`], as each of them has a rule.
    query: Vec<(String, String)>,
    signature: String,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("region", &self.region).finish_non_exhaustive()
    }
}

/// The rule that a proof breaks. Holds nothing of the proof that could be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Longer than any that we make.
    #[error("longer than {MAX_PROOF} bytes")]
    Size,
    /// Not `https://<host>/?<query>`; a fragment, user, port or another path make it something else.
    #[error("expected https://sts.<region>.<domain>/?<query>")]
    Form,
    /// Not the STS of a known region.
    #[error("its host is not the STS of a known region")]
    Host,
    /// The query is not percent-encoded as it should be.
    #[error("its query is not encoded as it should be")]
    Encoding,
    /// A parameter that has nothing to do there, or twice, in whatever case.
    #[error("parameter number {0} is unknown or occurs twice")]
    Parameter(usize),
    /// A parameter is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A parameter has another value than it should.
    #[error("{0} is not as it should be")]
    Value(&'static str),
    /// Signed for another region than that of the host.
    #[error("it is signed for another region or service than its host is of")]
    Scope,
    /// The headers that bind it are not signed, or others are.
    #[error("X-Amz-SignedHeaders: expected host;{NONCE_HEADER};{PLANE_HEADER}")]
    SignedHeaders,
    /// Made too long ago.
    #[error("it is too old, or the clocks differ by more than {SKEW:?}")]
    Expired,
    /// Made in the future.
    #[error("it is from the future, or the clocks differ by more than {SKEW:?}")]
    NotYetValid,
}

impl Proof {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(url: &str, now: SystemTime) -> Result<Self, ProofError> {
        if url.len() > MAX_PROOF {
            return Err(ProofError::Size);
        }
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) || url.contains('#') {
            return Err(ProofError::Form);
        }
        let (host, query) = url.strip_prefix("https://").and_then(|rest| rest.split_once("/?")).ok_or(ProofError::Form)?;
        let region = region_of(host)?;
        let query = parameters(query)?;
        let value = |name| value_of(&query, name);
        for (name, expected) in [("Action", ACTION), ("Version", VERSION), ("X-Amz-Algorithm", ALGORITHM)] {
            if value(name)? != expected {
                return Err(ProofError::Value(name));
            }
        }
        let date = value("X-Amz-Date")?;
        check_credential(value("X-Amz-Credential")?, &region, date)?;
        // Exactly these: with others STS would see another request than we send.
        if value("X-Amz-SignedHeaders")? != format!("host;{NONCE_HEADER};{PLANE_HEADER}") {
            return Err(ProofError::SignedHeaders);
        }
        check_time(date, value("X-Amz-Expires")?, now)?;
        if value("X-Amz-Security-Token")?.is_empty() {
            return Err(ProofError::Value("X-Amz-Security-Token"));
        }
        let signature = value("X-Amz-Signature")?.to_owned();
        if signature.len() != 64 || !signature.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ProofError::Value("X-Amz-Signature"));
        }
        Ok(Self { region, query, signature })
    }

    /// Whose STS it is for.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Its signature: the same for the same proof. For who remembers which proofs there were.
    pub fn signature(&self) -> &str {
        &self.signature
    }

    /// What is sent: its parts, put together anew. As secret as the proof.
    pub fn path_and_query(&self) -> String {
        format!("/?{}", query_string(&self.query))
    }
}

/// The region whose STS this is the host of, letter for letter.
fn region_of(host: &str) -> Result<Region, ProofError> {
    let region = host.strip_prefix("sts.").and_then(|rest| rest.split('.').next()).ok_or(ProofError::Host)?;
    let region: Region = region.parse().map_err(|_| ProofError::Host)?;
    if region.host(SERVICE) == host { Ok(region) } else { Err(ProofError::Host) }
}

fn parameters(query: &str) -> Result<Vec<(String, String)>, ProofError> {
    let mut parameters: Vec<(String, String)> = Vec::with_capacity(PARAMETERS.len());
    for (index, pair) in query.split('&').enumerate() {
        let (name, value) = pair.split_once('=').ok_or(ProofError::Encoding)?;
        // Names have no need to be encoded; one that is could be read as another.
        let known = PARAMETERS.contains(&name) && parameters.iter().all(|(other, _)| other != name);
        if !known {
            return Err(ProofError::Parameter(index + 1));
        }
        parameters.push((name.to_owned(), decode(value)?));
    }
    // Their order says nothing: the same proof is the same whatever the order.
    parameters.sort_unstable();
    Ok(parameters)
}

fn value_of<'a>(parameters: &'a [(String, String)], name: &'static str) -> Result<&'a str, ProofError> {
    parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str()).ok_or(ProofError::Missing(name))
}

/// What `sigv4::encode` has encoded. `+` and the like, which others read as something else, are no such thing.
fn decode(text: &str) -> Result<String, ProofError> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)).ok_or(ProofError::Encoding)?;
            let digits = std::str::from_utf8(digits).map_err(|_| ProofError::Encoding)?;
            decoded.push(u8::from_str_radix(digits, 16).map_err(|_| ProofError::Encoding)?);
            rest = &after[2..];
        } else if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            decoded.push(*byte);
        } else {
            return Err(ProofError::Encoding);
        }
    }
    String::from_utf8(decoded).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic())).ok_or(ProofError::Encoding)
}

/// `<access key id>/<day>/<region>/sts/aws4_request`.
fn check_credential(credential: &str, region: &Region, date: &str) -> Result<(), ProofError> {
    let mut parts = credential.split('/');
    let key = parts.next().unwrap_or_default();
    if !matches!(key.len(), 16..=128) || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(ProofError::Value("X-Amz-Credential"));
    }
    let scope: Vec<&str> = parts.collect();
    let expected = [date.get(..8).unwrap_or_default(), region.name(), SERVICE, TERMINATOR];
    if scope == expected { Ok(()) } else { Err(ProofError::Scope) }
}

fn check_time(date: &str, expires: &str, now: SystemTime) -> Result<(), ProofError> {
    let signed = PrimitiveDateTime::parse(date, TIMESTAMP).map_err(|_| ProofError::Value("X-Amz-Date"))?;
    let signed = SystemTime::from(signed.assume_utc());
    let expires = expires.bytes().all(|byte| byte.is_ascii_digit()).then(|| expires.parse().ok()).flatten();
    let expires = expires.filter(|seconds| (1..=EXPIRES_SECONDS).contains(seconds)).ok_or(ProofError::Value("X-Amz-Expires"))?;
    // Additions can overflow for years far away; a proof of those is no good.
    let start = signed.checked_sub(SKEW).ok_or(ProofError::Value("X-Amz-Date"))?;
    let end = signed.checked_add(Duration::from_secs(expires.into()) + SKEW).ok_or(ProofError::Value("X-Amz-Date"))?;
    if now < start {
        return Err(ProofError::NotYetValid);
    }
    if now > end { Err(ProofError::Expired) } else { Ok(()) }
}
