//! What a plane serves, where, and what its callers may take up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use skiff_proxy::config::TrustDomain;

use crate::identity::Clock;

/// What a plane serves, and to whom.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where else.
    pub also_listen: Vec<SocketAddr>,
    /// How connections are protected.
    pub transport: Transport,
    /// The folder of packages that are served under `/install/`.
    pub packages: Option<PathBuf>,
    /// The folder of its keys.
    pub state: PathBuf,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Its id: issuer of its tokens.
    pub id: String,
    /// The cluster id that clients may send besides none.
    pub cluster_id: String,
    /// Further DNS names and IP addresses of its server certificate, besides `istiod.istio-system.svc`, `localhost` and the
    /// loopback addresses.
    pub server_names: Vec<String>,
    /// Lifetime of workload tokens.
    pub token_lifetime: Duration,
    /// Lifetime of certificates when the client asks for none.
    pub default_certificate_lifetime: Duration,
    /// Longest lifetime of certificates.
    pub max_certificate_lifetime: Duration,
    /// What clients may take up.
    pub limits: Limits,
    /// Judges tokens and certificates.
    pub clock: Clock,
}

impl PlaneConfig {
    /// istiod's defaults: certificates for 24 hours, at most 90 days; tokens for an hour.
    pub fn new(listen: SocketAddr, state: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            listen,
            also_listen: Vec::new(),
            transport: Transport::Own,
            packages: None,
            state: state.into(),
            id: format!("skiff-plane.{trust_domain}"),
            trust_domain,
            cluster_id: "Kubernetes".to_owned(),
            server_names: Vec::new(),
            token_lifetime: hour,
            default_certificate_lifetime: 24 * hour,
            max_certificate_lifetime: 90 * 24 * hour,
            limits: Limits::default(),
            clock: Clock::system(),
        }
    }
}

/// How connections to a plane are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS with a certificate of the plane's own authority.
    Own,
    /// TLS with this certificate; who asks for istiod's name gets that of the plane's own authority, if it has one.
    Files {
        /// PEM chain.
        certificate: PathBuf,
        /// PEM key.
        key: PathBuf,
    },
    /// None: something before the plane terminates TLS.
    Plaintext,
}

/// What clients may take up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; further ones are closed at once.
    pub max_connections: usize,
    /// Calls at the same time on one connection.
    pub max_concurrent_streams: u32,
    /// Bytes of a request message.
    pub max_message_bytes: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for a call, with the receipt of its message.
    pub request_timeout: Duration,
    /// Age at which a connection is asked to go (GOAWAY), so that none stays for ever.
    pub max_connection_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_concurrent_streams: 32,
            max_message_bytes: 64 * 1024,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(30 * 60),
        }
    }
}
