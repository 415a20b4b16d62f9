//! The live clusters by name. One is made when something asks for it: a mesh has more clusters than a sidecar uses.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Cluster, may_sleep};
use crate::ClusterStatus;
use crate::config::{self, ClusterDiscovery, ClusterLoadAssignment, Resource, Snapshot};
use crate::tls::{Secrets, TlsError};

/// What somebody has to do for a cluster as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Resolve its names: [`super::dns::run`].
    Resolve,
    /// Check the health of its endpoints: [`super::health::run`].
    CheckHealth,
}

/// Who does it.
type Attend = Box<dyn Fn(Task, Arc<Cluster>) + Send + Sync>;

/// The clusters of the configuration in force. Shared by publication and workers.
pub struct Clusters {
    secrets: Arc<Secrets>,
    attend: Attend,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    snapshot: Arc<Snapshot>,
    live: HashMap<Arc<str>, Arc<Cluster>>,
}

/// What became of a publication.
#[derive(Debug, Default)]
pub struct Published {
    /// Some name leads to another live cluster than before, to one for the first time, or to none any more.
    pub changed: bool,
    /// Clusters that keep their last good version, or cannot be used at all, and why.
    pub rejected: Vec<(Arc<str>, TlsError)>,
}

impl Clusters {
    /// None yet. `attend` is called at publications only.
    pub fn new(secrets: Arc<Secrets>, attend: impl Fn(Task, Arc<Cluster>) + Send + Sync + 'static) -> Self {
        Self { secrets, attend: Box::new(attend), state: Mutex::default() }
    }

    /// The live cluster of a name, made now if nobody has asked for it before; `None` when the configuration has none that could
    /// be made.
    pub fn get(&self, name: &str) -> Option<Arc<Cluster>> {
        let mut state = self.state();
        if let Some(cluster) = state.live.get(name) {
            return Some(Arc::clone(cluster));
        }
        let config = state.snapshot.clusters.get(name)?.get();
        // Those that may not wait were made at their publication, or it was told what was wrong with them.
        if may_wait(&config) { self.make(&mut state, config).ok() } else { None }
    }

