//! `security.istio.io` PeerAuthentication and AuthorizationPolicy.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::de::Located;
use super::super::values::{Block, Ignored, Port};
use super::Selector;

/// [PeerAuthentication](https://istio.io/latest/docs/reference/config/security/peer_authentication/).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct PeerAuthentication {
    pub(in super::super) selector: Option<Selector>,
    #[serde(default)]
    pub(in super::super) mtls: MutualTls,
    #[serde(default)]
    pub(in super::super) port_level_mtls: BTreeMap<PortKey, MutualTls>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct MutualTls {
    #[serde(default)]
    pub(in super::super) mode: Option<MtlsMode>,
}

impl MutualTls {
    /// The mode, unless it is left to the level above.
    pub(in super::super) fn mode(self) -> Option<MtlsMode> {
        self.mode.filter(|mode| *mode != MtlsMode::Unset)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum MtlsMode {
    Strict,
    Permissive,
    Disable,
    Unset,
}

/// A port as the key of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct PortKey(pub(in super::super) Port);

impl<'de> Deserialize<'de> for PortKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// [AuthorizationPolicy](https://istio.io/latest/docs/reference/config/security/authorization-policy/).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct AuthorizationPolicy {
    pub(in super::super) selector: Option<Selector>,
    pub(in super::super) target_ref: Option<Ignored>,
    #[serde(default)]
    pub(in super::super) target_refs: Vec<Ignored>,
    #[serde(default)]
    pub(in super::super) action: Action,
    pub(in super::super) provider: Option<Located<ProviderName>>,
    #[serde(default)]
    pub(in super::super) rules: Vec<Rule>,
}

/// Who decides for the action CUSTOM, by its name in MeshConfig.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ProviderName {
    #[serde(default)]
    pub(in super::super) name: String,
}

/// What a policy does. CUSTOM hands the decision to an extension provider of MeshConfig.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) enum Action {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "ALLOW" => Ok(Self::Allow),
            "DENY" => Ok(Self::Deny),
            "AUDIT" => Ok(Self::Audit),
            "CUSTOM" => Ok(Self::Custom),
            other => Err(serde::de::Error::unknown_variant(other, &["ALLOW", "DENY", "AUDIT", "CUSTOM"])),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Rule {
    #[serde(default)]
    pub(in super::super) from: Vec<From>,
    #[serde(default)]
    pub(in super::super) to: Vec<To>,
    #[serde(default)]
    pub(in super::super) when: Vec<Condition>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct From {
    #[serde(default)]
    pub(in super::super) source: Source,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(in super::super) struct Source {
    pub(in super::super) principals: Vec<String>,
    pub(in super::super) not_principals: Vec<String>,
    pub(in super::super) request_principals: Vec<String>,
    pub(in super::super) not_request_principals: Vec<String>,
    pub(in super::super) namespaces: Vec<String>,
    pub(in super::super) not_namespaces: Vec<String>,
    pub(in super::super) service_accounts: Vec<String>,
    pub(in super::super) not_service_accounts: Vec<String>,
    pub(in super::super) ip_blocks: Vec<Block>,
    pub(in super::super) not_ip_blocks: Vec<Block>,
    pub(in super::super) remote_ip_blocks: Vec<Block>,
    pub(in super::super) not_remote_ip_blocks: Vec<Block>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct To {
    #[serde(default)]
    pub(in super::super) operation: Operation,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(in super::super) struct Operation {
    pub(in super::super) hosts: Vec<String>,
    pub(in super::super) not_hosts: Vec<String>,
    pub(in super::super) ports: Vec<PortText>,
    pub(in super::super) not_ports: Vec<PortText>,
    pub(in super::super) methods: Vec<String>,
    pub(in super::super) not_methods: Vec<String>,
    pub(in super::super) paths: Vec<String>,
    pub(in super::super) not_paths: Vec<String>,
}

/// A port as text, as policies write it.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct PortText(pub(in super::super) Port);

impl<'de> Deserialize<'de> for PortText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "ConditionFields")]
pub(in super::super) struct Condition {
    pub(in super::super) key: ConditionKey,
    pub(in super::super) values: ConditionValues,
    pub(in super::super) not_values: ConditionValues,
}

/// What a condition asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum ConditionKey {
    RequestHeader(String),
    SourceIp,
    RemoteIp,
    SourceNamespace,
    SourcePrincipal,
    SourceServiceAccount,
    RequestPrincipal,
    RequestAudiences,
    RequestPresenter,
    /// `request.auth.claims[a][b]`
    RequestClaim(Vec<String>),
    DestinationIp,
    DestinationPort,
    ConnectionSni,
}

/// Values in the type that the key asks for.
#[derive(Clone, Debug)]
pub(in super::super) enum ConditionValues {
    Text(Vec<String>),
    Blocks(Vec<Block>),
    Ports(Vec<Port>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConditionFields {
    key: String,
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    not_values: Vec<String>,
}

impl TryFrom<ConditionFields> for Condition {
    type Error = String;

    fn try_from(fields: ConditionFields) -> Result<Self, String> {
        let key: ConditionKey = fields.key.parse()?;
        if fields.values.is_empty() && fields.not_values.is_empty() {
            return Err(format!("condition {:?}: expected values or notValues", fields.key));
        }
        let typed = |values: Vec<String>| -> Result<ConditionValues, String> {
            Ok(match key {
                ConditionKey::SourceIp | ConditionKey::RemoteIp | ConditionKey::DestinationIp => {
                    ConditionValues::Blocks(values.iter().map(|value| value.parse()).collect::<Result<_, _>>()?)
                }
                ConditionKey::DestinationPort => {
                    ConditionValues::Ports(values.iter().map(|value| value.parse()).collect::<Result<_, _>>()?)
                }
                _ => ConditionValues::Text(values),
            })
        };
        let (values, not_values) = (typed(fields.values)?, typed(fields.not_values)?);
        Ok(Self { key, values, not_values })
    }
}

impl std::str::FromStr for ConditionKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bracketed = |prefix: &str| text.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']').filter(|s| !s.is_empty());
        if let Some(header) = bracketed("request.headers") {
            return Ok(Self::RequestHeader(header.to_ascii_lowercase()));
        }
        if let Some(claims) = bracketed("request.auth.claims") {
            return Ok(Self::RequestClaim(claims.split("][").map(str::to_owned).collect()));
        }
        Ok(match text {
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::SourceNamespace,
            "source.principal" => Self::SourcePrincipal,
            "source.serviceAccount" => Self::SourceServiceAccount,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::RequestAudiences,
            "request.auth.presenter" => Self::RequestPresenter,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::ConnectionSni,
            other if other.starts_with("experimental.envoy.filters.") => {
                return Err(format!("condition {other:?}: not supported by skiff"));
            }
            other => {
                return Err(format!(
                    "condition {other:?}: expected one of request.headers[name], source.ip, remote.ip, source.namespace, \
                     source.principal, source.serviceAccount, request.auth.principal, request.auth.audiences, \
                     request.auth.presenter, request.auth.claims[name], destination.ip, destination.port, connection.sni"
                ));
            }
        })
    }
}
