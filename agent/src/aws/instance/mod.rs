//! Whether AWS has signed what an instance says of itself: the PKCS #7 signature of its identity document (`rsa2048`), verified with
//! the certificates that AWS publishes for each region.
//!
//! The document has no nonce, and every process of an instance can read it. So it proves nothing about who shows it; it says where
//! an instance is of which somebody has proved in another way that it is theirs ([`super::verifier`]).
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/verify-iid.html>

mod ber;
mod certificates;
mod signed;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub use self::certificates::{CertificateError, InstanceCertificates};
use self::signed::SignedData;
use super::arn::Region;
use super::imds::{ImdsError, InstanceDocument};

/// Bytes of the longest document, and characters of the longest signature, which holds the document again. AWS's have 500 and 1500.
const MAX_DOCUMENT: usize = 8 * 1024;
const MAX_SIGNATURE: usize = 16 * 1024;

/// Why a document is not believed.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than any that AWS makes.
    #[error("longer than {MAX_DOCUMENT} bytes, or its signature than {MAX_SIGNATURE} characters")]
    Size,
    /// It does not say which instance it is about.
    #[error(transparent)]
    Document(#[from] ImdsError),
    /// No base64.
    #[error("its signature is no base64")]
    Encoding,
    /// Not the shape that AWS's signatures have.
    #[error("its signature is no PKCS #7 with one signer, SHA-256 and RSA: {0} is not as it should be")]
    Shape(&'static str),
    /// The signature is of something else.
    #[error("its signature is of another document")]
    OtherDocument,
    /// Nobody whom we know speaks for its region.
    #[error("there is no certificate of AWS for {0} that is valid now")]
    NoCertificate(Region),
    /// Somebody else has signed it.
    #[error("it is not signed with AWS's key for {0}")]
    Signature(Region),
}

impl DocumentError {
    /// Whether the plane has nothing to verify it with, which says nothing about the document.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::NoCertificate(_))
    }
}

impl InstanceCertificates {
    /// What a document says, if AWS has signed it. Both are as the metadata service has served them.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn verify(&self, document: &[u8], signature: &str, now: SystemTime) -> Result<InstanceDocument, DocumentError> {
        if document.len() > MAX_DOCUMENT || signature.len() > MAX_SIGNATURE {
            return Err(DocumentError::Size);
        }
        let parsed = InstanceDocument::parse(document)?;
        let keys: Vec<_> = self.of(&parsed.region, now).collect();
        if keys.is_empty() {
            return Err(DocumentError::NoCertificate(parsed.region));
        }
        let text: Vec<u8> = signature.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let bytes = STANDARD.decode(text).map_err(|_| DocumentError::Encoding)?;
        let signed = SignedData::parse(&bytes).map_err(DocumentError::Shape)?;
        // The signature is of the attributes, and these are of the content by its digest.
        let is_of_document = signed.content.as_ref().is_none_or(|content| **content == *document)
            && signed.message_digest == digest(&SHA256, document).as_ref();
        if !is_of_document {
            return Err(DocumentError::OtherDocument);
        }
        if keys.iter().any(|key| key.verify(&signed.attributes, signed.signature)) {
            Ok(parsed)
        } else {
            Err(DocumentError::Signature(parsed.region))
        }
    }
}
