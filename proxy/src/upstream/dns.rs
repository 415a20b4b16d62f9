//! Strict and logical DNS clusters: names become endpoints, again and again.
//!
//! Names are resolved by the system (`getaddrinfo` on tokio's blocking threads), so that `/etc/hosts`, search domains and
//! `nsswitch` count as they do for the application. Mirrors
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/service_discovery>.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::Cluster;
use crate::config::{
    ClusterDiscovery, ClusterLoadAssignment, DnsCluster, DnsFamily, Endpoint, EndpointAddress, LocalityEndpoints,
};

/// Longer than a resolver with one dead server takes, so that lookups do not pile up behind it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How soon a name without an answer is asked for again, where the refresh rate is slower.
const FAILURE_REFRESH: Duration = Duration::from_secs(5);
/// No faster than this, whatever the configuration says.
const MIN_REFRESH: Duration = Duration::from_millis(100);
/// Names of a cluster that are looked up at once.
const CONCURRENT_LOOKUPS: usize = 4;
/// Addresses of a name that are used.
const MAX_ADDRESSES: usize = 256;

/// Resolves the names of `cluster` and publishes its endpoints, until it is dropped. Returns when there is nothing to resolve:
/// for clusters of other kinds at once, for those with numeric addresses only after the first publication. A configuration that
/// changes the discovery starts this anew, to be in force at once; what ran before then ends at its next refresh.
///
/// A name that cannot be resolved keeps its last addresses.
///
/// # Cancel safety
/// May be dropped at any time; what was published stays.
pub async fn run(cluster: Arc<Cluster>) {
    let mut answers = Answers::default();
    let (mut failures, begun) = (0, cluster.config());
    loop {
        let config = cluster.config();
        if config.discovery != begun.discovery {
            return;
        }
        let (dns, logical) = match &config.discovery {
            ClusterDiscovery::StrictDns(dns) => (dns, false),
            ClusterDiscovery::LogicalDns(dns) => (dns, true),
            ClusterDiscovery::Static(_) | ClusterDiscovery::Eds(_) | ClusterDiscovery::OriginalDst => return,
        };
        let complete = answers.refresh(dns, async |name| lookup(name, dns.family).await).await;
        failures = if complete { 0 } else { failures + 1 };
        cluster.set_endpoints(&answers.assignment(&dns.endpoints, logical).into());
        if answers.by_name.is_empty() {
            return;
        }
        tokio::time::sleep(pause(dns, failures)).await;
    }
}

/// The last good answer for each name; empty for one that never had any.
#[derive(Default)]
struct Answers {
    by_name: HashMap<String, Vec<IpAddr>>,
}

impl Answers {
    /// Asks for every name once. Whether each has addresses now; names that are no longer wanted are forgotten.
    async fn refresh(&mut self, dns: &DnsCluster, lookup: impl AsyncFn(&str) -> io::Result<Vec<IpAddr>>) -> bool {
        let mut old = std::mem::take(&mut self.by_name);
        for endpoint in dns.endpoints.localities.iter().flat_map(|locality| &locality.endpoints) {
            if let EndpointAddress::Name(name, _) = &endpoint.address
                && name.parse::<IpAddr>().is_err()
                && !self.by_name.contains_key(name)
            {
                self.by_name.insert(name.clone(), old.remove(name).unwrap_or_default());
            }
        }
        let lookup = &lookup;
        stream::iter(&mut self.by_name)
            .for_each_concurrent(CONCURRENT_LOOKUPS, |(name, addresses)| async move {
                match lookup(name).await {
                    Ok(answer) if !answer.is_empty() => merge(addresses, answer),
                    Ok(_) => tracing::warn!(%name, "name has no address"),
                    Err(error) => tracing::warn!(%name, %error, "name was not resolved"),
                }
            })
            .await;
        self.by_name.values().all(|addresses| !addresses.is_empty())
    }

