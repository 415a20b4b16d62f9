//! The client of Istio's certificate service.

use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use skiff_proto::istio::v1::auth::IstioCertificateRequest;
use skiff_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use tokio::time::timeout;
use tonic::{Code, Request, Status};

use super::certificate::{CertificateError, WorkloadCertificate};
use super::connection::{ConnectError, ControlPlaneConnector};
use super::key::{KeyError, WorkloadKey};
use super::token::{Token, TokenSource, TokenSourceError, authenticated};
use skiff_proxy::config::SpiffeId;

/// A chain is a few KiB; a trust bundle of a large federation some dozens.
const MAX_RESPONSE_BYTES: usize = 512 * 1024;

/// How much of a server's message we repeat.
const MAX_MESSAGE_CHARS: usize = 300;

/// Has certificates signed by istiod or a plane that speaks its protocol. Every request is a connection of its own: there
/// are two a day.
#[derive(Clone, Debug)]
pub struct CaClient {
    /// Where to.
    pub connector: ControlPlaneConnector,
    /// Who we are, in the first place.
    pub token: TokenSource,
    /// Sent as `clusterid`; istiod refuses one it does not know, and takes an empty one.
    pub cluster_id: String,
    /// How long a call may take, without the connect.
    pub request_timeout: Duration,
}

/// Why there is no new certificate. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No token and no valid certificate to ask with.
    #[error(transparent)]
    Token(#[from] TokenSourceError),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The call took too long.
    #[error("the certificate authority did not answer within {0:?}")]
    Timeout(Duration),
    /// The authority does not believe the token.
    #[error(
        "the certificate authority does not accept our credentials: {0}; the token must be fresh, for audience istio-ca, and the cluster id known to it"
    )]
    Unauthenticated(String),
    /// The authority knows us but says no.
    #[error("the certificate authority refuses this workload: {0}; check its policies for our service account")]
    PermissionDenied(String),
    /// It does not like the request.
    #[error("the certificate authority rejects the request: {0}; check the requested lifetime against its maximum")]
    InvalidArgument(String),
    /// There is no certificate service at this address.
    #[error("no certificate service at this address: {0}; istiod has it on port 15012 only, not on 15010")]
    Unimplemented(String),
    /// It is there but cannot serve.
    #[error("the certificate authority is not available: {0}; we keep trying")]
    Unavailable(String),
    /// Any other answer.
    #[error("the certificate authority answered {code:?}: {message}")]
    Other {
        /// gRPC status.
        code: Code,
        /// Its message.
        message: String,
    },
    /// What it issued cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl CaClient {
    /// Makes a key, has it signed for `id` and verifies the result.
    ///
    /// `current` is shown as client certificate while it is valid: istiod renews by it when the token has ended. An expired
    /// one would fail the handshake and lock us out, so it is left away.
    ///
    /// # Errors
    /// See [`CaError`]; every one is worth another try, as tokens, policies and clocks get repaired.
    pub async fn request_certificate(
        &self,
        id: &SpiffeId,
        lifetime: Duration,
        current: Option<&WorkloadCertificate>,
    ) -> Result<WorkloadCertificate, CaError> {
        let clock = &self.connector.clock;
        let current = current.filter(|certificate| certificate.is_valid_at(clock.now()));
        let token = match self.token.current().await {
            Ok(token) => Some(token),
            Err(error) if current.is_some() => {
                tracing::warn!(%error, "renewing with the current certificate alone");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let key = WorkloadKey::generate()?;
        let request = self.request(key.signing_request(id)?, lifetime, token.as_ref());

        let channel = self.connector.connect(current).await?;
        let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let response = timeout(self.request_timeout, client.create_certificate(request))
            .await
            .map_err(|_| CaError::Timeout(self.request_timeout))?
            .map_err(|status| refusal(&status))?;
        Ok(WorkloadCertificate::verify(&response.into_inner().cert_chain, &key, id, clock.now())?)
    }

    fn request(&self, csr: String, lifetime: Duration, token: Option<&Token>) -> Request<IstioCertificateRequest> {
        let cert_signer = Value { kind: Some(Kind::StringValue(String::new())) };
        let request = IstioCertificateRequest {
            csr,
            metadata: Some(Struct { fields: [("CertSigner".to_owned(), cert_signer)].into() }),
            validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
        };
        authenticated(request, token, &self.cluster_id)
    }
}

fn refusal(status: &Status) -> CaError {
    let message = printable(status.message());
    match status.code() {
        Code::Unauthenticated => CaError::Unauthenticated(message),
        Code::PermissionDenied => CaError::PermissionDenied(message),
        Code::InvalidArgument => CaError::InvalidArgument(message),
        Code::Unimplemented => CaError::Unimplemented(message),
        Code::Unavailable | Code::ResourceExhausted => CaError::Unavailable(message),
        code => CaError::Other { code, message },
    }
}

/// What a server said, safe for a log line.
fn printable(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
