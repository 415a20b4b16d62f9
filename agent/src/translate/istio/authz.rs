//! AuthorizationPolicy into RBAC, with istiod's names, order and rule about TCP.
//!
//! Each rule becomes a policy: any of its operations and any of its sources, each with the rule's conditions. A field that
//! needs HTTP makes an ALLOW rule unusable on TCP (it allows nothing) and is left out of a DENY or AUDIT rule (which then
//! matches more), so that both err on the safe side.

use std::collections::BTreeMap;
use std::sync::Arc;

use skiff_proxy::config::{
    HeaderMatch, HeaderMatcher, HttpFilter, MetadataForm, MetadataMatcher, Permission, Policy, Principal, Rbac, RbacAction,
    RbacRules, Regex, StringMatch, StringMatcher,
};

use super::documents::Resource;
use super::schema::security::{Action, AuthorizationPolicy, Condition, ConditionKey, ConditionValues, Operation, Rule, Source};
use super::schema::selects;
use super::scope::Scope;
use super::values::Block;
use super::{Output, custom};

/// Claims may be a text or a list of texts.
const EITHER: MetadataForm = MetadataForm::TextOrElement;
/// Filter whose metadata holds the claims of a verified JWT.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

/// The HTTP filters of an inbound listener: AUDIT, DENY, ALLOW.
pub(super) fn http_filters(scope: &Scope<'_>) -> Vec<HttpFilter> {
    ORDER
        .into_iter()
        .filter_map(|(action, to)| {
            let (enforced, dry_run): (Vec<_>, Vec<_>) = policies(scope, action).partition(|policy| !is_dry_run(policy));
            let rules = |policies: &[&Resource<AuthorizationPolicy>]| {
                (!policies.is_empty()).then(|| rules(scope, policies, to, Layer::Http, ""))
            };
            let prefix = if to == RbacAction::Deny { "istio_dry_run_deny_" } else { "istio_dry_run_allow_" };
            let name = "envoy.filters.http.rbac".to_owned();
            let rbac =
                Rbac { name, rules: rules(&enforced), shadow_rules: rules(&dry_run), shadow_stat_prefix: prefix.to_owned() };
            (rbac.rules.is_some() || rbac.shadow_rules.is_some()).then(|| HttpFilter::Rbac(Arc::new(rbac)))
        })
        .collect()
}

/// The network filters of an inbound TCP chain. A dry run has nowhere to be recorded there, which is said in a warning.
pub(super) fn network_rules(scope: &Scope<'_>, output: &mut Output) -> Vec<Arc<RbacRules>> {
    let custom = custom::network_rules(scope, output);
    let others = ORDER
        .into_iter()
        .filter_map(|(action, to)| {
            let (enforced, dry_run): (Vec<_>, Vec<_>) = policies(scope, action).partition(|policy| !is_dry_run(policy));
            dry_run.iter().for_each(|policy| output.warn(policy.remark("a dry run is not recorded on TCP ports")));
            (!enforced.is_empty()).then(|| Arc::new(rules(scope, &enforced, to, Layer::Tcp, "")))
        })
        .collect::<Vec<_>>();
    custom.into_iter().chain(others).collect()
}

const ORDER: [(Action, RbacAction); 3] =
    [(Action::Audit, RbacAction::Log), (Action::Deny, RbacAction::Deny), (Action::Allow, RbacAction::Allow)];

pub(super) fn is_dry_run(policy: &Resource<AuthorizationPolicy>) -> bool {
    policy.metadata.annotations.get("istio.io/dry-run").is_some_and(|value| value == "true")
}

