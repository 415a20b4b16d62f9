//! The certificates that AWS publishes for the signatures of identity documents. They come from whoever runs the plane: each is a
//! root of trust, and we have none of them at first hand.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/regions-certs.html>

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::aws::arn::Region;
use crate::identity::system_time;

/// Regions that there may be, and certificates of one: the old and the new one.
const MAX_REGIONS: usize = 256;
const MAX_OF_REGION: usize = 8;
const MAX_FILE_BYTES: u64 = 64 * 1024;
const EXTENSION: &str = "pem";

/// Whom to believe, by region. `Debug` shows the regions.
#[derive(Clone)]
pub struct InstanceCertificates(HashMap<String, Vec<Key>>);

/// The key of a certificate, for as long as that is valid.
#[derive(Clone)]
pub(super) struct Key {
    rsa: Vec<u8>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What it holds is not what it should be.
    #[error("{}: {reason}", path.display())]
    Content {
        /// File or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl InstanceCertificates {
    /// Reads a folder of `<region>.pem`, each with the RSA-2048 certificates of one region. Other files are left alone.
    ///
    /// # Errors
    /// When there are none, or one cannot be used.
    pub fn read(folder: &Path) -> Result<Self, CertificateError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| CertificateError::Io { path, source }
        };
        let wrong = |path: &Path, reason: String| CertificateError::Content { path: path.to_owned(), reason };
        let mut regions = HashMap::new();
        for entry in fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let region: Region = name.parse().map_err(|error| wrong(&path, format!("file name: {error}")))?;
            if fs::metadata(&path).map_err(io(&path))?.len() > MAX_FILE_BYTES {
                return Err(wrong(&path, format!("longer than {MAX_FILE_BYTES} bytes")));
            }
            let keys = keys(&fs::read(&path).map_err(io(&path))?).map_err(|reason| wrong(&path, reason))?;
            regions.insert(region.name().to_owned(), keys);
            if regions.len() > MAX_REGIONS {
                return Err(wrong(folder, format!("more than {MAX_REGIONS} regions")));
            }
        }
        if regions.is_empty() {
            return Err(wrong(folder, format!("expected <region>.{EXTENSION} with AWS's RSA-2048 certificate of the region")));
        }
        Ok(Self(regions))
    }

    /// The keys that speak for a region now.
    pub(super) fn of(&self, region: &Region, now: SystemTime) -> impl Iterator<Item = &Key> {
        let keys = self.0.get(region.name()).map_or(&[][..], Vec::as_slice);
        keys.iter().filter(move |key| (key.not_before..=key.not_after).contains(&now))
    }
}

impl fmt::Debug for InstanceCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Key {
    /// Whether it has signed this: PKCS #1 v1.5 with SHA-256.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.rsa).verify(message, signature).is_ok()
    }
}

fn keys(pem: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let read = certificate.map_err(|error| error.to_string()).and_then(|certificate| key(&certificate));
        keys.push(read.map_err(|reason| format!("certificate {}: {reason}", index + 1))?);
    }
    match keys.len() {
        1..=MAX_OF_REGION => Ok(keys),
        count => Err(format!("{count} certificates, expected 1 to {MAX_OF_REGION}")),
    }
}

fn key(certificate: &[u8]) -> Result<Key, String> {
    let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err("something follows it".to_owned());
    }
    // AWS publishes others beside it, of DSA and RSA-1024, for its other signatures.
    let rsa = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(rsa)) if rsa.key_size() >= 2048 => certificate.public_key().subject_public_key.data.to_vec(),
        _ => return Err("expected the RSA-2048 certificate of the region, not the one for `pkcs7` or `signature`".to_owned()),
    };
    let validity = certificate.validity();
    Ok(Key { rsa, not_before: system_time(validity.not_before), not_after: system_time(validity.not_after) })
}
