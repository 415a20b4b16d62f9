//! Who calls, and Istio's certificate service.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::ServerConnection;
use skiff_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use skiff_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use x509_parser::extensions::GeneralName;

use super::State;
use crate::tls::Authority;

/// The identity of a client certificate; an extension of every request.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer(Option<String>);

impl Peer {
    /// The authority has been checked by TLS.
    pub(super) fn of(connection: &ServerConnection) -> Self {
        let leaf = connection.peer_certificates().and_then(|chain| chain.first());
        Self(leaf.and_then(|leaf| {
            let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
            let names = certificate.subject_alternative_name().ok()??;
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
        }))
    }
}

/// What is believed, and what was issued.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    revoked: Mutex<BTreeSet<String>>,
    /// The last one that was shown, by whomever.
    shown: Mutex<Option<String>>,
    issued: AtomicUsize,
}

impl Certificates {
    pub(super) fn revoke(&self, token: &str) {
        self.revoked.lock().unwrap().insert(token.trim().to_owned());
    }

    pub(super) fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }

    pub(super) fn shown(&self) -> Option<String> {
        self.shown.lock().unwrap().clone()
    }

    /// As istiod has it: a certificate counts, whatever the token says.
    pub(super) fn authenticate(&self, peer: Option<&Peer>, metadata: &MetadataMap) -> Option<String> {
        let token = metadata.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        *self.shown.lock().unwrap() = token.map(ToOwned::to_owned);
        if let Some(Peer(Some(id))) = peer {
            return Some(id.clone());
        }
        let token = token?;
        (!self.revoked.lock().unwrap().contains(token)).then(|| identity(token)).flatten()
    }
}

/// Of the service account that the token is for.
fn identity(token: &str) -> Option<String> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let mut account = claims["sub"].as_str()?.strip_prefix("system:serviceaccount:")?.split(':');
    Some(format!("spiffe://cluster.local/ns/{}/sa/{}", account.next()?, account.next()?))
}

pub(super) struct Service {
    pub(super) state: Arc<State>,
    pub(super) authority: Arc<Authority>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let certificates = &self.state.certificates;
        let Some(id) = certificates.authenticate(request.extensions().get(), request.metadata()) else {
            return Err(Status::unauthenticated("request authenticate failure"));
        };
        let asked = request.get_ref();
        let lifetime = Duration::from_secs(asked.validity_duration.try_into().unwrap_or(0));
        let cert_chain = self.authority.sign_request(&asked.csr, &id, lifetime);
        certificates.issued.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
