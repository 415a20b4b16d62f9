//! Role-based access control (Envoy `config.rbac.v3`), the form that AuthorizationPolicy takes.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Serialize;

use super::{HeaderMatcher, StringMatcher};

/// One `envoy.filters.http.rbac` filter: rules that decide and shadow rules that only count.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rbac {
    /// Name of the filter in its chain, by which routes override it.
    pub name: String,
    /// `None` lets everything pass.
    pub rules: Option<RbacRules>,
    /// Evaluated beside, recorded, never enforced (dry run).
    pub shadow_rules: Option<RbacRules>,
    /// Prefix of the shadow statistics.
    pub shadow_stat_prefix: String,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RbacAction {
    /// Only what matches passes.
    Allow,
    /// What matches does not pass.
    Deny,
    /// A match is recorded (AUDIT); everything passes.
    Log,
}

/// Policies under one action. A request matches when any policy does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RbacRules {
    /// What a match means.
    pub action: RbacAction,
    /// By Istio's name, `ns[bookinfo]-policy[ratings-allow]-rule[0]`; evaluated in this order.
    pub policies: BTreeMap<String, Policy>,
}

/// Matches when any permission and any principal do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Policy {
    /// What is done.
    pub permissions: Vec<Permission>,
    /// Who does it.
    pub principals: Vec<Principal>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Permission {
    /// Anything.
    Any,
    /// All of them.
    And(Vec<Permission>),
    /// One of them.
    Or(Vec<Permission>),
    /// Not this.
    Not(Box<Permission>),
    /// A header, pseudo headers included. On TCP it never matches.
    Header(HeaderMatcher),
    /// The normalised path without query. On TCP it never matches.
    UrlPath(StringMatcher),
    /// The normalised path without query against Envoy's URI template.
    UriTemplate(String),
    /// The address that the connection came to.
    DestinationIp(IpNet),
    /// The port that the connection came to.
    DestinationPort(u16),
    /// Ports `start..end`.
    DestinationPortRange {
        /// First.
        start: u16,
        /// First that no longer matches.
        end: u16,
    },
    /// SNI.
    RequestedServerName(StringMatcher),
    /// Dynamic metadata.
    Metadata(MetadataMatcher),
}

/// Who does it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Principal {
    /// Anybody.
    Any,
    /// All of them.
    And(Vec<Principal>),
    /// One of them.
    Or(Vec<Principal>),
    /// Not this.
    Not(Box<Principal>),
    /// A verified client certificate whose URI SAN (else DNS SAN, else subject) matches; `None` is any certificate.
    Authenticated(Option<StringMatcher>),
    /// The address at the other end of the connection (`direct_remote_ip`).
    DirectRemoteIp(IpNet),
    /// The client's address, from x-forwarded-for where that is trusted.
    RemoteIp(IpNet),
    /// A header. On TCP it never matches.
    Header(HeaderMatcher),
    /// The normalised path without query.
    UrlPath(StringMatcher),
    /// Dynamic metadata, such as the claims of a verified JWT.
    Metadata(MetadataMatcher),
}

/// A condition on dynamic metadata, which verified JWT claims are part of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetadataMatcher {
    /// Name of the filter that set it (`envoy.filters.http.jwt_authn`).
    pub filter: String,
    /// Keys from the root.
    pub path: Vec<String>,
    /// What is asked of the text. Missing metadata never matches.
    pub value: StringMatcher,
    /// Which text.
    pub form: MetadataForm,
    /// The condition is turned around.
    pub invert: bool,
}

/// What is found at a [`MetadataMatcher`]'s path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MetadataForm {
    /// A text (`string_match`).
    Text,
    /// A list, one element of which is the text (`list_match.one_of`).
    Element,
    /// One or the other.
    TextOrElement,
}
