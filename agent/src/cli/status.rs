//! The status ports, as the environment has them: Istio's variables, `statusPort` of the proxy configuration, and skiff's own.

use std::net::IpAddr;

use clap::Args;

use super::environment::Environment;
use crate::exit::Failure;
use crate::status::{self, AppProbes, Ports, ScrapeTargets, StatusConfig};

/// Where Istio's tools and Kubernetes ask.
#[derive(Clone, Debug, Args)]
pub(super) struct StatusArgs {
    /// IP that the ports 15020, 15021 and 15090 listen on.
    #[arg(long, env = "SKIFF_STATUS_ADDRESS", default_value_t = status::DEFAULT_ADDRESS)]
    status_address: IpAddr,
    /// Port of readiness, merged metrics and probes of the application; 0 is none [default: statusPort, else 15020, in a mesh].
    #[arg(long, env = "SKIFF_STATUS_PORT")]
    status_port: Option<u16>,
}

impl StatusArgs {
    /// The settings; `None` when every port is off, as outside of a mesh unless variables name some.
    ///
    /// # Errors
    /// Names the variable, its value and what was expected.
    pub(super) fn resolve(self, environment: &Environment, in_mesh: bool) -> Result<Option<StatusConfig>, Failure> {
        let defaults = if in_mesh { Ports::ISTIO } else { Ports::OFF };
        let port = |name: &str, default: u16| {
            environment.parse(name, "a port", |text| text.parse().ok()).map(|port| port.unwrap_or(default))
        };
        let configured = if in_mesh { environment.proxy_config_port("statusPort")? } else { None };
        let ports = Ports {
            status: match self.status_port {
                Some(port) => port,
                None => port("SKIFF_STATUS_PORT", configured.unwrap_or(defaults.status))?,
            },
            health: port("ENVOY_STATUS_PORT", defaults.health)?,
            metrics: port("ENVOY_PROMETHEUS_PORT", defaults.metrics)?,
        };
        if ports == Ports::OFF {
            return Ok(None);
        }
        let wrong = |name: &'static str| move |reason: String| Failure::Configuration(format!("{name}: {reason}"));
        let own = [ports.status, ports.health, ports.metrics];
        let annotations = environment.get("ISTIO_PROMETHEUS_ANNOTATIONS").map(|text| ScrapeTargets::parse(text, &own));
        let probers = environment.get("ISTIO_KUBE_APP_PROBERS").map(AppProbes::parse);
        Ok(Some(StatusConfig {
            address: self.status_address,
            ports,
            scrape: annotations.transpose().map_err(wrong("ISTIO_PROMETHEUS_ANNOTATIONS"))?.unwrap_or_default(),
            probes: probers.transpose().map_err(wrong("ISTIO_KUBE_APP_PROBERS"))?.unwrap_or_default(),
            metrics_for_localhost_only: environment.get("METRICS_LOCALHOST_ACCESS_ONLY") == Some("true"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(variables: &[(&str, &str)], port: Option<u16>, in_mesh: bool) -> Result<Option<StatusConfig>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let environment = Environment::read(variables, folder.path()).unwrap();
        StatusArgs { status_address: status::DEFAULT_ADDRESS, status_port: port }.resolve(&environment, in_mesh)
    }

    #[test]
    fn a_mesh_has_istios_ports_and_others_only_what_is_named() {
        assert_eq!(resolve(&[], None, true).unwrap().unwrap().ports, Ports::ISTIO);
        assert!(resolve(&[("PROXY_CONFIG", r#"{"statusPort": 16000}"#)], None, false).unwrap().is_none());
        let named = resolve(&[("ENVOY_STATUS_PORT", "16021")], None, false).unwrap().unwrap().ports;
        assert_eq!(named, Ports { health: 16021, ..Ports::OFF });
        let configured = [("PROXY_CONFIG", r#"{"statusPort": 16020}"#), ("ENVOY_PROMETHEUS_PORT", "0")];
        let ports = resolve(&configured, None, true).unwrap().unwrap().ports;
        assert_eq!(ports, Ports { status: 16020, metrics: 0, ..Ports::ISTIO });
        assert_eq!(resolve(&configured, Some(7000), true).unwrap().unwrap().ports.status, 7000);
        assert_eq!(resolve(&[], Some(0), true).unwrap().unwrap().ports, Ports { status: 0, ..Ports::ISTIO });
        let off = [("SKIFF_STATUS_PORT", "0"), ("ENVOY_STATUS_PORT", "0"), ("ENVOY_PROMETHEUS_PORT", "0")];
        assert!(resolve(&off, None, true).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (name, value, reason) in [
            ("ENVOY_STATUS_PORT", "many", "ENVOY_STATUS_PORT: expected a port, found \"many\""),
            ("PROXY_CONFIG", r#"{"statusPort": 70000}"#, "PROXY_CONFIG.statusPort: expected a port, found 70000"),
            ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"port": "15020"}"#, "ISTIO_PROMETHEUS_ANNOTATIONS: port: expected one of"),
            ("ISTIO_KUBE_APP_PROBERS", "{\"/x\": {}}", "ISTIO_KUBE_APP_PROBERS: expected /app-health/"),
        ] {
            let error = resolve(&[(name, value)], None, true).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
