//! A compiled listener and how a connection finds its filter chain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{self, FilterChainMatch, SourceType, TransportProtocol};
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
    /// Limit of open connections.
    pub connection_limit: Option<config::ConnectionLimit>,
    /// The exchange of peer metadata.
    pub peer_exchange: Option<Arc<config::PeerExchange>>,
    /// Connections that count against it.
    pub open: Arc<AtomicU64>,
    /// Network RBAC.
    pub rbac: Vec<Engine>,
    /// What serves the connection.
    pub filter: Filter,
}

/// A connection's place in the limit of its chain, given back when dropped.
pub struct Place(Arc<AtomicU64>);

impl FilterChain {
    /// A place for one more connection; `None` when all are taken.
    pub fn place(&self, limit: config::ConnectionLimit) -> Option<Place> {
        let more = |open: u64| (open < limit.max).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Place(self.open.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
    let criteria: [fn(&FilterChainMatch, &Seen<'_>) -> Rank; 9] =
        [port, destination, server_name, transport, protocol, direct_source, source_type, source, source_port];
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

fn direct_source(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    prefixes(&chain.direct_source_prefix_ranges, seen.remote)
}

fn source_type(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    let near = seen.remote.ip().is_loopback() || seen.remote.ip() == seen.local.ip();
    match chain.source_type {
        SourceType::Any => Some(0),
        SourceType::SameIpOrLoopback => near.then_some(1),
        SourceType::External => (!near).then_some(1),
    }
}

fn source(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    prefixes(&chain.source_prefix_ranges, seen.remote)
}

fn source_port(chain: &FilterChainMatch, seen: &Seen<'_>) -> Rank {
    asks(!chain.source_ports.is_empty(), chain.source_ports.contains(&seen.remote.port()))
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
    if chain.application_protocols.is_empty() {
        return Some(0);
    }
    // The caller's order counts: its first protocol that any chain asks for decides.
    let wanted = |offered: &Vec<u8>| chain.application_protocols.iter().any(|wanted| wanted.as_bytes() == offered);
    let place = seen.application_protocols.iter().position(wanted)?;
    Some(u32::MAX - u32::try_from(place).unwrap_or(u32::MAX - 1))
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

    #[test]
    fn the_callers_first_protocol_decides() {
        let with =
            |protocol: &str| FilterChainMatch { application_protocols: vec![protocol.into()], ..FilterChainMatch::default() };
        let chains = [with("http/1.1"), with("h2"), FilterChainMatch::default()];
        let chosen = |offered: &[&str]| {
            let offered: Vec<_> = offered.iter().map(|p| p.as_bytes().to_vec()).collect();
            chosen(&chains, &seen(TransportProtocol::Tls, None, &offered))
        };
        assert_eq!(chosen(&["h2", "http/1.1"]), Some(1));
        assert_eq!(chosen(&["x", "http/1.1", "h2"]), Some(0));
        assert_eq!(chosen(&["x"]), Some(2));
        assert_eq!(chosen(&[]), Some(2));
    }

    #[test]
    fn where_a_connection_comes_from_decides_last() {
        let chains = [
            FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..FilterChainMatch::default() },
            FilterChainMatch { source_type: SourceType::External, source_ports: vec![40000], ..FilterChainMatch::default() },
            FilterChainMatch {
                direct_source_prefix_ranges: vec!["10.0.0.0/24".parse().unwrap()],
                source_prefix_ranges: vec!["10.0.0.9/32".parse().unwrap()],
                ..FilterChainMatch::default()
            },
            FilterChainMatch { source_type: SourceType::External, ..FilterChainMatch::default() },
        ];
        let chosen = |remote: &str| {
            let seen = Seen { remote: remote.parse().unwrap(), ..seen(TransportProtocol::RawBuffer, None, &[]) };
            chosen(&chains, &seen)
        };
        assert_eq!(chosen("10.0.0.9:1"), Some(2));
        // The range of the socket's own address won, and what it wants besides does not fit: no other chain is asked.
        assert_eq!(chosen("10.0.0.8:1"), None);
        assert_eq!(chosen("127.0.0.1:40000"), Some(0));
        assert_eq!(chosen("127.0.0.21:40000"), Some(0));
        assert_eq!(chosen("10.9.0.1:40000"), Some(1));
        assert_eq!(chosen("10.9.0.1:40001"), Some(3));
    }
}
