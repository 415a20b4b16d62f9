//! Where local documents give something else than istiod on purpose. Each difference is put into istiod's configuration as it is
//! meant to be, field by field, so that everything else has to be equal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::{FilterChain, FilterChainMatch, HttpConnectionManager, Listener, NetworkFilter, Snapshot, TagValue};

/// Whether local documents can say what the scenario says at all.
pub(super) fn is_comparable(scenario: &str) -> bool {
    // A sidecar with iptables.
    scenario != "15-redirect-compare"
}

/// Which differences have been met: one that is not met any more is none.
#[derive(Default)]
pub(super) struct Principles {
    met: BTreeMap<&'static str, usize>,
}

impl Principles {
    fn met(&mut self, principle: &'static str) {
        *self.met.entry(principle).or_default() += 1;
    }

    pub(super) fn add_to_theirs(&mut self, scenario: &str, ours: &Snapshot, snapshot: &mut Snapshot) {
        self.bind_to_own_address(snapshot);
        if scenario == "10-external" {
            self.tell_tls_services_apart(ours, snapshot);
        }
        if scenario == "11-telemetry" {
            self.reach_the_collector(ours, snapshot);
        }
        for listener in snapshot.listeners.values_mut() {
            for manager in managers(Arc::make_mut(listener)) {
                self.limit_request_heads(manager);
                self.name_in_spans(manager);
            }
        }
    }

    pub(super) fn assert_all_met(&self) {
        let met: Vec<_> = self.met.keys().copied().collect();
        assert_eq!(
            met,
            [
                "TLS services by SNI",
                "collector beside the imports",
                "ingress on the own address",
                "own names in spans",
                "time for a request head",
            ]
        );
    }

    /// An ingress without `bind` never takes 0.0.0.0, where it would take the application's own port.
    fn bind_to_own_address(&mut self, snapshot: &mut Snapshot) {
        const OWN: &str = "127.0.0.21";
        for (name, mut listener) in std::mem::take(&mut snapshot.listeners) {
            let Some(port) = name.strip_prefix("0.0.0.0_") else {
                snapshot.listeners.insert(name, listener);
                continue;
            };
            self.met("ingress on the own address");
            let own = format!("{OWN}_{port}");
            let moved = Arc::make_mut(&mut listener);
            moved.name.clone_from(&own);
            moved.address.set_ip(OWN.parse().unwrap());
            for chain in chains(moved) {
                chain.name = chain.name.replace(&name, &own);
                if let NetworkFilter::Http(manager) = &mut chain.filter {
                    let manager = Arc::make_mut(manager);
                    manager.stat_prefix = manager.stat_prefix.replace(&name, &own);
                }
            }
            snapshot.listeners.insert(own, listener);
        }
    }

    /// Several services on one TLS egress listener: istiod serves the last of them alone.
    fn tell_tls_services_apart(&mut self, ours: &Snapshot, theirs: &mut Snapshot) {
        const LISTENER: &str = "127.0.0.2_443";
        let theirs = Arc::make_mut(theirs.listeners.get_mut(LISTENER).unwrap());
        let [only] = theirs.filter_chains.as_slice() else { panic!("{theirs:?}") };
        assert_eq!((only.matches.clone(), &theirs.default_filter_chain), (FilterChainMatch::default(), &None));
        let ours = &ours.listeners[LISTENER];
        let served = |chain: &FilterChain, host: &str| {
            let NetworkFilter::Tcp(proxy) = &chain.filter else { return false };
            chain.matches.server_names == [host] && proxy.stat_prefix == format!("outbound|443||{host}")
        };
        let same = |chain: &FilterChain| chain.filter == only.filter;
        assert!(ours.filter_chains.iter().any(same), "what istiod serves is served here too");
        let hosts = ["*.wild.example", "example.org"];
        assert!(ours.filter_chains.iter().zip(hosts).all(|(chain, host)| served(chain, host)), "{:?}", ours.filter_chains);
        theirs.filter_chains.clone_from(&ours.filter_chains);
        theirs.default_filter_chain.clone_from(&ours.default_filter_chain);
        theirs.inspect_tls = true;
        self.met("TLS services by SNI");
    }

    /// The collector of spans and logs can be reached whatever the Sidecar imports.
    fn reach_the_collector(&mut self, ours: &Snapshot, theirs: &mut Snapshot) {
        const COLLECTOR: &str = "outbound|4317||otel.bookinfo.svc.cluster.local";
        let cluster = theirs.clusters.insert(COLLECTOR.into(), ours.clusters[COLLECTOR].clone());
        let endpoints = theirs.endpoints.insert(COLLECTOR.into(), ours.endpoints[COLLECTOR].clone());
        assert!(cluster.is_none() && endpoints.is_none());
        self.met("collector beside the imports");
    }

    /// istiod takes the canonical names of spans from the labels of the WorkloadEntry alone, which has none of them.
    fn name_in_spans(&mut self, manager: &mut HttpConnectionManager) {
        let Some(tracing) = &mut manager.tracing else { return };
        for tag in &mut Arc::make_mut(tracing).custom_tags {
            let own = match tag.name.as_str() {
                "istio.canonical_service" => "ratings",
                "istio.canonical_revision" => "v1",
                _ => continue,
            };
            let own = TagValue::Literal(own.to_owned());
            assert!(std::mem::replace(&mut tag.value, own.clone()) != own);
            self.met("own names in spans");
        }
    }

    /// A caller that sends a head byte by byte is not waited for, for ever.
    fn limit_request_heads(&mut self, manager: &mut HttpConnectionManager) {
        assert_eq!(manager.request_headers_timeout.replace(Duration::from_secs(60)), None);
        self.met("time for a request head");
    }
}

fn chains(listener: &mut Listener) -> impl Iterator<Item = &mut FilterChain> {
    listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain)
}

fn managers(listener: &mut Listener) -> impl Iterator<Item = &mut HttpConnectionManager> {
    chains(listener).filter_map(|chain| match &mut chain.filter {
        NetworkFilter::Http(manager) => Some(Arc::make_mut(manager)),
        NetworkFilter::Tcp(_) => None,
    })
}
