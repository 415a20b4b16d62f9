//! AuthorizationPolicy with the action CUSTOM: another service decides about what its rules match.
//!
//! As istiod writes it: an RBAC filter whose shadow rules say what matches, and an external authorisation filter that asks
//! about those requests only. Both come before every other filter. Where nobody can be asked, on TCP ports, what the rules
//! match is refused.

use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::{
    AppendAction, AuthzBody, AuthzService, ExtAuthz, Fraction, GrpcAuthz, HeaderValueOption, HttpAuthz, HttpFilter, MetadataForm,
    MetadataMatcher, Rbac, RbacAction, RbacRules, StringMatch, StringMatcher,
};

use super::authz::{Layer, is_dry_run, policies, rules};
use super::de::FieldError;
use super::documents::Resource;
use super::schema::mesh::{ErrorStatus, ExtensionProvider, RequestBodyInCheck};
use super::schema::security::{Action, AuthorizationPolicy};
use super::scope::Scope;
use super::values::GoDuration;
use super::{Output, Selection, clusters};

/// istiod's names: the rules of policies, the keys of their shadow results, the filter that they are kept under.
const RULE_PREFIX: &str = "istio-ext-authz";
const SHADOW_PREFIX: &str = "istio_ext_authz_";
const RBAC_FILTER: &str = "envoy.filters.http.rbac";
const EXT_AUTHZ_FILTER: &str = "envoy.filters.http.ext_authz";
/// istiod's own: as good as no limit, so that the service's own decides.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Says what is wrong with the policies' providers; otherwise which service has to be reachable.
pub(super) fn check(scope: &Scope<'_>, output: &mut Output) -> Selection {
    let mut selection = Selection::new();
    let mut first: Option<&str> = None;
    for policy in enforced(scope, output) {
        let found = provider(scope, policy).and_then(|found| {
            match first {
                Some(other) if other != found.name => {
                    return Err(at_provider(policy, format!("{}: {other} decides about this workload already", found.name)));
                }
                _ => first = Some(&found.name),
            }
            service(scope, policy, found)
        });
        match found {
            Ok(asked) => {
                selection.insert(asked);
            }
            Err(error) => output.errors.push(policy.error(error)),
        }
    }
    selection
}

fn enforced<'s>(scope: &'s Scope<'_>, output: &mut Output) -> Vec<&'s Resource<AuthorizationPolicy>> {
    let (dry, enforced): (Vec<_>, Vec<_>) = policies(scope, Action::Custom).partition(|policy| is_dry_run(policy));
    dry.iter().for_each(|policy| output.warn(policy.remark("a dry run of the action CUSTOM asks nobody")));
    enforced
}

/// The filters before all others; none where no policy wants them.
pub(super) fn http_filters(scope: &Scope<'_>) -> Vec<HttpFilter> {
    let policies: Vec<_> = policies(scope, Action::Custom).filter(|policy| !is_dry_run(policy)).collect();
    // What is wrong with a provider has been said; nothing is served then.
    let Some(provider) = policies.first().and_then(|policy| provider(scope, policy).ok()) else { return Vec::new() };
    let Some(authz) = filter(scope, provider) else { return Vec::new() };
    let prefix = format!("{RULE_PREFIX}-");
    let rbac = Rbac {
        name: RBAC_FILTER.to_owned(),
        rules: None,
        shadow_rules: Some(rules(scope, &policies, RbacAction::Deny, Layer::Http, &prefix)),
        shadow_stat_prefix: SHADOW_PREFIX.to_owned(),
    };
    vec![HttpFilter::Rbac(Arc::new(rbac)), HttpFilter::ExtAuthz(Arc::new(authz))]
}

/// Nobody is asked about TCP connections: what would be asked about is refused.
pub(super) fn network_rules(scope: &Scope<'_>, output: &mut Output) -> Option<Arc<RbacRules>> {
    let policies = enforced(scope, output);
    for policy in &policies {
        output.warn(policy.remark("CUSTOM asks nobody about TCP ports: what its rules match there is refused"));
    }
    let prefix = format!("{RULE_PREFIX}-");
    (!policies.is_empty()).then(|| Arc::new(rules(scope, &policies, RbacAction::Deny, Layer::Tcp, &prefix)))
}

fn provider<'s>(scope: &'s Scope<'_>, policy: &Resource<AuthorizationPolicy>) -> Result<&'s ExtensionProvider, FieldError> {
    let name = policy.spec.provider.as_ref().map(|provider| provider.value.name.as_str()).unwrap_or_default();
    let known = || scope.mesh.extension_providers.iter().filter(|provider| is_authorizer(provider));
    known().find(|provider| provider.name == name).ok_or_else(|| {
        let names: Vec<_> = known().map(|provider| provider.name.as_str()).collect();
        let expected = match names.as_slice() {
            [] => "MeshConfig has none with envoyExtAuthzHttp or envoyExtAuthzGrpc".to_owned(),
            names => format!("expected one of {}", names.join(", ")),
        };
        at_provider(policy, format!("{name:?}: no such extension provider, {expected}"))
    })
}

fn is_authorizer(provider: &ExtensionProvider) -> bool {
    provider.envoy_ext_authz_http.is_some() || provider.envoy_ext_authz_grpc.is_some()
}

