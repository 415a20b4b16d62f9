//! One VirtualService into routes.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use skiff_proxy::config::{
    AppendAction, CorsPolicy, Decorator, DirectResponse, Fault, FaultAbort, FaultDelay, Fraction, HeaderMatch, HeaderMatcher,
    HeaderMutations, HeaderValueOption, HostRewrite, Mirror, PathMatch, PathRewrite, QueryParameterMatcher, Redirect,
    RedirectPath, RetryPolicy, Route, RouteAction, RouteMatch, RouteTarget, StringMatcher, WeightedCluster,
};

use super::clusters;
use super::de::Located;
use super::documents::Resource;
use super::policy::{self, Policy};
use super::registry::Service;
use super::schema::virtual_service::{
    self as schema, Body, DerivePort, Destination, HttpMatch, HttpRoute, Scheme, UnmatchedPreflights, VirtualService,
};
use super::schema::{Labels, selects};
use super::scope::Scope;
use super::values::{Percent, Port, TextMatch};
use super::{Output, Selection};

/// istiod's, for retries that go to remote localities.
const UPDATE_FREQUENCY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// What a match says about who asks: labels, namespace, gateways.
type Source<'m> = (&'m Labels, Option<&'m str>, &'m [String]);

/// Whether a match can concern this workload on the port of a listener at all.
pub(super) fn applies(scope: &Scope<'_>, port: Option<Port>, (labels, namespace, gateways): Source<'_>, listener: u16) -> bool {
    port.is_none_or(|port| port.get() == listener)
        && selects(labels, &scope.workload.labels)
        && namespace.is_none_or(|namespace| namespace == scope.workload.namespace)
        && schema::for_sidecars(gateways)
}

/// Resolves the destinations of one VirtualService on one listener.
pub(super) struct Destinations<'d, 'o> {
    pub(super) scope: &'d Scope<'d>,
    pub(super) resource: &'d Resource<VirtualService>,
    pub(super) port: u16,
    pub(super) selection: &'o mut Selection,
}

impl Destinations<'_, '_> {
    /// The cluster's name; what does not exist is warned of, because requests to it get 503.
    pub(super) fn cluster(&mut self, destination: &Destination, output: &mut Output) -> String {
        let host = destination.host.resolve(&self.resource.namespace);
        let service = self.scope.service(&host);
        let port = self.port(destination, service);
        let rule = service.and_then(|service| policy::destination_rule(self.scope, service));
        let has_subset = rule.is_some_and(|rule| rule.spec.subsets.iter().any(|subset| subset.name == destination.subset));
        match service {
            Some(service) if service.port(port).is_some() => {
                self.selection.insert((host.clone(), port));
                if !destination.subset.is_empty() && !has_subset {
                    let subset = &destination.subset;
                    output.warn(self.resource.remark(format_args!("no DestinationRule has subset {subset} of {host}: 503")));
                }
            }
            Some(_) => output.warn(self.resource.remark(format_args!("{host} has no port {port}: 503"))),
            None => output.warn(self.resource.remark(format_args!("no service has host {host}: 503"))),
        }
        clusters::name(port, &destination.subset, &host)
    }

    /// The declared port, else the only one that the service has, else the listener's.
    fn port(&self, destination: &Destination, service: Option<&Service<'_>>) -> u16 {
        let only_port = service.and_then(|service| match service.ports {
            [port] => Some(port.number.get()),
            _ => None,
        });
        destination.port.map(|port| port.number.get()).or(only_port).unwrap_or(self.port)
    }

    /// What requests to a destination are hashed by.
    fn hash(&self, destination: &Destination) -> Vec<skiff_proxy::config::HashPolicy> {
        let Some(service) = self.scope.service(&destination.host.resolve(&self.resource.namespace)) else { return Vec::new() };
        let rule = policy::destination_rule(self.scope, service);
        let subset = rule.and_then(|rule| rule.spec.subsets.iter().find(|subset| subset.name == destination.subset));
        let port = self.port(destination, Some(service));
        let hash = Policy::of(rule, subset, port).load_balancer.and_then(|lb| lb.consistent_hash.as_ref());
        hash.map(clusters::hash_policies).unwrap_or_default()
    }
}

