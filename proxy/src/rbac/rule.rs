//! Conditions, compiled: permissions and principals are one language with different words allowed.

use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;
use serde_json::Value;

use super::header::HeaderRule;
use super::template::UriTemplate;
use super::{Doubt, Metadata, RequestContext};
use crate::config::{MetadataForm, MetadataMatcher, Permission, Principal, RbacAction, StringMatch, StringMatcher};
use crate::http::head::RequestHead;
use crate::tls::PeerCertificate;

#[derive(Debug)]
pub(super) enum Rule {
    Any,
    All(Vec<Rule>),
    OneOf(Vec<Rule>),
    Not(Box<Rule>),
    Header(HeaderRule),
    UrlPath(StringMatcher, Doubt),
    UriTemplate(UriTemplate),
    DestinationIp(IpNet),
    DestinationPort(Range<u32>),
    ServerName(StringMatcher),
    Authenticated(Option<StringMatcher>, Doubt),
    DirectRemoteIp(IpNet),
    RemoteIp(IpNet),
    Metadata(MetadataMatcher),
}

/// Compiles the rules of one action.
#[derive(Clone, Copy)]
pub(super) struct Compiler {
    pub(super) action: RbacAction,
}

impl Compiler {
    pub(super) fn permissions(self, permissions: &[Permission]) -> Result<Rule, String> {
        Ok(Rule::OneOf(self.each_permission(permissions, self.doubt())?))
    }

    pub(super) fn principals(self, principals: &[Principal]) -> Result<Rule, String> {
        Ok(Rule::OneOf(self.each_principal(principals, self.doubt())?))
    }

    fn doubt(self) -> Doubt {
        match self.action {
            RbacAction::Allow => Doubt::Miss,
            RbacAction::Deny | RbacAction::Log => Doubt::Match,
        }
    }

    fn each_permission(self, permissions: &[Permission], doubt: Doubt) -> Result<Vec<Rule>, String> {
        let rules = permissions.iter().map(|permission| self.permission(permission, doubt)).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() { Err("permissions: expected at least one".to_owned()) } else { Ok(rules) }
    }

    fn each_principal(self, principals: &[Principal], doubt: Doubt) -> Result<Vec<Rule>, String> {
        let rules = principals.iter().map(|principal| self.principal(principal, doubt)).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() { Err("principals: expected at least one".to_owned()) } else { Ok(rules) }
    }

    fn permission(self, permission: &Permission, doubt: Doubt) -> Result<Rule, String> {
        Ok(match permission {
            Permission::Any => Rule::Any,
            Permission::And(all) => Rule::All(self.each_permission(all, doubt)?),
            Permission::Or(any) => Rule::OneOf(self.each_permission(any, doubt)?),
            Permission::Not(inner) => Rule::Not(Box::new(self.permission(inner, doubt.flipped())?)),
            Permission::Header(header) => Rule::Header(HeaderRule::compile(header, self.action, doubt)),
            Permission::UrlPath(path) => Rule::UrlPath(path.clone(), doubt),
            Permission::UriTemplate(template) => Rule::UriTemplate(UriTemplate::compile(template, doubt)?),
            Permission::DestinationIp(net) => Rule::DestinationIp(*net),
            Permission::DestinationPort(port) => Rule::DestinationPort(u32::from(*port)..u32::from(*port) + 1),
            Permission::DestinationPortRange { start, end } if start < end => {
                Rule::DestinationPort(u32::from(*start)..u32::from(*end))
            }
            Permission::DestinationPortRange { start, end } => {
                return Err(format!("destination_port_range: expected start below end, got {start}..{end}"));
            }
            Permission::RequestedServerName(name) => Rule::ServerName(lenient(name, doubt)),
            Permission::Metadata(metadata) => Rule::Metadata(metadata.clone()),
        })
    }

    fn principal(self, principal: &Principal, doubt: Doubt) -> Result<Rule, String> {
        Ok(match principal {
            Principal::Any => Rule::Any,
            Principal::And(all) => Rule::All(self.each_principal(all, doubt)?),
            Principal::Or(any) => Rule::OneOf(self.each_principal(any, doubt)?),
            Principal::Not(inner) => Rule::Not(Box::new(self.principal(inner, doubt.flipped())?)),
            Principal::Authenticated(name) => Rule::Authenticated(name.clone(), doubt),
            Principal::DirectRemoteIp(net) => Rule::DirectRemoteIp(*net),
            Principal::RemoteIp(net) => Rule::RemoteIp(*net),
            Principal::Header(header) => Rule::Header(HeaderRule::compile(header, self.action, doubt)),
            Principal::UrlPath(path) => Rule::UrlPath(path.clone(), doubt),
            Principal::Metadata(metadata) => Rule::Metadata(metadata.clone()),
        })
    }
}

