//! Subsets of a cluster's endpoints (Envoy `Cluster.LbSubsetConfig`).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// Which endpoints a route's `metadata_match` leads to. Mirrors
/// <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/subsets>.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "Envoy's independent switches")]
pub struct LbSubsetConfig {
    /// For requests that no subset fits.
    pub fallback: SubsetFallback,
    /// Labels of the default subset.
    pub default_subset: BTreeMap<String, String>,
    /// The keys that subsets are made by; never empty.
    pub selectors: Vec<SubsetSelector>,
    /// Localities are weighted inside a subset too.
    pub locality_weight_aware: bool,
    /// A locality counts in a subset by the share of its endpoints that is in it.
    pub scale_locality_weight: bool,
    /// Where the fallback has nobody, every endpoint will do.
    pub panic_mode_any: bool,
    /// An endpoint with a list of values is in the subsets of all of them.
    pub list_as_any: bool,
    /// Keys of a request that no selector has are left aside.
    pub allow_redundant_keys: bool,
}

/// What serves requests that no subset fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum SubsetFallback {
    /// Nobody.
    #[default]
    NoFallback,
    /// Every endpoint.
    AnyEndpoint,
    /// The default subset.
    DefaultSubset,
}

/// One set of keys that subsets are made by.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SubsetSelector {
    /// The keys.
    pub keys: BTreeSet<String>,
    /// For requests with these keys and values that nobody has; `None` leaves it to the cluster.
    pub fallback: Option<SelectorFallback>,
    /// Every subset is one endpoint, chosen whatever its health.
    pub single_host_per_subset: bool,
}

/// The fallback of one selector.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum SelectorFallback {
    /// As for the whole cluster.
    Cluster(SubsetFallback),
    /// Once more with these keys only.
    KeysSubset(BTreeSet<String>),
}
