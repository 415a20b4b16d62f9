//! Each rule for an identity document has a case here that would let somebody be where he is not without it. What is read was made
//! by OpenSSL: `testdata/aws/instance/generate`.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use super::*;

/// 2035, within the validity of the certificates.
const NOW: u64 = 2_051_222_400;
const ACCOUNT: &str = "123456789012";
const OTHER_ACCOUNT: &str = "210987654321";

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/aws/instance"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn certificates() -> InstanceCertificates {
    InstanceCertificates::read(&folder().join("certificates")).unwrap()
}

fn verified(document: &str, signature: &str) -> Result<InstanceDocument, DocumentError> {
    certificates().verify(document.as_bytes(), signature, UNIX_EPOCH + Duration::from_secs(NOW))
}

/// The signature with other bytes in it, as many.
fn edited(signature: &str, from: &[u8], to: &[u8]) -> String {
    let text: String = signature.split_whitespace().collect();
    let mut bytes = STANDARD.decode(text).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).expect("what is to be changed");
    bytes[at..][..to.len()].copy_from_slice(to);
    STANDARD.encode(bytes)
}

#[test]
fn what_aws_has_signed_is_believed_in_every_form() {
    for form in ["rsa2048", "definite", "detached", "by-key-id"] {
        let document = verified(&read("document"), &read(form)).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!((document.account.as_str(), document.instance_id.as_str()), (ACCOUNT, "i-0123456789abcdef0"));
        assert_eq!((document.region.name(), document.zone.as_str()), ("us-east-1", "us-east-1b"));
        assert_eq!(document.private_ip.to_string(), "10.0.0.7");
    }
}

#[test]
fn a_changed_document_is_not_believed() {
    let (document, signature) = (read("document"), read("rsa2048"));
    let forged = document.replace(ACCOUNT, OTHER_ACCOUNT);
    // The document alone, or one that says the same in other words.
    for other in [forged.clone(), document.replace("us-east-1b", "us-east-1a"), format!("{document} ")] {
        for form in ["rsa2048", "definite", "detached"] {
            let error = verified(&other, &read(form)).unwrap_err();
            assert!(matches!(error, DocumentError::OtherDocument), "{form}: {error}");
        }
    }
    // The copy of it in the signature too: its digest is another then.
    let same = edited(&signature, ACCOUNT.as_bytes(), OTHER_ACCOUNT.as_bytes());
    assert!(matches!(verified(&forged, &same), Err(DocumentError::OtherDocument)));
    // That as well: the signature is of the old one then.
    let (old, new) = (digest(&SHA256, document.as_bytes()), digest(&SHA256, forged.as_bytes()));
    for (document, signature) in [(&forged, &same), (&forged, &read("detached"))] {
        let error = verified(document, &edited(signature, old.as_ref(), new.as_ref())).unwrap_err();
        assert!(matches!(error, DocumentError::Signature(_)), "{error}");
    }
    // The copy alone: not what is read, but nothing that AWS has made.
    assert!(matches!(verified(&document, &same), Err(DocumentError::OtherDocument)));
}

#[test]
fn only_the_key_of_the_documents_region_counts() {
    for signature in ["of-another-region", "of-a-stranger"] {
        let error = verified(&read("document"), &read(signature)).unwrap_err();
        assert!(matches!(&error, DocumentError::Signature(region) if region.name() == "us-east-1"), "{signature}: {error}");
    }
    let elsewhere = read("document").replace("us-east-1", "us-west-2");
    let error = verified(&elsewhere, &read("rsa2048")).unwrap_err();
    assert!(error.is_ours() && error.to_string().contains("us-west-2"), "{error}");
    // A certificate counts while it is valid.
    for seconds in [0, 8_000_000_000] {
        let now = UNIX_EPOCH + Duration::from_secs(seconds);
        let error = certificates().verify(read("document").as_bytes(), &read("rsa2048"), now).unwrap_err();
        assert!(matches!(error, DocumentError::NoCertificate(_)), "{error}");
    }
}

#[test]
fn signatures_of_another_shape_are_refused() {
    let oid_of_data = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03, 0x31, 0x0b, 0x06, 0x09, 0x2a];
    let another = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03, 0x31, 0x0b, 0x06, 0x09, 0x2b];
    let outer = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
    let enveloped = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03];
    // Before the octets of the signature.
    let rsa = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00, 0x04];
    let pss = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x05, 0x00, 0x04];
    for (signature, part) in [
        (read("two-signers"), "signerInfos"),
        (read("without-attributes"), "signedAttrs"),
        (read("sha1"), "digestAlgorithm"),
        (read("other-content"), "eContentType"),
        (edited(&read("rsa2048"), &oid_of_data, &another), "contentType"),
        (edited(&read("rsa2048"), &outer, &enveloped), "contentType of ContentInfo"),
        (edited(&read("rsa2048"), &rsa, &pss), "signatureAlgorithm"),
        (STANDARD.encode(b"{}"), "ContentInfo"),
        (String::new(), "ContentInfo"),
    ] {
        let error = verified(&read("document"), &signature).unwrap_err();
        assert!(matches!(error, DocumentError::Shape(found) if found == part), "{part}: {error}");
    }
    assert!(matches!(verified(&read("document"), "-----BEGIN PKCS7-----"), Err(DocumentError::Encoding)));
    assert!(matches!(verified("{}", &read("rsa2048")), Err(DocumentError::Document(_))));
    let long = format!("{}{}", read("document"), " ".repeat(MAX_DOCUMENT));
    assert!(matches!(verified(&long, &read("rsa2048")), Err(DocumentError::Size)));
    assert!(matches!(verified(&read("document"), &"A".repeat(MAX_SIGNATURE + 1)), Err(DocumentError::Size)));
}

#[test]
fn a_broken_signature_is_an_error_wherever_it_breaks() {
    let text: String = read("rsa2048").split_whitespace().collect();
    let bytes = STANDARD.decode(text).unwrap();
    for place in 0..bytes.len() {
        assert!(verified(&read("document"), &STANDARD.encode(&bytes[..place])).is_err(), "cut at {place}");
        // Some bytes say nothing that counts: what is believed is the same then.
        for bit in [0x01, 0x80] {
            let mut broken = bytes.clone();
            broken[place] ^= bit;
            if let Ok(document) = verified(&read("document"), &STANDARD.encode(broken)) {
                assert_eq!(document.account, ACCOUNT, "{place}");
            }
        }
    }
}

#[test]
fn certificates_that_cannot_speak_for_a_region_are_named() {
    assert_eq!(format!("{:?}", certificates()).matches("-1").count(), 2);
    for (name, content, reason) in [
        ("us-east-1.pem", read("short.pem"), "certificate 1: expected the RSA-2048 certificate"),
        ("us-east-1.pem", read("certificates/us-east-1.pem") + &read("curve.pem"), "certificate 2: expected the RSA-2048"),
        ("us-east-1.pem", String::new(), "0 certificates, expected 1 to 8"),
        ("us-east-1.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(), "certificate 1: "),
        ("us-east-1.pem", read("certificates/us-east-1.pem").repeat(9), "9 certificates"),
        ("us-east-1.pem", " ".repeat(70_000), "longer than"),
        ("somewhere.pem", read("certificates/us-east-1.pem"), "file name: \"somewhere\" is no AWS region"),
        ("us-east-1.txt", read("certificates/us-east-1.pem"), "expected <region>.pem"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), content).unwrap();
        let error = InstanceCertificates::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(folder.path().to_str().unwrap()), "{name}: {error}");
    }
    let error = InstanceCertificates::read("/nowhere".as_ref()).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere: "), "{error}");
}