/// Policies of the root namespace and of the workload's own that select the workload. Those with a `targetRef` are for
/// gateways and waypoints.
pub(super) fn policies<'s>(scope: &'s Scope<'_>, action: Action) -> impl Iterator<Item = &'s Resource<AuthorizationPolicy>> {
    scope.documents.authorization_policies.iter().filter(move |policy| {
        let in_reach = policy.namespace == scope.workload.namespace || policy.namespace == scope.root_namespace;
        let selected =
            policy.spec.selector.as_ref().is_none_or(|selector| selects(&selector.match_labels, &scope.workload.labels));
        in_reach
            && selected
            && policy.spec.action == action
            && policy.spec.target_ref.is_none()
            && policy.spec.target_refs.is_empty()
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Http,
    Tcp,
}

/// A field that only HTTP has was used on TCP.
struct NeedsHttp;

/// Policies under one action; `prefix` goes before their names.
pub(super) fn rules(
    scope: &Scope<'_>,
    policies: &[&Resource<AuthorizationPolicy>],
    action: RbacAction,
    layer: Layer,
    prefix: &str,
) -> RbacRules {
    let mut named = BTreeMap::new();
    for policy in policies {
        let name = |index: usize| format!("{prefix}ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.metadata.name);
        // Without rules nothing matches: an ALLOW of this kind lets nothing pass.
        if policy.spec.rules.is_empty() {
            named.insert(name(0), never());
        }
        let builder = Builder { scope, action, layer, namespace: &policy.namespace };
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            if let Ok(built) = builder.policy(rule) {
                named.insert(name(index), built);
            }
        }
    }
    RbacRules { action, policies: named }
}

fn never() -> Policy {
    Policy {
        permissions: vec![Permission::Not(Box::new(Permission::Any))],
        principals: vec![Principal::Not(Box::new(Principal::Any))],
    }
}

struct Builder<'b> {
    scope: &'b Scope<'b>,
    action: RbacAction,
    layer: Layer,
    namespace: &'b str,
}

impl Builder<'_> {
    fn policy(&self, rule: &Rule) -> Result<Policy, NeedsHttp> {
        let none = [Operation::default()];
        let operations = rule.to.iter().map(|to| &to.operation);
        let permissions: Vec<_> = if rule.to.is_empty() { none.iter().collect() } else { operations.collect() };
        let anybody = [Source::default()];
        let sources = rule.from.iter().map(|from| &from.source);
        let principals: Vec<_> = if rule.from.is_empty() { anybody.iter().collect() } else { sources.collect() };
        Ok(Policy {
            permissions: permissions
                .into_iter()
                .map(|operation| self.permission(operation, &rule.when))
                .collect::<Result<_, _>>()?,
            principals: principals.into_iter().map(|source| self.principal(source, &rule.when)).collect::<Result<_, _>>()?,
        })
    }

    fn permission(&self, operation: &Operation, when: &[Condition]) -> Result<Permission, NeedsHttp> {
        let mut all = Permissions { builder: self, and: Vec::new() };
        all.add(&operation.hosts, &operation.not_hosts, true, |host| Permission::Header(header(":authority", host, true)))?;
        all.add(&operation.methods, &operation.not_methods, true, |method| Permission::Header(header(":method", method, false)))?;
        all.add(&operation.paths, &operation.not_paths, true, |path| path_permission(path))?;
        all.add(&operation.ports, &operation.not_ports, false, |port| Permission::DestinationPort(port.0.get()))?;
        for condition in when {
            match (&condition.key, &condition.values, &condition.not_values) {
                (ConditionKey::DestinationIp, ConditionValues::Blocks(values), ConditionValues::Blocks(not)) => {
                    all.add(values, not, false, |block| Permission::DestinationIp(block.0))?;
                }
                (ConditionKey::DestinationPort, ConditionValues::Ports(values), ConditionValues::Ports(not)) => {
                    all.add(values, not, false, |port| Permission::DestinationPort(port.get()))?;
                }
                (ConditionKey::ConnectionSni, ConditionValues::Text(values), ConditionValues::Text(not)) => {
                    all.add(values, not, false, |sni| Permission::RequestedServerName(text(sni, "", false)))?;
                }
                _ => {}
            }
        }
        if all.and.is_empty() {
            all.and.push(Permission::Any);
        }
        Ok(Permission::And(all.and))
    }

    fn principal(&self, source: &Source, when: &[Condition]) -> Result<Principal, NeedsHttp> {
        let mut all = Principals { builder: self, and: Vec::new() };
        all.identities(&source.principals, &source.not_principals)?;
        all.add_metadata(&source.request_principals, &source.not_request_principals, |id| request_principal(id))?;
        all.add(&source.service_accounts, &source.not_service_accounts, false, |id| service_account(id, self.namespace))?;
        all.add(&source.namespaces, &source.not_namespaces, false, |name| namespace(name))?;
        all.add(&source.remote_ip_blocks, &source.not_remote_ip_blocks, false, |block: &Block| Principal::RemoteIp(block.0))?;
        all.add(&source.ip_blocks, &source.not_ip_blocks, false, |block: &Block| Principal::DirectRemoteIp(block.0))?;
        for condition in when {
            all.condition(condition, self.namespace)?;
        }
        if all.and.is_empty() {
            all.and.push(Principal::Any);
        }
        Ok(Principal::And(all.and))
    }

    /// Whether a field can be used here: `Ok(false)` leaves it out.
    fn usable(&self, needs_http: bool) -> Result<bool, NeedsHttp> {
        match (needs_http && self.layer == Layer::Tcp, self.action) {
            (false, _) => Ok(true),
            (true, RbacAction::Allow) => Err(NeedsHttp),
            (true, _) => Ok(false),
        }
    }
}