/// The HTTP routes of a VirtualService on one port, one for each match.
pub(super) fn routes(
    scope: &Scope<'_>,
    vs: &Resource<VirtualService>,
    port: u16,
    selection: &mut Selection,
    output: &mut Output,
) -> Vec<Route> {
    let mut builder = Builder { to: Destinations { scope, resource: vs, port, selection }, output };
    vs.spec.http.iter().flat_map(|http| builder.routes(http)).collect()
}

struct Builder<'b, 'o> {
    to: Destinations<'b, 'o>,
    output: &'o mut Output,
}

impl Builder<'_, '_> {
    fn routes(&mut self, http: &Located<HttpRoute>) -> Vec<Route> {
        let any = [HttpMatch::default()];
        let matches = if http.value.matches.is_empty() { &any[..] } else { &http.value.matches[..] };
        let mut routes = Vec::new();
        for matched in matches {
            let source = (&matched.source_labels, matched.source_namespace.as_deref(), &matched.gateways[..]);
            if !applies(self.to.scope, matched.port, source, self.to.port) {
                continue;
            }
            let Some(action) = self.action(http) else { return Vec::new() };
            let name = match (http.value.name.as_str(), matched.name.as_str()) {
                (route, "") => route.to_owned(),
                ("", matched) => matched.to_owned(),
                (route, matched) => format!("{route}.{matched}"),
            };
            let matches = route_match(matched);
            let decorator = Some(Decorator { operation: self.operation(&matches, &action), propagate: true });
            routes.push(Route {
                name,
                matches,
                action,
                headers: http.value.headers.as_ref().map(header_mutations).unwrap_or_default(),
                cors: http.value.cors_policy.as_ref().map(cors),
                fault: http.value.fault.as_ref().map(fault),
                filters: Vec::new(),
                decorator,
            });
        }
        routes
    }

    /// What spans are called, as istiod has it: by the destination where there is one, else by the VirtualService.
    fn operation(&self, matches: &RouteMatch, action: &RouteTarget) -> String {
        let path = match &matches.path {
            PathMatch::Prefix(prefix) => format!("{prefix}*"),
            PathMatch::Exact(path) => path.clone(),
            PathMatch::Regex(regex) => regex.as_str().to_owned(),
            PathMatch::SeparatedPrefix(_) | PathMatch::UriTemplate(_) | PathMatch::Connect => "/*".to_owned(),
        };
        let clusters = if let RouteTarget::Forward(action) = action { &action.clusters[..] } else { &[] };
        if let [only] = clusters
            && let [_, port, _, host] = only.name.split('|').collect::<Vec<_>>()[..]
        {
            return format!("{host}:{port}{path}");
        }
        format!("{}:{}{path}", self.to.resource.metadata.name, self.to.port)
    }

    fn action(&mut self, http: &Located<HttpRoute>) -> Option<RouteTarget> {
        let route = &http.value;
        match (&route.redirect, &route.direct_response, route.route.is_empty()) {
            (Some(redirect), None, true) => Some(RouteTarget::Redirect(self.redirect(redirect))),
            (None, Some(direct), true) => Some(RouteTarget::DirectResponse(direct_response(direct))),
            (None, None, false) => self.forward(http).map(|action| RouteTarget::Forward(Box::new(action))),
            _ => self.fail(http, "expected exactly one of route, redirect, directResponse"),
        }
    }

    fn fail<T>(&mut self, http: &Located<HttpRoute>, reason: &str) -> Option<T> {
        self.output.errors.push(self.to.resource.error(http.error(reason)));
        None
    }