fn at_provider(policy: &Resource<AuthorizationPolicy>, reason: String) -> FieldError {
    match &policy.spec.provider {
        Some(provider) => provider.error(reason),
        None => FieldError::at(policy.line, "spec.provider".to_owned(), reason),
    }
}

/// Host and port of the provider, which must be a service of the mesh. A namespace before the host says nothing here: hosts are
/// unique.
fn service(
    scope: &Scope<'_>,
    policy: &Resource<AuthorizationPolicy>,
    provider: &ExtensionProvider,
) -> Result<(String, u16), FieldError> {
    let (host, port) = address(provider);
    let known = scope.service(host).is_some_and(|service| service.port(port).is_some());
    if known {
        return Ok((host.to_owned(), port));
    }
    Err(at_provider(policy, format!("{}: no ServiceEntry declares {host} with port {port}", provider.name)))
}

fn address(provider: &ExtensionProvider) -> (&str, u16) {
    let (service, port) = match (&provider.envoy_ext_authz_http, &provider.envoy_ext_authz_grpc) {
        (Some(http), _) => (http.value.service.as_str(), http.value.port),
        (None, Some(grpc)) => (grpc.value.service.as_str(), grpc.value.port),
        (None, None) => return ("", 0),
    };
    (service.split_once('/').map_or(service, |(_, host)| host), port.get())
}

fn filter(scope: &Scope<'_>, provider: &ExtensionProvider) -> Option<ExtAuthz> {
    let (host, port) = address(provider);
    scope.service(host)?;
    let cluster = clusters::name(port, "", host);
    if let Some(http) = &provider.envoy_ext_authz_http {
        let http = &http.value;
        let told = http.include_request_headers_in_check.iter().chain(&http.include_headers_in_check);
        let service = HttpAuthz {
            cluster,
            path_prefix: http.path_prefix.clone(),
            headers_to_add: http.include_additional_headers_in_check.iter().map(|(name, value)| added(name, value)).collect(),
            upstream_headers: patterns(&http.headers_to_upstream_on_allow),
            client_headers: patterns(&http.headers_to_downstream_on_deny),
            client_headers_on_success: patterns(&http.headers_to_downstream_on_allow),
            ..HttpAuthz::default()
        };
        let told: Vec<String> = told.cloned().collect();
        let mut filter = common(AuthzService::Http(service), http.timeout.as_ref(), http.fail_open, http.status_on_error);
        filter.allowed_headers = (!told.is_empty()).then(|| patterns(&told));
        filter.request_body = http.include_request_body_in_check.map(body);
        filter.clear_route_cache = http.clear_route_cache;
        return Some(filter);
    }
    let grpc = &provider.envoy_ext_authz_grpc.as_ref()?.value;
    // istiod's authority: a name that may stand there.
    let service = GrpcAuthz { authority: cluster.replace('|', "_."), cluster, initial_metadata: Vec::new() };
    let mut filter = common(AuthzService::Grpc(service), grpc.timeout.as_ref(), grpc.fail_open, grpc.status_on_error);
    filter.request_body = grpc.include_request_body_in_check.map(body);
    filter.clear_route_cache = grpc.clear_route_cache;
    Some(filter)
}

fn common(service: AuthzService, timeout: Option<&GoDuration>, fail_open: bool, status: Option<ErrorStatus>) -> ExtAuthz {
    ExtAuthz {
        name: EXT_AUTHZ_FILTER.to_owned(),
        service,
        timeout: timeout.map_or(TIMEOUT, |timeout| timeout.0),
        failure_mode_allow: fail_open,
        failure_mode_allow_header_add: false,
        status_on_error: status.map_or(403, |status| status.0),
        request_body: None,
        clear_route_cache: false,
        allowed_headers: None,
        disallowed_headers: Vec::new(),
        encode_raw_headers: false,
        include_peer_certificate: false,
        include_tls_session: false,
        metadata_namespaces: Vec::new(),
        enabled: Fraction::ALL,
        enabled_metadata: Some(MetadataMatcher {
            filter: RBAC_FILTER.to_owned(),
            path: vec![format!("{SHADOW_PREFIX}shadow_effective_policy_id")],
            value: StringMatcher::prefix(RULE_PREFIX),
            form: MetadataForm::Text,
            invert: false,
        }),
        deny_at_disable: false,
        validate_mutations: false,
    }
}

fn added(name: &str, value: &str) -> HeaderValueOption {
    let (name, value) = (name.to_ascii_lowercase(), value.to_owned());
    HeaderValueOption { name, value, action: AppendAction::OverwriteIfExistsOrAdd, keep_empty_value: false }
}

fn body(body: RequestBodyInCheck) -> AuthzBody {
    AuthzBody {
        max_bytes: body.max_request_bytes.get(),
        allow_partial: body.allow_partial_message,
        pack_as_bytes: body.pack_as_bytes,
    }
}

/// Names of headers, `*` at one end standing for anything; without regard to case.
fn patterns(names: &[String]) -> Vec<StringMatcher> {
    let pattern = |name: &String| {
        let pattern = match (name.strip_suffix('*'), name.strip_prefix('*')) {
            (Some(prefix), _) => StringMatch::Prefix(prefix.to_owned()),
            (None, Some(suffix)) => StringMatch::Suffix(suffix.to_owned()),
            (None, None) => StringMatch::Exact(name.clone()),
        };
        StringMatcher { pattern, ignore_case: true }
    };
    names.iter().map(pattern).collect()
}
