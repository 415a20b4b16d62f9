//! Certificates in files, as istio-agent keeps them: `OUTPUT_CERTS` writes such a folder, `PROV_CERT` reads one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use pem::Pem;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::{CertificateError, WorkloadCertificate};

const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "root-cert.pem";

/// Writes `key.pem`, `cert-chain.pem` and `root-cert.pem`, each for its owner alone and each replaced at once.
///
/// # Errors
/// When the folder cannot be made or written.
pub fn write_certificates(folder: &Path, certificate: &WorkloadCertificate) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let roots = certificates(&certificate.roots);
    replace(&folder.join(ROOTS), &roots)?;
    // The chain file holds the roots as well, as istio-agent's does.
    replace(&folder.join(CHAIN), &format!("{}{roots}", certificates(&certificate.chain)))?;
    let label = match &*certificate.key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    replace(&folder.join(KEY), &pem::encode(&Pem::new(label, certificate.key.secret_der())))
}

fn certificates(all: &[CertificateDer<'_>]) -> String {
    all.iter().map(|certificate| pem::encode(&Pem::new("CERTIFICATE", certificate.as_ref()))).collect()
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("pem.new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(new, path)
}

/// Reads `key.pem`, `cert-chain.pem` and `root-cert.pem`.
///
/// # Errors
/// With the file and what is wrong with it.
pub fn read_certificates(folder: &Path) -> Result<WorkloadCertificate, String> {
    let read = |name: &str| fs::read(folder.join(name)).map_err(|error| format!("{}: {error}", folder.join(name).display()));
    let in_file = |name: &str, error: &dyn std::fmt::Display| format!("{}: {error}", folder.join(name).display());
    let all = |name: &str| {
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(name)?).collect();
        parsed.map_err(|error| in_file(name, &error))
    };
    let key = PrivateKeyDer::from_pem_slice(&read(KEY)?).map_err(|error| in_file(KEY, &error))?;
    let certificate = WorkloadCertificate::from_parts(all(CHAIN)?, Arc::new(key), all(ROOTS)?);
    certificate.map_err(|error: CertificateError| in_file(CHAIN, &error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn issued() -> WorkloadCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/a/sa/b".try_into().unwrap())];
        let leaf = params.self_signed(&key).unwrap();
        let root = rcgen::generate_simple_self_signed(["root.example".to_owned()]).unwrap().cert;
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        WorkloadCertificate::from_parts(vec![leaf.der().clone()], Arc::new(private), vec![root.der().clone()]).unwrap()
    }

    #[test]
    fn what_is_written_can_be_read_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certs");
        let certificate = issued();
        write_certificates(&path, &certificate).unwrap();
        let again = read_certificates(&path).unwrap();
        assert_eq!((&again.chain, &again.roots, &again.id), (&certificate.chain, &certificate.roots, &certificate.id));
        assert_eq!(again.key.secret_der(), certificate.key.secret_der());
        for file in fs::read_dir(&path).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_certificates(folder.path()).unwrap_err();
        assert!(error.contains("key.pem"), "{error}");
    }
}
