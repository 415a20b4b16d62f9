//! Where a workload can be reached, and where its sidecar listens.
//!
//! | Network | Its own addresses | What others are told |
//! |---|---|---|
//! | `awsvpc` | those of the task's interface | the same |
//! | `host` | the one that leads out of the instance | the same |
//! | `bridge`, `none` | those of the container | `SKIFF_ADVERTISED_ADDRESS`: the container's lead nowhere |
//! | of a plugin, or of the interfaces that are named | these | the same |
//! | elsewhere | the one that leads out of the machine | the same |
//!
//! `SKIFF_ADVERTISED_ADDRESS` always wins for what others are told, `INSTANCE_IP` for where the sidecar listens.

use std::net::{IpAddr, UdpSocket};

use super::application::Application;
use super::config::{AgentConfiguration, ConnectedOver, HostInfo, Interfaces, Platform};
use super::plugin::{AddressKind, HostAddress, PluginError};
use super::proof::Variables;
use crate::aws::credentials::CredentialError;
use crate::aws::imds::{Imds, ImdsError};
use crate::aws::metadata::{ContainerMetadata, MetadataClient, MetadataError};
use crate::fetch::Client;

/// A documentation address: nothing is sent there, it only makes the system choose a source address.
const ANYWHERE: (&str, u16) = ("192.0.2.1", 9);

/// Where a workload is.
pub(super) struct Host {
    /// Where its sidecar listens.
    pub(super) own: Vec<IpAddr>,
    /// Where others reach it.
    pub(super) advertised: Vec<HostAddress>,
    pub(super) application: Application,
}

/// What the environment says about addresses and containers; the rest is found out.
#[derive(Clone, Debug, Default)]
pub struct HostSettings {
    /// `INSTANCE_IP`.
    pub own: Vec<IpAddr>,
    /// `SKIFF_ADVERTISED_ADDRESS`.
    pub advertised: Vec<IpAddr>,
    /// `SKIFF_APP_CONTAINERS`.
    pub containers: Vec<String>,
}

