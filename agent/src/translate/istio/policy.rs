//! DestinationRule: which one applies to a service, and what it says for one subset and port.

use super::de::Located;
use super::documents::Resource;
use super::registry::Service;
use super::schema::destination_rule::{
    ClientTls, ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, ProxyProtocol, RetryBudget, SimpleLb, Subset,
    TrafficPolicy,
};
use super::schema::{exported, selects};
use super::scope::Scope;

/// istiod's search: the client's namespace, the service's, the root namespace; in each the most specific host, then the oldest.
pub(super) fn destination_rule<'s>(scope: &'s Scope<'_>, service: &Service<'_>) -> Option<&'s Resource<DestinationRule>> {
    let workload = scope.workload;
    let visible = |rule: &&Resource<DestinationRule>| {
        let selected = rule.spec.workload_selector.as_ref().is_none_or(|wanted| selects(&wanted.match_labels, &workload.labels));
        selected && exported(&rule.spec.export_to, &rule.namespace, &workload.namespace)
    };
    [workload.namespace.as_str(), service.namespace, scope.root_namespace.as_str()].into_iter().find_map(|namespace| {
        let rules = scope.documents.destination_rules.iter().filter(|rule| rule.namespace == namespace).filter(visible);
        Scope::most_specific(rules.map(|rule| (rule, rule.spec.host.resolve(&rule.namespace))), &service.host)
    })
}

/// The parts of a traffic policy after subset and port have had their say.
#[derive(Clone, Copy, Default)]
pub(super) struct Policy<'p> {
    pub(super) load_balancer: Option<&'p LoadBalancer>,
    pub(super) connection_pool: Option<&'p ConnectionPool>,
    pub(super) outlier_detection: Option<&'p OutlierDetection>,
    pub(super) tls: Option<&'p Located<ClientTls>>,
    pub(super) proxy_protocol: Option<&'p ProxyProtocol>,
    pub(super) retry_budget: Option<&'p RetryBudget>,
}

impl<'p> Policy<'p> {
    /// A part that the subset sets replaces the rule's; settings for the port replace all parts at once, unset ones too.
    pub(super) fn of(rule: Option<&'p Resource<DestinationRule>>, subset: Option<&'p Subset>, port: u16) -> Self {
        let mut policy = Self::default();
        let levels = [rule.and_then(|rule| rule.spec.traffic_policy.as_ref()), subset.and_then(|s| s.traffic_policy.as_ref())];
        for level in levels.into_iter().flatten() {
            policy.overlay(&level.value, port);
        }
        policy
    }

    fn overlay(&mut self, level: &'p TrafficPolicy, port: u16) {
        self.load_balancer = level.load_balancer.as_ref().or(self.load_balancer);
        self.connection_pool = level.connection_pool.as_ref().or(self.connection_pool);
        self.outlier_detection = level.outlier_detection.as_ref().or(self.outlier_detection);
        self.tls = level.tls.as_ref().or(self.tls);
        self.proxy_protocol = level.proxy_protocol.as_ref().or(self.proxy_protocol);
        self.retry_budget = level.retry_budget.as_ref().or(self.retry_budget);
        if let Some(own) = level.port_level_settings.iter().find(|settings| settings.port.number.get() == port) {
            *self = Self {
                load_balancer: own.load_balancer.as_ref(),
                connection_pool: own.connection_pool.as_ref(),
                outlier_detection: own.outlier_detection.as_ref(),
                tls: own.tls.as_ref(),
                // Ports have none of their own.
                proxy_protocol: self.proxy_protocol,
                retry_budget: self.retry_budget,
            };
        }
    }

    /// Connect where the application meant to, which needs iptables: such a cluster answers 503.
    pub(super) fn is_passthrough(&self) -> bool {
        self.load_balancer.and_then(|lb| lb.simple) == Some(SimpleLb::Passthrough)
    }
}
