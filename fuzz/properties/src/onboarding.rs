//! What strangers show to an onboarding plane.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skiff_agent::aws::verifier::Proof;

/// When the proofs of the corpus were made.
const NOW: Duration = Duration::from_secs(1_795_968_000);

/// A proof of an AWS role: what is taken leads to the STS of its region however it is read, says nothing else than it did when
/// it is put together anew, and does not show.
pub fn proof(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let now: SystemTime = UNIX_EPOCH + NOW;
    let Ok(proof) = Proof::parse(text, now) else { return };
    let uri: http::Uri = text.parse().expect("a proof that is taken is a URL");
    let host = proof.region().host("sts");
    assert_eq!((uri.scheme_str(), uri.path()), (Some("https"), "/"));
    assert_eq!(uri.authority().map(|authority| authority.as_str()), Some(host.as_str()));
    let anew = format!("https://{host}{}", proof.path_and_query());
    assert_eq!(Proof::parse(&anew, now).as_ref(), Ok(&proof));
    for parameter in ["Action=GetCallerIdentity", "X-Amz-SignedHeaders=host%3Bx-onboarding-nonce%3Bx-onboarding-plane"] {
        assert_eq!(anew.to_ascii_lowercase().matches(&parameter.to_ascii_lowercase()).count(), 1, "{parameter}");
    }
    let shown = format!("{proof:?}");
    assert!(!shown.contains(proof.signature()), "{shown}");
}