/// Why a workload cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Nobody can reach it there.
    #[error(
        "network mode {0}: others cannot reach the container's address; set SKIFF_ADVERTISED_ADDRESS to the address of the instance \
         and map the ports of the mesh to the same ports of the host"
    )]
    Unreachable(String),
    /// It has none.
    #[error("this workload has no address: set INSTANCE_IP")]
    NoAddress,
    /// The task's metadata.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The instance's metadata.
    #[error(transparent)]
    Instance(#[from] ImdsError),
    /// A variable.
    #[error(transparent)]
    Variable(#[from] CredentialError),
    /// A plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The operating system.
    #[error("network interfaces: {0}")]
    Interfaces(#[from] std::io::Error),
}

impl Host {
    pub(super) async fn find(
        settings: HostSettings,
        agent: &AgentConfiguration,
        over: ConnectedOver,
        variables: Variables<'_>,
        client: &Client,
    ) -> Result<Self, HostError> {
        let HostSettings { own, advertised, containers } = settings;
        let kind = match over {
            ConnectedOver::Vpc => AddressKind::Vpc,
            ConnectedOver::Internet => AddressKind::Internet,
        };
        let of_kind = |ips: &[IpAddr]| ips.iter().map(|&ip| HostAddress { ip, kind }).collect::<Vec<_>>();
        let advertised = of_kind(&advertised);
        let mut application = Application::unknown();
        let found = match &agent.platform {
            Platform::Auto | Platform::Ecs => match MetadataClient::from_environment(&variables, client)? {
                Some(metadata) => {
                    let container = metadata.container().await?;
                    let found = of_kind(&of_container(&container, advertised.is_empty())?);
                    application = Application::of_task(metadata, container, containers);
                    found
                }
                None => of_kind(&source_address().into_iter().collect::<Vec<_>>()),
            },
            Platform::Ec2 => of_kind(&[Imds::from_environment(&variables, client)?.document().await?.document.private_ip]),
            Platform::Custom { host: HostInfo::Plugin(plugin), .. } => {
                plugin.program(agent.plugin_timeout).get_host_info().await?
            }
            Platform::Custom { host: HostInfo::Basic(interfaces), .. } => of_kind(&of_interfaces(interfaces)?),
        };
        let own = if own.is_empty() { found.iter().map(|address| address.ip).collect() } else { own };
        if own.is_empty() {
            return Err(HostError::NoAddress);
        }
        let advertised = match (advertised.is_empty(), found.is_empty()) {
            (false, _) => advertised,
            (true, false) => found,
            (true, true) => of_kind(&own),
        };
        Ok(Self { own, advertised, application })
    }
}

/// The addresses of our container; an error when only the instance could say where others reach it, and they are `to_be_told`.
fn of_container(container: &ContainerMetadata, to_be_told: bool) -> Result<Vec<IpAddr>, HostError> {
    let leads_out = || source_address().into_iter().collect::<Vec<_>>();
    match container.network_mode() {
        Some("awsvpc") => Ok(container.addresses()),
        Some("host") => Ok(leads_out()),
        mode if to_be_told => Err(HostError::Unreachable(mode.unwrap_or("unknown").to_owned())),
        _ => Ok(Some(container.addresses()).filter(|addresses| !addresses.is_empty()).unwrap_or_else(leads_out)),
    }
}

/// Those of this machine's interfaces that lead anywhere. Without rules it is the one that leads out.
fn of_interfaces(Interfaces { include, exclude }: &Interfaces) -> Result<Vec<IpAddr>, HostError> {
    if include.is_empty() && exclude.is_empty() {
        return Ok(source_address().into_iter().collect());
    }
    let counts = |name: &str| {
        (include.is_empty() || include.iter().any(|rule| rule.is_match(name))) && !exclude.iter().any(|rule| rule.is_match(name))
    };
    let interfaces = if_addrs::get_if_addrs()?.into_iter().filter(|interface| counts(&interface.name));
    let is_link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    // A loopback interface counts only when a rule names it.
    let wanted = interfaces.filter(|interface| !include.is_empty() || !interface.is_loopback());
    Ok(wanted.map(|interface| interface.ip()).filter(|ip| !is_link_local(ip)).collect())
}

/// The address that this machine would send from.
pub(crate) fn source_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(ANYWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(networks: &str) -> ContainerMetadata {
        let json = format!(r#"{{"DockerId": "a", "Networks": [{networks}]}}"#);
        ContainerMetadata::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_container_that_nobody_reaches_needs_the_address_of_its_instance() {
        let awsvpc = container(r#"{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.0.7"], "IPv6Addresses": ["2001:db8::7"]}"#);
        let both: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(of_container(&awsvpc, true).unwrap(), both);
        // In host mode the address that is told is empty text.
        let host = container(r#"{"NetworkMode": "host", "IPv4Addresses": [""]}"#);
        assert_eq!(of_container(&host, true).unwrap(), source_address().into_iter().collect::<Vec<_>>());
        let bridge = container(r#"{"NetworkMode": "bridge", "IPv4Addresses": ["172.17.0.2"]}"#);
        let error = of_container(&bridge, true).unwrap_err().to_string();
        assert!(error.starts_with("network mode bridge: ") && error.contains("SKIFF_ADVERTISED_ADDRESS"), "{error}");
        assert_eq!(of_container(&bridge, false).unwrap(), ["172.17.0.2".parse::<IpAddr>().unwrap()]);
        let none = container(r#"{"NetworkMode": "none"}"#);
        assert!(matches!(of_container(&none, true), Err(HostError::Unreachable(mode)) if mode == "none"));
    }

    #[test]
    fn interfaces_are_chosen_by_name() {
        let rules = |texts: &[&str]| texts.iter().map(|text| regex::Regex::new(text).unwrap()).collect();
        let chosen = |include: &[&str], exclude: &[&str]| {
            of_interfaces(&Interfaces { include: rules(include), exclude: rules(exclude) }).unwrap()
        };
        assert!(chosen(&["^lo$"], &[]).contains(&"127.0.0.1".parse().unwrap()));
        assert!(chosen(&["^lo$"], &["lo"]).is_empty());
        assert!(!chosen(&[], &["^nothing$"]).contains(&"127.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn what_others_are_told_can_be_overridden() {
        let settings = HostSettings {
            own: vec!["127.0.0.9".parse().unwrap()],
            advertised: vec!["192.0.2.1".parse().unwrap()],
            containers: Vec::new(),
        };
        let client = Client::new(crate::fetch::TrustedRoots::System);
        let found = Host::find(settings, &AgentConfiguration::default(), ConnectedOver::Internet, &|_| None, &client).await;
        let host = found.unwrap();
        assert_eq!(host.own, ["127.0.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(host.advertised, [HostAddress { ip: "192.0.2.1".parse().unwrap(), kind: AddressKind::Internet }]);
        assert!(!host.application.is_known());
    }
}
