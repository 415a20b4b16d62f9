//! `ONBOARDING_AGENT_ROOT_CERTS`: PEM text that has come through a task definition.
//!
//! Its line breaks are real ones when JSON has decoded them, the two characters `\n` when they were pasted into the console, and
//! spaces when the console has folded them. All three are read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use super::ConfigError;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
/// Certificates that are looked at.
const MAX_CERTIFICATES: usize = 256;

/// Reads PEM certificates from `text`, which `origin` holds, and writes them as PEM with line breaks. What stands between
/// certificates is left out.
///
/// # Errors
/// Names the origin. A key, or nothing at all, is an error; the text itself is never repeated.
pub fn parse_root_certificates(origin: &str, text: &str) -> Result<Vec<u8>, ConfigError> {
    let wrong = |reason: String| ConfigError(format!("{origin}: {reason}"));
    // A backslash is in no PEM.
    let text = text.replace("\\r", "\n").replace("\\n", "\n");
    let mut store = RootCertStore::empty();
    let mut pem = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, from)) = rest.split_once(BEGIN) {
        let number = store.len() + 1;
        if number > MAX_CERTIFICATES {
            return Err(wrong(format!("more than {MAX_CERTIFICATES} certificates")));
        }
        let (label, body) = from.split_once(DASHES).ok_or_else(|| wrong("a BEGIN line without its dashes".to_owned()))?;
        if label != "CERTIFICATE" {
            let label: String = label.chars().take(40).map(|c| if c.is_ascii_uppercase() { c } else { ' ' }).collect();
            return Err(wrong(format!("holds a {}: expected certificates only", label.trim())));
        }
        let end = format!("{END}CERTIFICATE{DASHES}");
        let (body, after) = body.split_once(end.as_str()).ok_or_else(|| wrong(format!("certificate {number} has no end")))?;
        let der = certificate(body).ok_or_else(|| wrong(format!("certificate {number} is no base64: is its text complete?")))?;
        pem.extend_from_slice(armoured(&der).as_bytes());
        store.add(CertificateDer::from(der)).map_err(|error| wrong(format!("certificate {number}: {error}")))?;
        rest = after;
    }
    if store.is_empty() {
        return Err(wrong("holds no certificate: expected PEM text that begins with -----BEGIN CERTIFICATE-----".to_owned()));
    }
    Ok(pem)
}

fn certificate(body: &str) -> Option<Vec<u8>> {
    let base64: String = body.split_whitespace().collect();
    STANDARD.decode(base64).ok().filter(|der| !der.is_empty())
}

fn armoured(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}