    /// Takes a configuration over. Live clusters learn what is new to them; those that left it retire; those that have to be
    /// there before the first request are made.
    pub fn publish(&self, snapshot: &Arc<Snapshot>) -> Published {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.snapshot, Arc::clone(snapshot));
        let mut published = Published { changed: !before.clusters.keys().eq(snapshot.clusters.keys()), ..Published::default() };
        state.live.retain(|name, cluster| {
            let stays = snapshot.clusters.contains_key(name);
            if !stays {
                cluster.retire();
            }
            stays
        });
        for (name, cluster) in &state.live {
            if let Some(config) = snapshot.clusters.get(name)
                && let Err(error) = self.update(cluster, config, before.clusters.get(name), snapshot)
            {
                published.rejected.push((Arc::clone(name), error));
            }
        }
        for (name, config) in &snapshot.clusters {
            // Only a cluster that can wait is packed.
            let Some(config) = config.whole() else { continue };
            if !state.live.contains_key(name)
                && !may_wait(config)
                && let Err(error) = self.make(&mut state, Arc::clone(config))
            {
                published.rejected.push((Arc::clone(name), error));
            }
        }
        published
    }

    fn update(
        &self,
        cluster: &Arc<Cluster>,
        config: &Resource<config::Cluster>,
        before: Option<&Resource<config::Cluster>>,
        snapshot: &Snapshot,
    ) -> Result<(), TlsError> {
        let mut updated = Ok(());
        // A whole one may have been refused the time before.
        if config.whole().is_some() || !before.is_some_and(|before| before.is_same(config)) {
            let old = cluster.config();
            updated = cluster.update_config(&config.get(), &self.secrets);
            self.attend(cluster, Some(&old));
        }
        if let ClusterDiscovery::Eds(_) = cluster.config().discovery {
            cluster.set_endpoints(assigned(cluster, snapshot).unwrap_or(&Resource::default()));
        }
        updated
    }

    fn make(&self, state: &mut State, config: Arc<config::Cluster>) -> Result<Arc<Cluster>, TlsError> {
        let cluster = Arc::new(Cluster::new(config, &self.secrets)?);
        if let Some(endpoints) = assigned(&cluster, &state.snapshot) {
            cluster.set_endpoints(endpoints);
        }
        state.live.insert(Arc::clone(cluster.name()), Arc::clone(&cluster));
        self.attend(&cluster, None);
        Ok(cluster)
    }

    fn attend(&self, cluster: &Arc<Cluster>, before: Option<&config::Cluster>) {
        let discovery = &cluster.config().discovery;
        let has_names = matches!(discovery, ClusterDiscovery::StrictDns(_) | ClusterDiscovery::LogicalDns(_));
        if has_names && before.is_none_or(|before| before.discovery != *discovery) {
            (self.attend)(Task::Resolve, Arc::clone(cluster));
        }
        if cluster.wants_health_checker() {
            (self.attend)(Task::CheckHealth, Arc::clone(cluster));
        }
    }

    /// Ends ejections and warms endpoints up where it is time ([`Cluster::sweep`]).
    pub fn sweep(&self, now: Instant) {
        let live: Vec<_> = self.state().live.values().cloned().collect();
        live.iter().for_each(|cluster| cluster.sweep(now));
    }

    /// All clusters of the configuration, for the admin page. To be looked at is not to be used.
    pub fn status(&self) -> Vec<ClusterStatus> {
        let state = self.state();
        let (snapshot, live) = (Arc::clone(&state.snapshot), state.live.clone());
        drop(state);
        let status = |(name, config): (&Arc<str>, &Resource<config::Cluster>)| match live.get(name) {
            Some(cluster) => Some(cluster.status()),
            None => {
                let cluster = Cluster::new(config.get(), &self.secrets).ok()?;
                if let Some(endpoints) = assigned(&cluster, &snapshot) {
                    cluster.set_endpoints(endpoints);
                }
                Some(cluster.status())
            }
        };
        snapshot.clusters.iter().filter_map(status).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves every cluster in its old or its new version, never in between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clusters").field("live", &self.state().live.len()).finish_non_exhaustive()
    }
}

/// The endpoints that a cluster asks for by name (EDS).
fn assigned<'a>(cluster: &Cluster, snapshot: &'a Snapshot) -> Option<&'a Resource<ClusterLoadAssignment>> {
    match &cluster.config().discovery {
        ClusterDiscovery::Eds(service) => snapshot.endpoints.get(service.as_str()),
        _ => None,
    }
}