/// Host names have no case: a condition that denies ignores it whatever the rule says.
pub(super) fn lenient(matcher: &StringMatcher, doubt: Doubt) -> StringMatcher {
    let regex = matches!(matcher.pattern, StringMatch::Regex(_));
    let ignore_case = !regex && (matcher.ignore_case || doubt == Doubt::Match);
    StringMatcher { pattern: matcher.pattern.clone(), ignore_case }
}

impl Rule {
    pub(super) fn matches(&self, context: &RequestContext<'_>) -> bool {
        let connection = context.connection;
        match self {
            Self::Any => true,
            Self::All(rules) => rules.iter().all(|rule| rule.matches(context)),
            Self::OneOf(rules) => rules.iter().any(|rule| rule.matches(context)),
            Self::Not(rule) => !rule.matches(context),
            Self::Header(header) => context.request.is_some_and(|head| header.matches(head)),
            Self::UrlPath(wanted, doubt) => path(context.request).is_some_and(|path| doubt.matches(wanted, path)),
            Self::UriTemplate(template) => path(context.request).is_some_and(|path| template.matches(path)),
            Self::DestinationIp(net) => contains(net, connection.local.ip()),
            Self::DestinationPort(ports) => ports.contains(&connection.local.port().into()),
            Self::ServerName(wanted) => server_name_matches(wanted, connection.server_name.as_deref().unwrap_or_default()),
            Self::Authenticated(wanted, doubt) => {
                connection.peer.as_ref().is_some_and(|peer| wanted.as_ref().is_none_or(|it| is_principal(peer, it, *doubt)))
            }
            Self::DirectRemoteIp(net) => contains(net, connection.remote.ip()),
            Self::RemoteIp(net) => contains(net, context.remote),
            Self::Metadata(wanted) => metadata_matches(wanted, context.metadata),
        }
    }
}

/// An address that came in over a dual-stack socket counts as what it is.
fn contains(net: &IpNet, ip: IpAddr) -> bool {
    net.contains(&ip.to_canonical())
}

/// The path without query and fragment; `None` for CONNECT, which has none.
fn path(request: Option<&RequestHead>) -> Option<&[u8]> {
    let path = request?.path_without_query();
    let end = path.iter().position(|b| *b == b'#').unwrap_or(path.len());
    (!path.is_empty()).then_some(&path[..end])
}

/// Envoy lower-cases SNI before it matches; no SNI counts as an empty one.
fn server_name_matches(wanted: &StringMatcher, name: &str) -> bool {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        wanted.matches(name.to_ascii_lowercase().as_bytes())
    } else {
        wanted.matches(name.as_bytes())
    }
}

/// The principal is the URI SANs, else the DNS SANs, else the subject; in doubt each of these names.
fn is_principal(peer: &PeerCertificate, wanted: &StringMatcher, doubt: Doubt) -> bool {
    let uri = || peer.uri_sans.iter().any(|name| wanted.matches(name.as_bytes()));
    let dns = || peer.dns_sans.iter().any(|name| wanted.matches(name.as_bytes()));
    let subject = || wanted.matches(peer.subject.as_bytes());
    match doubt {
        Doubt::Match => uri() || dns() || subject(),
        Doubt::Miss if !peer.uri_sans.is_empty() => uri(),
        Doubt::Miss if !peer.dns_sans.is_empty() => dns(),
        Doubt::Miss => subject(),
    }
}

/// Whether what filters have found out is as wanted.
pub(crate) fn metadata_matches(wanted: &MetadataMatcher, metadata: Option<&Metadata>) -> bool {
    let text = |value: &Value| value.as_str().is_some_and(|text| wanted.value.matches(text.as_bytes()));
    let found = metadata.and_then(|metadata| metadata.get(&wanted.filter, &wanted.path));
    let matched = match found {
        Some(Value::Array(list)) => wanted.form != MetadataForm::Text && list.iter().any(text),
        Some(value) => wanted.form != MetadataForm::Element && text(value),
        None => false,
    };
    matched != wanted.invert
}