    /// The endpoints with addresses for names. A resolved one is called by its name unless it has a host name of its own.
    fn assignment(&self, endpoints: &ClusterLoadAssignment, logical: bool) -> ClusterLoadAssignment {
        let limit = if logical { 1 } else { MAX_ADDRESSES };
        let localities = endpoints.localities.iter().map(|locality| LocalityEndpoints {
            endpoints: locality.endpoints.iter().flat_map(|endpoint| self.resolved(endpoint, limit)).collect(),
            ..locality.clone()
        });
        ClusterLoadAssignment { localities: localities.collect(), policy: endpoints.policy.clone() }
    }

    fn resolved(&self, endpoint: &Endpoint, limit: usize) -> Vec<Endpoint> {
        let EndpointAddress::Name(name, port) = &endpoint.address else { return vec![endpoint.clone()] };
        let numeric = name.parse::<IpAddr>().ok();
        let addresses = numeric.as_slice().iter().chain(self.by_name.get(name).into_iter().flatten());
        let hostname = if endpoint.hostname.is_empty() { name } else { &endpoint.hostname };
        addresses
            .take(limit)
            .map(|ip| Endpoint {
                address: EndpointAddress::Socket(SocketAddr::new(*ip, *port)),
                hostname: hostname.clone(),
                ..endpoint.clone()
            })
            .collect()
    }
}

/// Takes an answer over, in the order known so far: servers that turn their answers around move no traffic, and a logical
/// cluster stays at its address as long as that is among them.
fn merge(addresses: &mut Vec<IpAddr>, mut answer: Vec<IpAddr>) {
    addresses.retain(|address| answer.contains(address));
    answer.retain(|address| !addresses.contains(address));
    addresses.append(&mut answer);
}

/// The addresses of a name.
async fn lookup(name: &str, family: DnsFamily) -> io::Result<Vec<IpAddr>> {
    let answer = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name, 0))).await??;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in answer.map(|address| address.ip()) {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    match family {
        DnsFamily::V4Preferred if addresses.iter().any(IpAddr::is_ipv4) => addresses.retain(IpAddr::is_ipv4),
        DnsFamily::V4Only => addresses.retain(IpAddr::is_ipv4),
        DnsFamily::V6Only => addresses.retain(IpAddr::is_ipv6),
        DnsFamily::V4Preferred | DnsFamily::All => {}
    }
    Ok(addresses)
}

