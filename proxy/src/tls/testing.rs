//! Certificates made for tests.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use crate::config::Secret;

/// A signer.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: Arc<PrivateKeyDer<'static>>,
}

impl Ca {
    pub(crate) fn new(organisation: &str) -> Self {
        Self(CertifiedIssuer::self_signed(authority(organisation), KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn trust(&self) -> Secret {
        Secret::Trust { roots: vec![self.root()] }
    }

    /// A workload certificate like Istio's.
    pub(crate) fn workload(&self, spiffe: &str) -> Leaf {
        self.issue(vec![uri(spiffe)], |_| {})
    }

    pub(crate) fn issue(&self, sans: Vec<SanType>, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(1);
        change(&mut params);
        self.sign(&params, &KeyPair::generate().unwrap())
    }

    /// A list of revoked certificates in PEM that ends in so many hours.
    pub(crate) fn revokes(&self, serials: &[u64], hours: i64) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - time::Duration::hours(2),
            next_update: now + time::Duration::hours(hours),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// An authority that this one vouches for; its certificate has this serial number.
    pub(crate) fn intermediate(&self, organisation: &str, serial: u64) -> Self {
        let mut params = authority(organisation);
        params.serial_number = Some(serial.into());
        Self(CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    /// A workload certificate with pilot-agent's default key type.
    pub(crate) fn rsa_workload(&self, spiffe: &str) -> Leaf {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(spiffe)];
        self.sign(&params, &KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap())
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> Leaf {
        let certificate = params.signed_by(key, &self.0).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Leaf { certificate, key: Arc::new(key) }
    }
}

impl Leaf {
    pub(crate) fn secret(&self) -> Secret {
        Secret::Certificate { chain: vec![self.certificate.clone()], key: Arc::clone(&self.key) }
    }
}

fn authority(organisation: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}
