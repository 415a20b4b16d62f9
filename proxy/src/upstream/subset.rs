//! Subsets: the endpoints of a cluster by their labels, and what serves requests that no subset fits.
//!
//! A publication works a request's labels out when it sees them for the first time: routes have few, and they do not change.
//! Mirrors <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/subsets>.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Endpoint;
use super::balance::{Balancer, Layout, PickContext};
use crate::config::{LbSubsetConfig, SelectorFallback, SubsetFallback, SubsetSelector};

/// Labels of one publication that are remembered; their number is bounded by the routes, this bounds a mistake.
const MAX_SUBSETS: usize = 64;
/// A fallback may lead to another selector; more than all of them would be a circle.
const MAX_FALLBACKS: usize = 32;

type Labels = BTreeMap<String, String>;

/// The subsets of one publication that were asked for.
#[derive(Debug, Default)]
pub(super) struct Subsets {
    known: ArcSwap<Vec<(Labels, Served)>>,
}

/// Who serves requests with certain labels.
#[derive(Clone, Debug)]
struct Served {
    by: Option<Arc<Balancer>>,
    /// Asked where [`Self::by`] has nobody.
    else_by: Option<Arc<Balancer>>,
}

impl Served {
    const NOBODY: Self = Self { by: None, else_by: None };

    fn pick(&self, context: &PickContext<'_>) -> Option<Arc<Endpoint>> {
        let balancers = [&self.by, &self.else_by];
        balancers.into_iter().flatten().find_map(|balancer| balancer.pick(context))
    }
}

impl Subsets {
    /// Chooses among the endpoints that a request with these labels may go to.
    pub(super) fn pick<'l>(
        &self,
        config: &LbSubsetConfig,
        endpoints: &[Arc<Endpoint>],
        layout: impl FnOnce() -> Layout<'l>,
        context: &PickContext<'_>,
    ) -> Option<Arc<Endpoint>> {
        static NONE: Labels = Labels::new();
        let labels = context.subset.unwrap_or(&NONE);
        if let Some((_, served)) = self.known.load().iter().find(|(known, _)| known == labels) {
            return served.pick(context);
        }
        let served = Making { config, endpoints, layout: &layout() }.served(labels);
        self.known.rcu(|known| {
            let mut known = Vec::clone(known);
            if known.len() < MAX_SUBSETS {
                known.push((labels.clone(), served.clone()));
            }
            known
        });
        served.pick(context)
    }
}

/// What subsets are made of.
struct Making<'a> {
    config: &'a LbSubsetConfig,
    endpoints: &'a [Arc<Endpoint>],
    layout: &'a Layout<'a>,
}

impl Making<'_> {
    fn served(&self, labels: &Labels) -> Served {
        let mut labels = labels.clone();
        for _ in 0..MAX_FALLBACKS {
            if self.config.allow_redundant_keys {
                labels = self.without_redundant_keys(labels);
            }
            let Some(selector) = self.selector(&labels) else { break };
            let members: Vec<&Arc<Endpoint>> = self.members(&labels).collect();
            if let Some(first) = members.first() {
                let single = selector.single_host_per_subset;
                let by = if single { Balancer::single(self.layout, first) } else { Balancer::new(self.layout, members) };
                return Served { by: Some(Arc::new(by)), else_by: None };
            }
            match &selector.fallback {
                None => break,
                Some(SelectorFallback::Cluster(fallback)) => return Served { by: self.fallback(*fallback), else_by: None },
                Some(SelectorFallback::KeysSubset(keys)) => labels.retain(|key, _| keys.contains(key)),
            }
        }
        match self.fallback(self.config.fallback) {
            None => Served::NOBODY,
            by => Served { by, else_by: self.config.panic_mode_any.then(|| self.any()) },
        }
    }

    fn fallback(&self, fallback: SubsetFallback) -> Option<Arc<Balancer>> {
        match fallback {
            SubsetFallback::NoFallback => None,
            SubsetFallback::AnyEndpoint => Some(self.any()),
            SubsetFallback::DefaultSubset => {
                Some(Arc::new(Balancer::new(self.layout, self.members(&self.config.default_subset))))
            }
        }
    }

    fn any(&self) -> Arc<Balancer> {
        Arc::new(Balancer::new(self.layout, self.endpoints))
    }

    fn members(&self, labels: &Labels) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter().filter(|endpoint| endpoint.has_labels(labels, self.config.list_as_any))
    }

    /// The selector with exactly these keys.
    fn selector(&self, labels: &Labels) -> Option<&SubsetSelector> {
        self.config.selectors.iter().find(|selector| selector.keys.iter().eq(labels.keys()))
    }

    fn without_redundant_keys(&self, mut labels: Labels) -> Labels {
        let fits = |keys: &BTreeSet<String>| keys.iter().all(|key| labels.contains_key(key));
        if let Some(selector) = self.config.selectors.iter().find(|selector| fits(&selector.keys)) {
            labels.retain(|key, _| selector.keys.contains(key));
        }
        labels
    }
}