    fn forward(&mut self, http: &Located<HttpRoute>) -> Option<RouteAction> {
        let route = &http.value;
        let single = route.route.len() == 1;
        let mut clusters = Vec::new();
        let mut hash_policy = Vec::new();
        let mut authority = authority_of(route.headers.as_ref());
        for to in &route.route {
            let mut cluster = WeightedCluster::only(self.to.cluster(&to.destination, self.output));
            cluster.weight = to.weight.unwrap_or(u32::from(single));
            cluster.headers = to.headers.as_ref().map(header_mutations).unwrap_or_default();
            let own_authority = authority_of(to.headers.as_ref());
            if own_authority.is_some() && !single {
                return self.fail(http, "the host of one of several destinations: not supported by skiff");
            }
            authority = own_authority.or(authority);
            hash_policy.extend(self.to.hash(&to.destination));
            // A single destination gets everything, whatever weight is written.
            cluster.weight = if single { 1 } else { cluster.weight };
            clusters.push(cluster);
        }
        clusters.retain(|cluster| cluster.weight > 0);
        if clusters.is_empty() {
            return self.fail(http, "expected a destination with a weight above zero");
        }
        hash_policy.dedup();
        let mut action = RouteAction::cluster("");
        action.clusters = clusters;
        action.hash_policy = hash_policy;
        action.timeout = route.timeout.map(|timeout| timeout.0).filter(|timeout| !timeout.is_zero());
        action.max_grpc_timeout = Some(action.timeout.unwrap_or(Duration::ZERO));
        action.retry = self.retry(route.retries.as_ref());
        action.host_rewrite = authority.map(HostRewrite::Literal);
        if let Some(rewrite) = &route.rewrite {
            let regex = rewrite.uri_regex_rewrite.as_ref();
            action.path_rewrite = regex
                .map(|regex| PathRewrite::Regex { pattern: regex.pattern.0.clone(), substitution: regex.rewrite.clone() })
                .or_else(|| rewrite.uri.clone().map(PathRewrite::Prefix));
            action.host_rewrite = rewrite.authority.clone().map(HostRewrite::Literal).or(action.host_rewrite);
        }
        action.mirrors = self.mirrors(route);
        Some(action)
    }

    fn mirrors(&mut self, route: &HttpRoute) -> Vec<Mirror> {
        let old = route.mirror.iter().map(|destination| (destination, route.mirror_percentage));
        let new = route.mirrors.iter().map(|mirror| (&mirror.destination, mirror.percentage));
        old.chain(new)
            .map(|(destination, percentage)| Mirror {
                cluster: self.to.cluster(destination, self.output),
                fraction: percentage.map_or(Fraction::ALL, Percent::fraction),
                // istiod's default since DISABLE_SHADOW_HOST_SUFFIX.
                keeps_host: true,
            })
            .filter(|mirror| mirror.fraction != Fraction::NONE)
            .collect()
    }

    /// Istio's default where nothing is said; zero attempts turn retries off.
    fn retry(&mut self, retries: Option<&schema::Retries>) -> Option<RetryPolicy> {
        let mut policy = RetryPolicy::istio_default();
        let Some(retries) = retries else { return Some(policy) };
        if retries.attempts == 0 {
            return None;
        }
        if retries.retry_remote_localities == Some(true) {
            policy.previous_priorities = Some(UPDATE_FREQUENCY);
        }
        policy.num_retries = retries.attempts;
        policy.per_try_timeout = retries.per_try_timeout.map(|timeout| timeout.0).filter(|timeout| !timeout.is_zero());
        if let Some(on) = &retries.retry_on.0 {
            policy.retry_on = on.clone();
        }
        if retries.retry_ignore_previous_hosts == Some(false) {
            policy.host_selection_attempts = 0;
        }
        if let Some(backoff) = retries.backoff.filter(|backoff| !backoff.0.is_zero()) {
            policy.base_interval = backoff.0;
            policy.max_interval = backoff.0.saturating_mul(10);
        }
        Some(policy)
    }

    fn redirect(&self, redirect: &schema::Redirect) -> Redirect {
        let path = redirect.uri.as_ref().map(|uri| match uri.strip_prefix("%PREFIX()%") {
            Some(rest) => RedirectPath::Prefix(rest.to_owned()),
            None => RedirectPath::Full(uri.clone()),
        });
        let from_request = redirect.derive_port == Some(DerivePort::FromRequestPort);
        Redirect {
            scheme: redirect.scheme.map(|scheme| match scheme {
                Scheme::Http => "http".to_owned(),
                Scheme::Https => "https".to_owned(),
            }),
            host: redirect.authority.clone(),
            port: redirect.port.map(Port::get).or(from_request.then_some(self.to.port)),
            path,
            strip_query: false,
            status: redirect.redirect_code.0,
        }
    }
}

