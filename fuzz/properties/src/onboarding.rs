//! What strangers show to an onboarding plane.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skiff_agent::aws::instance::InstanceCertificates;
use skiff_agent::aws::verifier::Proof;

/// What AWS has signed in the tests: certificates, the document, and a signature of it, whose last part is RSA's.
const INSTANCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../agent/testdata/aws/instance");
const DOCUMENT: &[u8] = include_bytes!("../../../agent/testdata/aws/instance/document");
const RSA_BYTES: usize = 256;
static CERTIFICATES: LazyLock<InstanceCertificates> =
    LazyLock::new(|| InstanceCertificates::read(&Path::new(INSTANCE).join("certificates")).expect("certificates"));

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
    assert_eq!(uri.authority().map(http::uri::Authority::as_str), Some(host.as_str()));
    let anew = format!("https://{host}{}", proof.path_and_query());
    assert_eq!(Proof::parse(&anew, now).as_ref(), Ok(&proof));
    for parameter in ["Action=GetCallerIdentity", "X-Amz-SignedHeaders=host%3Bx-onboarding-nonce%3Bx-onboarding-plane"] {
        assert_eq!(anew.to_ascii_lowercase().matches(&parameter.to_ascii_lowercase()).count(), 1, "{parameter}");
    }
    let shown = format!("{proof:?}");
    assert!(!shown.contains(proof.signature()), "{shown}");
}

/// A signature of an instance identity document: what is believed holds what RSA has made of it for who has the key.
pub fn instance_document(data: &[u8]) {
    let now: SystemTime = UNIX_EPOCH + Duration::from_secs(2_051_222_400);
    let signature = STANDARD.encode(data);
    let Ok(document) = CERTIFICATES.verify(DOCUMENT, &signature, now) else { return };
    assert_eq!((document.account.as_str(), document.instance_id.as_str()), ("123456789012", "i-0123456789abcdef0"));
    let known = ["rsa2048", "definite", "detached", "by-key-id"].map(|name| {
        let text = std::fs::read_to_string(Path::new(INSTANCE).join(name)).expect(name);
        STANDARD.decode(text.split_whitespace().collect::<String>()).expect("base64")
    });
    let holds = |part: &[u8]| data.windows(part.len()).any(|window| window == part);
    // Zeros that end what has no length follow the signature.
    let is_known = known.iter().any(|bytes| {
        let ends = if bytes.ends_with(&[0; 6]) { bytes.len() - 6 } else { bytes.len() };
        holds(&bytes[ends - RSA_BYTES..ends])
    });
    assert!(is_known, "nobody has signed this");
}
