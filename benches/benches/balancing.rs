//! Picking an endpoint of a cluster of 100, by each policy.

use std::num::NonZeroU32;
use std::sync::Arc;

use criterion::Criterion;
use skiff_benches::endpoints;
use skiff_proxy::config::{self, ClusterDiscovery, HashConfig, LbPolicy, LeastRequest};
use skiff_proxy::tls::Secrets;
use skiff_proxy::upstream::{Cluster, PickContext};

pub(crate) fn bench(criterion: &mut Criterion) {
    let choice_count = NonZeroU32::new(2).unwrap();
    let policies = [
        ("least request", LbPolicy::LeastRequest(LeastRequest { choice_count, slow_start: None })),
        ("round robin", LbPolicy::RoundRobin(None)),
        ("random", LbPolicy::Random),
        ("ring hash", LbPolicy::RingHash(HashConfig { size: 1024, max_size: 8 << 20 })),
        ("maglev", LbPolicy::Maglev(HashConfig { size: 65_537, max_size: 65_537 })),
    ];
    for (name, policy) in policies {
        let mut config = config::Cluster::new("outbound|9080||details", ClusterDiscovery::Static(Arc::new(endpoints(0, 100))));
        config.lb_policy = policy;
        let cluster = Cluster::new(Arc::new(config), &Secrets::new()).unwrap();
        let mut hash = 0_u64;
        criterion.bench_function(&format!("balancing/{name}"), |bench| {
            bench.iter(|| {
                hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                cluster.pick(&PickContext { hash: Some(hash), ..PickContext::default() }).unwrap()
            });
        });
    }
}
