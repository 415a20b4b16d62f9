//! The shape of a signature: `SignedData` of PKCS #7 (RFC 5652), as AWS makes it and no other: one signer, SHA-256 with RSA over
//! signed attributes. Certificates in it are not looked at: whom to believe is not for the signature to say.

use std::borrow::Cow;

use super::ber::{Misplaced, Value, Values};

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OCTETS_IN_PIECES: u8 = 0x24;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_1: u8 = 0xa1;

// Encoded object identifiers.
/// 1.2.840.113549.1.7.1
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 1.2.840.113549.1.7.2
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// 1.2.840.113549.1.9.3
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
/// 1.2.840.113549.1.9.4
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
/// 2.16.840.1.101.3.4.2.1
const SHA_256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
/// 1.2.840.113549.1.1.1
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.2.840.113549.1.1.11
const SHA_256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];

/// What a signature says. Nothing of it holds until [`Self::signature`] has been verified over [`Self::attributes`].
#[derive(Debug)]
pub(super) struct SignedData<'a> {
    /// What was signed, where it is in there.
    pub(super) content: Option<Cow<'a, [u8]>>,
    /// The signed attributes in the form that the signature is of.
    pub(super) attributes: Vec<u8>,
    /// The attribute `messageDigest`: SHA-256 of the content.
    pub(super) message_digest: &'a [u8],
    /// PKCS #1 v1.5.
    pub(super) signature: &'a [u8],
}

impl<'a> SignedData<'a> {
    /// Reads a `ContentInfo`.
    ///
    /// # Errors
    /// With the field that is not as it should be.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Misplaced> {
        let mut all = Values::new(bytes);
        let mut info = all.expect(SEQUENCE, "ContentInfo")?.values();
        all.end("what follows it")?;
        object(&mut info, &[SIGNED_DATA], "contentType of ContentInfo")?;
        let mut signed = info.expect(CONTEXT_0, "content")?.only(SEQUENCE, "SignedData")?.values();
        info.end("what follows content")?;
        signed.expect(INTEGER, "version")?;
        signed.expect(SET, "digestAlgorithms")?;
        let content = content(signed.expect(SEQUENCE, "encapContentInfo")?)?;
        signed.optional(CONTEXT_0, "certificates")?;
        signed.optional(CONTEXT_1, "crls")?;
        let signers = signed.expect(SET, "signerInfos")?;
        signed.end("what follows signerInfos")?;
        let mut signer = signers.only(SEQUENCE, "signerInfos")?.values();
        signer.expect(INTEGER, "signerInfo.version")?;
        // By which name or key id the signer goes: its key is what counts.
        signer.next("sid")?;
        algorithm(&mut signer, &[SHA_256], "digestAlgorithm")?;
        let attributes = signer.expect(CONTEXT_0, "signedAttrs")?;
        let message_digest = message_digest(attributes)?;
        algorithm(&mut signer, &[RSA, SHA_256_WITH_RSA], "signatureAlgorithm")?;
        let signature = signer.expect(OCTETS, "signature")?.contents;
        signer.optional(CONTEXT_1, "unsignedAttrs")?;
        signer.end("what follows signature")?;
        Ok(Self { content, attributes: as_signed(attributes)?, message_digest, signature })
    }
}

fn object<'a>(values: &mut Values<'a>, expected: &[&[u8]], name: Misplaced) -> Result<(), Misplaced> {
    let found = values.expect(OBJECT, name)?.contents;
    if expected.contains(&found) { Ok(()) } else { Err(name) }
}

/// An identifier; the parameters of all these algorithms are nothing.
fn algorithm(values: &mut Values<'_>, expected: &[&[u8]], name: Misplaced) -> Result<(), Misplaced> {
    object(&mut values.expect(SEQUENCE, name)?.values(), expected, name)
}

fn content(info: Value<'_>) -> Result<Option<Cow<'_, [u8]>>, Misplaced> {
    const NAME: Misplaced = "eContent";
    let mut values = info.values();
    object(&mut values, &[DATA], "eContentType")?;
    let Some(explicit) = values.optional(CONTEXT_0, NAME)? else {
        values.end(NAME)?;
        return Ok(None);
    };
    values.end(NAME)?;
    if let Ok(octets) = explicit.only(OCTETS, NAME) {
        return Ok(Some(Cow::Borrowed(octets.contents)));
    }
    let (mut pieces, mut whole) = (explicit.only(OCTETS_IN_PIECES, NAME)?.values(), Vec::new());
    while !pieces.is_empty() {
        whole.extend_from_slice(pieces.expect(OCTETS, NAME)?.contents);
    }
    Ok(Some(Cow::Owned(whole)))
}

/// The digest of the content, which the attributes have to be about.
fn message_digest(attributes: Value<'_>) -> Result<&[u8], Misplaced> {
    const NAME: Misplaced = "signedAttrs";
    let (mut digest, mut about_data) = (None, false);
    let mut values = attributes.values();
    while !values.is_empty() {
        let mut attribute = values.expect(SEQUENCE, NAME)?.values();
        let kind = attribute.expect(OBJECT, NAME)?.contents;
        let value = attribute.expect(SET, NAME)?;
        match kind {
            MESSAGE_DIGEST if digest.is_none() => digest = Some(value.only(OCTETS, "messageDigest")?.contents),
            MESSAGE_DIGEST => return Err("messageDigest"),
            CONTENT_TYPE => about_data = value.only(OBJECT, "contentType")?.contents == DATA,
            _ => {}
        }
    }
    if !about_data {
        return Err("contentType");
    }
    digest.ok_or("messageDigest")
}

/// They are signed as a SET, though they stand there under a tag of their own.
fn as_signed(attributes: Value<'_>) -> Result<Vec<u8>, Misplaced> {
    if !attributes.is_definite() {
        return Err("signedAttrs");
    }
    let mut signed = attributes.whole.to_vec();
    if let Some(tag) = signed.first_mut() {
        *tag = SET;
    }
    Ok(signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        let value = der(SET, &der(tag, value));
        der(SEQUENCE, &[der(OBJECT, kind), value].concat())
    }

    fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(contents.len()).unwrap()], contents].concat()
    }

    #[test]
    fn a_signature_is_of_one_digest() {
        let (about, one, two) = (
            attribute(CONTENT_TYPE, OBJECT, DATA),
            attribute(MESSAGE_DIGEST, OCTETS, b"1"),
            attribute(MESSAGE_DIGEST, OCTETS, b"2"),
        );
        let digest = |attributes: &[&[u8]]| {
            let set = der(CONTEXT_0, &attributes.concat());
            message_digest(Values::new(&set).next("set").unwrap()).map(<[u8]>::to_vec)
        };
        assert_eq!(digest(&[&about, &one]), Ok(b"1".to_vec()));
        // Which of them was compared would be for who wrote it to choose.
        assert_eq!(digest(&[&about, &one, &two]), Err("messageDigest"));
        assert_eq!(digest(&[&about]), Err("messageDigest"));
        assert_eq!(digest(&[&one]), Err("contentType"));
    }
}