/// Whether a cluster may be made when it is used for the first time. Its names would not be resolved then, its endpoints not
/// checked, and what is wrong with its TLS not be told.
pub fn may_wait(config: &config::Cluster) -> bool {
    use ClusterDiscovery::{Eds, LogicalDns, OriginalDst, Static, StrictDns};
    match config.discovery {
        StrictDns(_) | LogicalDns(_) => false,
        Eds(_) | Static(_) | OriginalDst => may_sleep(config) && super::is_sound_by_secrets(config),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{CertificateSource, DnsCluster, EndpointAddress, TlsVersion, TransportSocket, UpstreamTls};

    fn eds(name: &str) -> config::Cluster {
        config::Cluster::new(name, ClusterDiscovery::Eds(name.to_owned()))
    }

    fn assignment(port: u16) -> ClusterLoadAssignment {
        ClusterLoadAssignment::single(EndpointAddress::Socket(([192, 0, 2, 1], port).into()))
    }

    fn snapshot(clusters: Vec<config::Cluster>, port: u16) -> Arc<Snapshot> {
        let endpoints = clusters.iter().map(|cluster| (cluster.name.as_str().into(), assignment(port).into())).collect();
        let clusters = clusters.into_iter().map(|cluster| (cluster.name.as_str().into(), cluster.into())).collect();
        Arc::new(Snapshot { clusters, endpoints, ..Snapshot::default() })
    }

    type Asked = Arc<Mutex<Vec<(Task, String)>>>;

    fn clusters() -> (Arc<Clusters>, Asked) {
        let tasks = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&tasks);
        let attend = move |task, cluster: Arc<Cluster>| seen.lock().unwrap().push((task, cluster.name().to_string()));
        (Arc::new(Clusters::new(Secrets::new(), attend)), tasks)
    }

    fn ports(cluster: &Cluster) -> Vec<String> {
        cluster.endpoints().iter().map(|endpoint| endpoint.host().to_string()).collect()
    }

    #[test]
    fn a_cluster_is_made_when_it_is_asked_for_and_follows_the_configuration_from_then_on() {
        let (clusters, _) = clusters();
        assert!(clusters.publish(&snapshot(vec![eds("a"), eds("b")], 1)).changed);
        assert!(clusters.state().live.is_empty(), "nobody has asked");
        let a = clusters.get("a").unwrap();
        assert!(clusters.get("c").is_none() && clusters.state().live.len() == 1);
        assert_eq!(ports(&a), ["192.0.2.1:1"]);
        assert!(!clusters.publish(&snapshot(vec![eds("a"), eds("b")], 2)).changed);
        assert_eq!(ports(&a), ["192.0.2.1:2"]);
        assert!(Arc::ptr_eq(&a, &clusters.get("a").unwrap()));
        let all = clusters.status();
        let shown: Vec<_> = all.iter().map(|cluster| (cluster.name.as_str(), cluster.endpoints.len())).collect();
        assert_eq!((shown, clusters.state().live.len()), (vec![("a", 1), ("b", 1)], 1), "to be looked at is not to be used");
        assert!(clusters.publish(&snapshot(vec![eds("b")], 2)).changed);
        assert!(clusters.get("a").is_none() && ports(&a).is_empty(), "retired");
        let without_endpoints = Snapshot { endpoints: <_>::default(), ..Snapshot::clone(&snapshot(vec![eds("b")], 2)) };
        clusters.publish(&Arc::new(without_endpoints));
        assert_eq!(clusters.status().len(), 1, "shown, though it has none");
    }

    #[test]
    fn what_cannot_wait_is_made_at_its_publication() {
        let (clusters, tasks) = clusters();
        let dns = |address: &str| {
            let names = ClusterLoadAssignment::single(EndpointAddress::Name(address.to_owned(), 80));
            let dns = DnsCluster::new(Arc::new(names), Duration::from_secs(60));
            config::Cluster::new("dns", ClusterDiscovery::StrictDns(dns))
        };
        clusters.publish(&snapshot(vec![eds("a"), dns("one.test")], 1));
        let resolve = (Task::Resolve, "dns".to_owned());
        assert_eq!(*tasks.lock().unwrap(), std::slice::from_ref(&resolve));
        clusters.publish(&snapshot(vec![eds("a"), dns("one.test")], 1));
        assert_eq!(tasks.lock().unwrap().len(), 1, "it is attended to already");
        clusters.publish(&snapshot(vec![eds("a"), dns("two.test")], 1));
        assert_eq!(*tasks.lock().unwrap(), [resolve.clone(), resolve], "other names, at once");
    }

    #[test]
    fn a_cluster_that_cannot_be_made_is_told_at_every_publication_and_never_used() {
        let (clusters, _) = clusters();
        let tls = UpstreamTls {
            certificate: None,
            trust: Some(CertificateSource::Files { certificates: "/missing/roots.pem".into(), key: None }),
            sans: Vec::new(),
            pins: Vec::new(),
            revocation: None,
            sni: String::new(),
            auto_sni: false,
            auto_san_validation: false,
            alpn: Vec::new(),
            versions: (TlsVersion::Tls12, TlsVersion::Tls13),
        };
        let bad = config::Cluster { transport_socket: TransportSocket::Tls(Arc::new(tls)), ..eds("bad") };
        for _ in 0..2 {
            let rejected = clusters.publish(&snapshot(vec![bad.clone(), eds("good")], 1)).rejected;
            assert_eq!(rejected.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["bad"]);
            assert!(clusters.get("bad").is_none() && clusters.get("good").is_some());
        }
    }
}
