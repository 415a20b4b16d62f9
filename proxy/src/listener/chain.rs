//! A compiled listener and how a connection finds its filter chain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, FilterChainMatch, TransportProtocol};
use crate::drain::Drain;
use crate::http::manager::ConnectionManager;
use crate::rbac::Engine;
use crate::tcp::TcpProxy;
use crate::telemetry::access_log::AccessLogs;
use crate::telemetry::metrics::ListenerMetrics;
use crate::tls::ServerContext;

/// What a [`config::Listener`] is compiled into. Published whole; connections hold the one they were accepted under.
pub struct ListenerRuntime {
    /// As it was configured.
    pub config: Arc<config::Listener>,
    /// In the order of the configuration.
    pub chains: Vec<Arc<FilterChain>>,
    /// For what no chain matches.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Logs of connections that never reach a chain.
    pub access_log: AccessLogs,
    /// Handles of the listener's metrics.
    pub metrics: ListenerMetrics,
    /// Begins when this version is replaced.
    pub drain: Arc<Drain>,
}

/// A compiled filter chain.
pub struct FilterChain {
    /// Its name.
    pub name: String,
    /// When it applies.
    pub matches: FilterChainMatch,
    /// TLS termination.
    pub tls: Option<ServerContext>,
    /// Deadline of the handshake.
    pub handshake_timeout: Duration,
    /// Network RBAC.
    pub rbac: Vec<Engine>,
    /// What serves the connection.
    pub filter: Filter,
}

/// The terminal filter.
pub enum Filter {
    /// HTTP.
    Http(Arc<ConnectionManager>),
    /// Bytes.
    Tcp(Arc<TcpProxy>),
}

/// What is known of a connection when its chain is chosen.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The address that it came to.
    pub local: SocketAddr,
    /// The address that it came from.
    pub remote: SocketAddr,
    /// TLS or plaintext.
    pub transport: TransportProtocol,
    /// SNI.
    pub server_name: Option<&'a str>,
    /// ALPN of the `ClientHello`, or what was found in plaintext.
    pub application_protocols: &'a [Vec<u8>],
}

impl ListenerRuntime {
    /// The chain for a connection, by Envoy's order of criteria: at each one the most specific matches win and the others
    /// are out for good, even when a later criterion rules the winners out.
    pub fn find_chain(&self, seen: &Seen<'_>) -> Option<&Arc<FilterChain>> {
        let matches: Vec<&FilterChainMatch> = self.chains.iter().map(|chain| &chain.matches).collect();
        find(&matches, seen).map(|index| &self.chains[index]).or(self.default_chain.as_ref())
    }
}

/// How well a chain fits one criterion: `None` not at all, `Some(0)` because it does not ask.
type Rank = Option<u32>;

fn find(chains: &[&FilterChainMatch], seen: &Seen<'_>) -> Option<usize> {
    let criteria: [fn(&FilterChainMatch, &Seen<'_>) -> Rank; 6] = [port, destination, server_name, transport, protocol, source];
    let mut left: Vec<usize> = (0..chains.len()).collect();
    for criterion in criteria {
        let best = left.iter().filter_map(|i| criterion(chains[*i], seen)).max()?;
        left.retain(|i| criterion(chains[*i], seen) == Some(best));
    }
    left.first().copied()
}

fn asks(asked: bool, fits: bool) -> Rank {
    if asked { fits.then_some(1) } else { Some(0) }
}

fn port(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    asks(chain.destination_port.is_some(), chain.destination_port == Some(seen.local.port()))
}

fn prefixes(ranges: &[ipnet::IpNet], address: SocketAddr) -> Rank {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|net| net.contains(&address.ip())).map(|net| u32::from(net.prefix_len()) + 1).max()
}

fn destination(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    prefixes(&chain.prefix_ranges, seen.local)
}

fn source(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    prefixes(&chain.source_prefix_ranges, seen.remote)
}

fn server_name(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    if chain.server_names.is_empty() {
        return Some(0);
    }
    let name = seen.server_name?.to_ascii_lowercase();
    let rank = |pattern: &String| match pattern.strip_prefix('*') {
        // `*.example.org`: the longer the suffix, the better; exact names beat every wildcard.
        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len() as u32),
        None => (name == *pattern).then_some(u32::MAX),
    };
    chain.server_names.iter().filter_map(rank).max()
}

fn transport(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    asks(chain.transport_protocol.is_some(), chain.transport_protocol == Some(seen.transport))
}

fn protocol(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    let offered = |wanted: &String| seen.application_protocols.iter().any(|p| p == wanted.as_bytes());
    asks(!chain.application_protocols.is_empty(), chain.application_protocols.iter().any(offered))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(transport: TransportProtocol, server_name: Option<&'a str>, application_protocols: &'a [Vec<u8>]) -> Seen<'a> {
        let local = "127.0.0.21:9080".parse().unwrap();
        Seen { local, remote: "10.0.0.9:40000".parse().unwrap(), transport, server_name, application_protocols }
    }

    fn istio_permissive() -> Vec<FilterChainMatch> {
        let base = FilterChainMatch { destination_port: Some(9080), ..FilterChainMatch::default() };
        vec![
            FilterChainMatch {
                transport_protocol: Some(TransportProtocol::Tls),
                application_protocols: vec!["istio".into(), "istio-http/1.1".into()],
                ..base.clone()
            },
            FilterChainMatch { transport_protocol: Some(TransportProtocol::RawBuffer), ..base },
        ]
    }

    fn chosen(chains: &[FilterChainMatch], seen: &Seen<'_>) -> Option<usize> {
        find(&chains.iter().collect::<Vec<_>>(), seen)
    }

    #[test]
    fn permissive_takes_mesh_tls_and_plaintext_but_no_other_tls() {
        let chains = istio_permissive();
        assert_eq!(chosen(&chains, &seen(TransportProtocol::Tls, None, &[b"h2".to_vec(), b"istio".to_vec()])), Some(0));
        assert_eq!(chosen(&chains, &seen(TransportProtocol::RawBuffer, None, &[])), Some(1));
        assert_eq!(chosen(&chains, &seen(TransportProtocol::Tls, None, &[b"h2".to_vec()])), None);
    }

    #[test]
    fn the_most_specific_server_name_wins() {
        let with = |names: &[&str]| FilterChainMatch {
            server_names: names.iter().map(|n| (*n).to_owned()).collect(),
            ..FilterChainMatch::default()
        };
        let chains = [with(&["*.example.org"]), with(&[]), with(&["a.example.org"]), with(&["*.b.example.org"])];
        let name = |n| chosen(&chains, &seen(TransportProtocol::Tls, n, &[]));
        assert_eq!(name(Some("A.example.org")), Some(2));
        assert_eq!(name(Some("x.b.example.org")), Some(3));
        assert_eq!(name(Some("c.example.org")), Some(0));
        assert_eq!(name(Some("example.org")), Some(1));
        assert_eq!(name(None), Some(1));
    }

    #[test]
    fn a_criterion_that_was_decided_is_not_reopened() {
        let chains = [
            FilterChainMatch {
                server_names: vec!["a.example".into()],
                transport_protocol: Some(TransportProtocol::RawBuffer),
                ..FilterChainMatch::default()
            },
            FilterChainMatch { transport_protocol: Some(TransportProtocol::Tls), ..FilterChainMatch::default() },
        ];
        assert_eq!(chosen(&chains, &seen(TransportProtocol::Tls, Some("a.example"), &[])), None);
        assert_eq!(chosen(&chains, &seen(TransportProtocol::Tls, Some("b.example"), &[])), Some(1));
    }
}