/// Time to the next refresh, after so many that failed; up to a tenth longer so that tasks started together do not ask together.
fn pause(dns: &DnsCluster, failures: u32) -> Duration {
    let refresh = match (failures, dns.failure_refresh) {
        (0, _) => dns.refresh + dns.jitter.mul_f64(fastrand::f64()),
        (_, None) => dns.refresh.min(FAILURE_REFRESH),
        // Envoy's jittered exponential back-off.
        (failures, Some((base, max))) => {
            base.saturating_mul(1 << failures.min(16)).saturating_sub(base).min(max).mul_f64(fastrand::f64())
        }
    };
    refresh.max(MIN_REFRESH).mul_f64(1.0 + 0.1 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn dns(names: &[&str]) -> DnsCluster {
        let endpoints = names.iter().map(|name| Endpoint::new(EndpointAddress::Name((*name).to_owned(), 80))).collect();
        let locality = LocalityEndpoints { endpoints, ..LocalityEndpoints::default() };
        DnsCluster::new(Arc::new(ClusterLoadAssignment::of(vec![locality])), Duration::from_secs(60))
    }

    fn published(answers: &Answers, dns: &DnsCluster, logical: bool) -> Vec<String> {
        let config = config::Cluster::new("c", ClusterDiscovery::StrictDns(dns.clone()));
        let cluster = Cluster::new(Arc::new(config), &crate::tls::Secrets::new()).unwrap();
        cluster.set_endpoints(&answers.assignment(&dns.endpoints, logical).into());
        cluster.endpoints().iter().map(|endpoint| format!("{}={}", endpoint.hostname(), endpoint.host())).collect()
    }

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn every_address_of_every_name_is_an_endpoint_or_the_first_of_one() {
        let (dns, mut answers) = (dns(&["a", "b", "::1"]), Answers::default());
        let complete = answers
            .refresh(&dns, async |name| Ok(if name == "a" { ips(&["10.0.0.1", "10.0.0.2"]) } else { ips(&["10.0.0.3"]) }))
            .await;
        assert!(complete);
        assert_eq!(published(&answers, &dns, false), ["a=10.0.0.1:80", "a=10.0.0.2:80", "b=10.0.0.3:80", "::1=[::1]:80"]);
        assert_eq!(published(&answers, &dns, true)[0], "a=10.0.0.1:80");
        assert_eq!(published(&answers, &dns, true)[1], "b=10.0.0.3:80");
    }

    #[tokio::test]
    async fn a_failed_lookup_keeps_the_last_addresses() {
        let (dns, mut answers) = (dns(&["a"]), Answers::default());
        assert!(!answers.refresh(&dns, async |_| Err(io::ErrorKind::NotFound.into())).await);
        assert!(published(&answers, &dns, false).is_empty());
        assert!(answers.refresh(&dns, async |_| Ok(ips(&["10.0.0.1"]))).await);
        assert!(answers.refresh(&dns, async |_| Err(io::ErrorKind::NotFound.into())).await);
        assert!(answers.refresh(&dns, async |_| Ok(Vec::new())).await);
        assert_eq!(published(&answers, &dns, false), ["a=10.0.0.1:80"]);
    }

    #[tokio::test]
    async fn a_turned_answer_changes_nothing() {
        let (dns, mut answers) = (dns(&["a"]), Answers::default());
        answers.refresh(&dns, async |_| Ok(ips(&["10.0.0.1", "10.0.0.2"]))).await;
        answers.refresh(&dns, async |_| Ok(ips(&["10.0.0.2", "10.0.0.3", "10.0.0.1"]))).await;
        assert_eq!(published(&answers, &dns, true), ["a=10.0.0.1:80"]);
        answers.refresh(&dns, async |_| Ok(ips(&["10.0.0.3", "10.0.0.2"]))).await;
        assert_eq!(published(&answers, &dns, false), ["a=10.0.0.2:80", "a=10.0.0.3:80"]);
    }

    #[tokio::test]
    async fn numeric_names_are_published_once_without_a_lookup() {
        let config = config::Cluster::new("c", ClusterDiscovery::StrictDns(dns(&["192.0.2.7"])));
        let cluster = Arc::new(Cluster::new(Arc::new(config), &crate::tls::Secrets::new()).unwrap());
        tokio::time::timeout(Duration::from_secs(5), run(Arc::clone(&cluster))).await.expect("returns by itself");
        assert_eq!(&**cluster.endpoints().iter().next().unwrap().host(), "192.0.2.7:80");
    }

    #[tokio::test]
    async fn the_system_resolves_localhost() {
        assert!(lookup("localhost", DnsFamily::All).await.unwrap().iter().all(IpAddr::is_loopback));
        assert!(lookup("localhost", DnsFamily::V4Only).await.unwrap().iter().all(IpAddr::is_ipv4));
    }

    #[test]
    fn refreshes_are_spread_and_failures_are_retried_soon() {
        let every = |refresh| DnsCluster::new(Arc::default(), refresh);
        let mut dns = every(Duration::from_secs(60));
        for _ in 0..100 {
            let pause = pause(&dns, 0);
            assert!(pause >= Duration::from_secs(60) && pause <= Duration::from_secs(66));
        }
        assert!(pause(&dns, 1) <= FAILURE_REFRESH.mul_f64(1.1));
        assert!(pause(&every(Duration::ZERO), 0) >= MIN_REFRESH);
        dns.failure_refresh = Some((Duration::from_secs(1), Duration::from_secs(4)));
        let longest = |failures| (0..200).map(|_| pause(&dns, failures)).max().unwrap();
        assert!(longest(1) <= Duration::from_millis(1_100));
        assert!(longest(9) > Duration::from_secs(2) && longest(9) <= Duration::from_millis(4_400));
    }
}