struct Permissions<'b> {
    builder: &'b Builder<'b>,
    and: Vec<Permission>,
}

impl Permissions<'_> {
    /// One of `values`, and none of `not`.
    fn add<T>(&mut self, values: &[T], not: &[T], needs_http: bool, one: impl Fn(&T) -> Permission) -> Result<(), NeedsHttp> {
        if (values.is_empty() && not.is_empty()) || !self.builder.usable(needs_http)? {
            return Ok(());
        }
        if !values.is_empty() {
            self.and.push(Permission::Or(values.iter().map(&one).collect()));
        }
        if !not.is_empty() {
            self.and.push(Permission::Not(Box::new(Permission::Or(not.iter().map(&one).collect()))));
        }
        Ok(())
    }
}

struct Principals<'b> {
    builder: &'b Builder<'b>,
    and: Vec<Principal>,
}

impl Principals<'_> {
    /// One of `values`, and none of `not`.
    fn add<T>(&mut self, values: &[T], not: &[T], needs_http: bool, one: impl Fn(&T) -> Principal) -> Result<(), NeedsHttp> {
        if (values.is_empty() && not.is_empty()) || !self.builder.usable(needs_http)? {
            return Ok(());
        }
        if !values.is_empty() {
            self.and.push(Principal::Or(values.iter().map(&one).collect()));
        }
        if !not.is_empty() {
            self.and.push(Principal::Not(Box::new(Principal::Or(not.iter().map(&one).collect()))));
        }
        Ok(())
    }

    /// The same about the JWT of a request; istiod writes a single value without an `or` around it.
    fn add_metadata(&mut self, values: &[String], not: &[String], one: impl Fn(&String) -> Principal) -> Result<(), NeedsHttp> {
        let at = self.and.len();
        self.add(values, not, true, one)?;
        let unwrap = |principal: Principal| match principal {
            Principal::Or(mut list) if list.len() == 1 => list.remove(0),
            other => other,
        };
        let added = self.and.split_off(at).into_iter().map(|principal| match principal {
            Principal::Not(inner) => Principal::Not(Box::new(unwrap(*inner))),
            other => unwrap(other),
        });
        self.and.extend(added);
        Ok(())
    }

    /// SPIFFE identities; `cluster.local` and every trust domain of ours stand for each other.
    fn identities(&mut self, values: &[String], not: &[String]) -> Result<(), NeedsHttp> {
        let scope = self.builder.scope;
        let expand = |values: &[String]| values.iter().flat_map(|value| in_trust_domains(scope, value)).collect::<Vec<_>>();
        self.add(&expand(values), &expand(not), false, |id| Principal::Authenticated(Some(text(id, "spiffe://", false))))
    }

    fn condition(&mut self, condition: &Condition, own_namespace: &str) -> Result<(), NeedsHttp> {
        match (&condition.key, &condition.values, &condition.not_values) {
            (ConditionKey::SourceIp, ConditionValues::Blocks(values), ConditionValues::Blocks(not)) => {
                self.add(values, not, false, |block| Principal::DirectRemoteIp(block.0))
            }
            (ConditionKey::RemoteIp, ConditionValues::Blocks(values), ConditionValues::Blocks(not)) => {
                self.add(values, not, false, |block| Principal::RemoteIp(block.0))
            }
            (key, ConditionValues::Text(values), ConditionValues::Text(not)) => match key {
                ConditionKey::SourcePrincipal => self.identities(values, not),
                ConditionKey::SourceNamespace => self.add(values, not, false, |name| namespace(name)),
                ConditionKey::SourceServiceAccount => self.add(values, not, false, |id| service_account(id, own_namespace)),
                ConditionKey::RequestHeader(name) => {
                    self.add(values, not, true, |value| Principal::Header(header(name, value, false)))
                }
                ConditionKey::RequestPrincipal => self.add_metadata(values, not, |id| request_principal(id)),
                ConditionKey::RequestAudiences => {
                    self.add_metadata(values, not, |value| claim(&["aud"], text(value, "", false), EITHER))
                }
                ConditionKey::RequestPresenter => {
                    self.add_metadata(values, not, |value| claim(&["azp"], text(value, "", false), EITHER))
                }
                ConditionKey::RequestClaim(path) => {
                    let path: Vec<&str> = path.iter().map(String::as_str).collect();
                    self.add_metadata(values, not, |value| claim(&path, text(value, "", false), EITHER))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// A principal as it is, or once for each trust domain when it names one of ours or `cluster.local`, which means the local one.
fn in_trust_domains(scope: &Scope<'_>, principal: &str) -> Vec<String> {
    let domains = scope.trust_domains();
    match principal.split_once('/') {
        Some((domain, rest)) if domain == "cluster.local" || domains.contains(&domain) => {
            domains.iter().map(|domain| format!("{domain}/{rest}")).collect()
        }
        _ => vec![principal.to_owned()],
    }
}

/// Istio's value syntax: exact, `prefix*`, `*suffix`, or `*` for anything that is not empty.
fn text(value: &str, prefix: &str, ignore_case: bool) -> StringMatcher {
    let pattern = if value == "*" {
        regex(".+")
    } else if let Some(rest) = value.strip_prefix('*') {
        if prefix.is_empty() { StringMatch::Suffix(rest.to_owned()) } else { regex(&format!("{prefix}.*{}", regex_escape(rest))) }
    } else if let Some(rest) = value.strip_suffix('*') {
        StringMatch::Prefix(format!("{prefix}{rest}"))
    } else {
        StringMatch::Exact(format!("{prefix}{value}"))
    };
    StringMatcher { ignore_case: ignore_case && !matches!(pattern, StringMatch::Regex(_)), pattern }
}

/// A pattern made here. One that does not compile, which only its length could cause, becomes one that matches nothing a
/// certificate or a header can hold.
fn regex(source: &str) -> StringMatch {
    Regex::new(source).map_or_else(|_| StringMatch::Exact("\0".to_owned()), StringMatch::Regex)
}

/// Escapes what is special, but leaves slashes, dashes and dots of identities readable as istiod does.
fn regex_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' | '.') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn header(name: &str, value: &str, ignore_case: bool) -> HeaderMatcher {
    let value = if value == "*" { HeaderMatch::Present(true) } else { HeaderMatch::String(text(value, "", ignore_case)) };
    HeaderMatcher { name: name.to_owned(), value, invert: false, treat_missing_as_empty: false }
}

/// A path, or Istio's template with `{*}` and `{**}`.
fn path_permission(path: &str) -> Permission {
    if path.contains("{*}") || path.contains("{**}") {
        return Permission::UriTemplate(path.replace("{**}", "**").replace("{*}", "*"));
    }
    Permission::UrlPath(text(path, "", false))
}

fn namespace(name: &str) -> Principal {
    let name = name.split('*').map(regex_escape).collect::<Vec<_>>().join(".*");
    Principal::Authenticated(Some(regex(&format!(".*/ns/{name}/.*")).into()))
}

/// `namespace/name`, or a name of the policy's own namespace.
fn service_account(id: &str, own_namespace: &str) -> Principal {
    let (namespace, name) = id.split_once('/').unwrap_or((own_namespace, id));
    let (namespace, name) = (regex_escape(namespace), regex_escape(name));
    Principal::Authenticated(Some(regex(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{name}(/.+)?")).into()))
}

/// `issuer/subject` of a verified JWT.
fn request_principal(id: &str) -> Principal {
    let one = |issuer, subject| {
        Principal::And(vec![claim(&["iss"], issuer, MetadataForm::Text), claim(&["sub"], subject, MetadataForm::Text)])
    };
    if id == "*" {
        return one(text("*", "", false), text("*", "", false));
    }
    let (issuer, subject) = match id.rsplit_once('/') {
        Some((issuer, subject)) => (text(issuer, "", false), text(subject, "", false)),
        // `*suffix`, `prefix*` without a slash: the pattern is about one end, the other may be anything.
        None if id.starts_with('*') => (text("*", "", false), text(id, "", false)),
        None if id.ends_with('*') => (text(id, "", false), text("*", "", false)),
        None => (text(id, "", false), text("", "", false)),
    };
    one(issuer, subject)
}

fn claim(path: &[&str], value: StringMatcher, form: MetadataForm) -> Principal {
    let path = std::iter::once("payload").chain(path.iter().copied()).map(str::to_owned).collect();
    Principal::Metadata(MetadataMatcher { filter: JWT_FILTER.to_owned(), path, value, form, invert: false })
}
