//! `networking.istio.io` Sidecar.

use std::net::IpAddr;

use serde::Deserialize;

use super::super::de::Located;
use super::super::values::{HostFilter, Ignored, InboundEndpoint, Port, Protocol, Refused};
use super::WorkloadSelector;
use super::destination_rule::ConnectionPool;

/// [Sidecar](https://istio.io/latest/docs/reference/config/networking/sidecar/).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in super::super) struct Sidecar {
    pub(in super::super) workload_selector: Option<WorkloadSelector>,
    #[serde(default)]
    pub(in super::super) ingress: Vec<Located<Ingress>>,
    #[serde(default)]
    pub(in super::super) egress: Vec<Located<Egress>>,
    pub(in super::super) outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    pub(in super::super) inbound_connection_pool: Option<ConnectionPool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct Ingress {
    pub(in super::super) port: SidecarPort,
    pub(in super::super) bind: Option<IpAddr>,
    #[serde(default)]
    capture_mode: CaptureMode,
    pub(in super::super) default_endpoint: Option<InboundEndpoint>,
    pub(in super::super) connection_pool: Option<ConnectionPool>,
    tls: Option<Refused>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "capture modes are checked while reading")]
pub(in super::super) struct Egress {
    pub(in super::super) port: Option<SidecarPort>,
    pub(in super::super) bind: Option<IpAddr>,
    #[serde(default)]
    capture_mode: CaptureMode,
    pub(in super::super) hosts: Vec<HostFilter>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "names of ports mean nothing here")]
pub(in super::super) struct SidecarPort {
    pub(in super::super) number: Port,
    pub(in super::super) protocol: Protocol,
    #[serde(default)]
    name: Ignored,
    target_port: Option<Refused>,
}

/// Without iptables only NONE is possible, and it is the default.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct CaptureMode;

impl<'de> Deserialize<'de> for CaptureMode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "NONE" | "DEFAULT" => Ok(Self),
            "IPTABLES" => Err(serde::de::Error::custom("\"IPTABLES\": this sidecar works without iptables, expected NONE")),
            other => Err(serde::de::Error::custom(format_args!("{other:?}: expected one of NONE, DEFAULT"))),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "refused fields are named so that their errors name them")]
pub(in super::super) struct OutboundTrafficPolicy {
    #[serde(default)]
    pub(in super::super) mode: OutboundMode,
    egress_proxy: Option<Refused>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in super::super) enum OutboundMode {
    #[default]
    AllowAny,
    RegistryOnly,
}

impl Egress {
    /// What a workload without a Sidecar imports: everything, on the ports that services declare.
    pub(in super::super) fn catch_all() -> Self {
        Self { port: None, bind: None, capture_mode: CaptureMode, hosts: vec![HostFilter::everything()] }
    }
}
