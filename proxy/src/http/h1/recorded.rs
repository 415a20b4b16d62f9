//! Requests as Envoy 1.40 was recorded to take or refuse them, some four hundred malformed and odd ones: this codec says the
//! same, but for the list of those that it refuses for safety.

use bytes::BytesMut;
use serde::Deserialize;

use super::body::{DecodeError, Decoded, Decoder};
use super::head::{HeadLimits, parse_request};
use crate::http::head::RequestHead;

#[derive(Deserialize)]
struct Recorded {
    name: String,
    /// One character a byte.
    request: String,
    status: u16,
    details: String,
    /// Of what reached the upstream, where anything did.
    #[serde(default)]
    authority: String,
    fields: Option<Vec<String>>,
}

/// Where this codec is stricter: name, what it says. See `tests/golden/deviations.yaml`.
const STRICTER: &[(&str, &str)] = &[
    ("abs_dup_host", "http1.codec_error"),
    ("abs_https", "http1.codec_error"),
    ("abs_httpsport", "http1.codec_error"),
    ("absolute_form_https", "http1.codec_error"),
    ("chunk_ext_ctl", "http1.codec_error"),
    ("chunk_ext_nul", "http1.codec_error"),
    ("chunk_too_long_data", "http1.codec_error"),
    ("chunk_trailer_cr", "http1.codec_error"),
    ("chunk_trailer_nul", "http1.codec_error"),
    ("dup_host_case", "http1.codec_error"),
    ("dup_host_diff", "http1.codec_error"),
    ("dup_host_same", "http1.codec_error"),
    ("hdr_val_cr_end", "http1.codec_error"),
    ("hdr_val_cr_mid", "http1.codec_error"),
    ("hdr_val_cr_start", "http1.codec_error"),
    ("hdr_val_crcr", "http1.codec_error"),
    ("header_cr", "http1.codec_error"),
    ("host_at", "http.invalid_authority"),
    ("host_userpw", "http.invalid_authority"),
    ("host_with_userinfo", "http.invalid_authority"),
    ("sslv2", "http1.codec_error"),
];

/// Whose repeated fields the connection manager joins.
const JOINED_LATER: &[&str] = &["hdr_ct_two", "hdr_ua_two"];

/// What the codec, or the connection manager by what the codec found, makes of a request: status and details, or none.
fn verdict(request: &[u8], head: &mut RequestHead) -> Option<(u16, String)> {
    let parsed = match parse_request(request, &HeadLimits::default(), head) {
        Err(error) => return Some((error.reply().status, error.details().to_owned())),
        Ok(None) => return Some((0, "downstream_remote_disconnect".to_owned())),
        Ok(Some(parsed)) => parsed,
    };
    if !head.has_authority() {
        return Some((400, "missing_host_header".to_owned()));
    }
    let mut decoder = Decoder::new(parsed.framing, false, 60 * 1024);
    let mut body = BytesMut::from(&request[parsed.consumed..]);
    loop {
        match decoder.decode(&mut body) {
            Ok(Decoded::Data(_) | Decoded::Trailers(_)) => {}
            Ok(Decoded::End | Decoded::NeedMore) => return None,
            Err(DecodeError::TrailersTooLarge) => return Some((431, "http1.headers_too_large".to_owned())),
            Err(_) => return Some((400, "http1.codec_error".to_owned())),
        }
    }
}

#[test]
fn four_hundred_recorded_requests_are_taken_and_refused_as_by_envoy() {
    let recorded: Vec<Recorded> = serde_json::from_str(include_str!("testdata/heads.json")).unwrap();
    assert!(recorded.len() > 400);
    let mut head = RequestHead::new();
    let mut faults = Vec::new();
    for case in &recorded {
        let request: Vec<u8> = case.request.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        let verdict = verdict(&request, &mut head);
        // What the codec lets pass is another's to refuse: the path, the route, the method.
        let codec = case.details.starts_with("http1.")
            || matches!(
                case.details.as_str(),
                "low_version" | "http.invalid_authority" | "missing_host_header" | "downstream_remote_disconnect"
            );
        let expected = codec.then(|| (case.status, case.details.clone()));
        if let Some((_, details)) = STRICTER.iter().find(|(name, _)| *name == case.name) {
            if verdict.as_ref().map(|(_, details)| details.as_str()) != Some(*details) {
                faults.push(format!("{}: {verdict:?}, meant to be {details}", case.name));
            }
        } else if case.status == 0 && verdict.as_ref().is_none_or(|(status, _)| *status == 0) {
            // Nobody said anything until the caller left: we, too, wait for more, be it of a head or of a body.
        } else if verdict != expected {
            faults.push(format!("{}: {verdict:?}, recorded {expected:?}", case.name));
        } else if let Some(fields) = case.fields.as_ref().filter(|_| !JOINED_LATER.contains(&case.name.as_str())) {
            let wanted: Vec<&str> = fields.iter().map(String::as_str).filter(|field| *field != "content-length: 0").collect();
            let got: Vec<String> = head
                .headers
                .iter()
                .map(|(name, value)| [name, b": ", value].concat().iter().map(|b| char::from(*b)).collect())
                .filter(|field: &String| field != "content-length: 0")
                .collect();
            let authority: String = head.authority().iter().map(|b| char::from(*b)).collect();
            if got != wanted || authority != case.authority {
                faults.push(format!("{}: {authority} {got:?}, recorded {} {wanted:?}", case.name, case.authority));
            }
        }
    }
    assert!(faults.is_empty(), "{} differ\n{}", faults.len(), faults.join("\n"));
}