fn route_match(matched: &HttpMatch) -> RouteMatch {
    let path = match &matched.uri {
        None | Some(TextMatch::Present) => PathMatch::Prefix("/".to_owned()),
        Some(TextMatch::Exact(path)) => PathMatch::Exact(path.clone()),
        Some(TextMatch::Prefix(path)) => PathMatch::Prefix(path.clone()),
        Some(TextMatch::Regex(regex)) => PathMatch::Regex(regex.clone()),
    };
    let header = |name: &str, value: &TextMatch, invert: bool| {
        let matcher = value.matcher();
        HeaderMatcher {
            name: name.to_ascii_lowercase(),
            // A header that must not have a value counts as empty when it is missing, so that its absence meets the condition.
            treat_missing_as_empty: invert && matcher.is_some(),
            value: matcher.map_or(HeaderMatch::Present(true), HeaderMatch::String),
            invert,
        }
    };
    let mut headers: Vec<HeaderMatcher> = matched.headers.iter().map(|(name, value)| header(name, value, false)).collect();
    headers.extend(matched.without_headers.iter().map(|(name, value)| header(name, value, true)));
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    let pseudo = [(":method", &matched.method), (":authority", &matched.authority), (":scheme", &matched.scheme)];
    headers.extend(pseudo.into_iter().filter_map(|(name, value)| value.as_ref().map(|value| header(name, value, false))));
    let query = |(name, value): (&String, &TextMatch)| QueryParameterMatcher { name: name.clone(), value: value.matcher() };
    RouteMatch {
        ignore_case: matched.ignore_uri_case,
        headers,
        query_parameters: matched.query_params.iter().map(query).collect(),
        ..RouteMatch::path(path)
    }
}

/// `set` of the host header, which is a rewrite of the host and not a header operation.
fn authority_of(headers: Option<&schema::Headers>) -> Option<String> {
    let set = &headers?.request.set;
    set.iter().find(|(name, _)| is_host(name)).map(|(_, value)| value.clone())
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn header_mutations(headers: &schema::Headers) -> HeaderMutations {
    let options = |values: &BTreeMap<String, String>, action: AppendAction| {
        values
            .iter()
            .filter(|(name, _)| !is_host(name))
            .map(move |(name, value)| HeaderValueOption {
                name: name.to_ascii_lowercase(),
                value: value.clone(),
                action,
                keep_empty_value: false,
            })
            .collect::<Vec<_>>()
    };
    let all = |operations: &schema::HeaderOperations| {
        let mut list = options(&operations.set, AppendAction::OverwriteIfExistsOrAdd);
        list.extend(options(&operations.add, AppendAction::AppendIfExistsOrAdd));
        list
    };
    let names = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
    HeaderMutations {
        request_add: all(&headers.request),
        request_remove: names(&headers.request.remove),
        response_add: all(&headers.response),
        response_remove: names(&headers.response.remove),
    }
}

fn cors(policy: &schema::CorsPolicy) -> CorsPolicy {
    let list = |values: &[String]| (!values.is_empty()).then(|| values.join(","));
    CorsPolicy {
        allow_origins: policy
            .allow_origins
            .iter()
            .map(|origin| origin.matcher().unwrap_or_else(|| StringMatcher::prefix("")))
            .collect(),
        allow_methods: list(&policy.allow_methods),
        allow_headers: list(&policy.allow_headers),
        expose_headers: list(&policy.expose_headers),
        max_age: policy.max_age.map(|age| age.0.as_secs().to_string()),
        allow_credentials: policy.allow_credentials,
        forward_not_matching_preflights: policy.unmatched_preflights != UnmatchedPreflights::Ignore,
    }
}

/// A fault without a percentage concerns no request.
fn fault(fault: &schema::Fault) -> Fault {
    let share = |percentage: Option<Percent>| percentage.map_or(Fraction::NONE, Percent::fraction);
    Fault {
        delay: fault.delay.as_ref().map(|delay| FaultDelay { fixed: delay.fixed_delay.0, fraction: share(delay.percentage) }),
        abort: fault.abort.as_ref().map(|abort| FaultAbort {
            http_status: abort.http_status,
            grpc_status: abort.grpc_status.map(|status| status.0),
            fraction: share(abort.percentage),
        }),
    }
}

fn direct_response(direct: &schema::DirectResponse) -> DirectResponse {
    let body = match &direct.body {
        None => Vec::new(),
        Some(Body::String(text)) => text.clone().into_bytes(),
        Some(Body::Bytes(bytes)) => bytes.0.clone(),
    };
    DirectResponse { status: direct.status.0, body }
}
