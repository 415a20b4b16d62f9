//! Istio's certificate service: who is asking, may they, sign.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prost_types::value::Kind;
use skiff_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use skiff_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use skiff_proxy::config::SpiffeId;
use time::OffsetDateTime;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::ca::{CertificateAuthority, IssueError, IssuedCertificate};
use super::token::TokenIssuer;

/// What the connection knows about the caller; an extension of every request.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Where from.
    pub(super) address: SocketAddr,
    /// The identity of a client certificate that our root signed and that is valid now.
    pub(super) certificate: Option<SpiffeId>,
    /// Streams that are held on this connection.
    held: Arc<AtomicUsize>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, certificate: Option<SpiffeId>) -> Self {
        Self { address, certificate, held: Arc::default() }
    }

    /// Counts a stream that is held on the connection, until dropped.
    pub(super) fn hold(&self) -> Held {
        self.held.fetch_add(1, Ordering::Relaxed);
        Held(self.held.clone())
    }

    /// Whether any stream is held on the connection.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }
}

/// A stream that is held on a connection.
#[derive(Debug)]
pub(super) struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The service behind one plane.
#[derive(Clone, Debug)]
pub(super) struct CertificateService {
    pub(super) ca: Arc<CertificateAuthority>,
    pub(super) tokens: Arc<TokenIssuer>,
    pub(super) cluster_id: Arc<str>,
}

/// Who is asking, and how that was proved.
struct Caller {
    id: SpiffeId,
    credential: &'static str,
}

/// A refusal: what the caller is told, and what the audit log is told.
struct Denied {
    status: Status,
    reason: String,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("unknown peer"))?;
        let caller = self.authenticate(&peer, request.metadata()).map_err(|denied| denied.audited(&peer, None))?;
        let issued = self.sign(request.get_ref(), &caller).map_err(|denied| denied.audited(&peer, Some(&caller)))?;
        tracing::info!(
            target: "audit", event = "certificate", decision = "issued", peer = %peer.address, id = %caller.id,
            credential = caller.credential, serial = issued.serial, not_after = %OffsetDateTime::from(issued.not_after)
        );
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.chain }))
    }
}

impl CertificateService {
    /// A client certificate counts before a token, as with istiod: it is how a workload renews whose token has ended.
    fn authenticate(&self, peer: &Peer, metadata: &MetadataMap) -> Result<Caller, Denied> {
        if let Some(id) = &peer.certificate {
            return Ok(Caller { id: id.clone(), credential: "certificate" });
        }
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        let cluster_id = text("clusterid").unwrap_or_default();
        if !cluster_id.is_empty() && cluster_id != &*self.cluster_id {
            return Err(Denied::unauthenticated(format!("unknown cluster id {cluster_id:?}")));
        }
        let header = text("authorization").ok_or_else(|| Denied::unauthenticated("neither token nor certificate"))?;
        let token = header.strip_prefix("Bearer ").ok_or_else(|| Denied::unauthenticated("no bearer token"))?;
        let id = self.tokens.verify(token).map_err(|error| Denied::unauthenticated(error.to_string()))?;
        Ok(Caller { id, credential: "token" })
    }

    fn sign(&self, request: &IstioCertificateRequest, caller: &Caller) -> Result<IssuedCertificate, Denied> {
        let impersonated = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
        if let Some(Kind::StringValue(impersonated)) = impersonated.and_then(|value| value.kind.as_ref())
            && !impersonated.is_empty()
        {
            return Err(Denied {
                status: Status::unauthenticated("request impersonation authentication failure"),
                reason: format!("impersonation of {impersonated:?}"),
            });
        }
        self.ca.issue(&request.csr, &caller.id, request.validity_duration).map_err(|error| {
            let text = error.to_string();
            let status = match error {
                IssueError::Internal(_) => Status::internal("CSR signing error (internal)"),
                _ => Status::invalid_argument(&text),
            };
            Denied { status, reason: text }
        })
    }
}

impl Denied {
    /// The caller learns nothing about the reason, as with istiod.
    fn unauthenticated(reason: impl Into<String>) -> Self {
        Self { status: Status::unauthenticated("request authenticate failure"), reason: reason.into() }
    }

    fn audited(self, peer: &Peer, caller: Option<&Caller>) -> Status {
        tracing::warn!(
            target: "audit", event = "certificate", decision = "denied", peer = %peer.address,
            id = caller.map(|caller| tracing::field::display(&caller.id)), credential = caller.map(|caller| caller.credential),
            reason = self.reason
        );
        self.status
    }
}
