//! Field by field, error by error, and everything that istiod sent in its captured scenarios.

mod clusters;
mod connections;
mod conversions;
mod errors;
mod istiod;
mod peer;

use serde_json::Value as Json;
use skiff_proxy::config;

use super::Rejected;

/// A message from YAML.
fn message<T: prost::Message + prost::Name + Default>(yaml: &str) -> T {
    super::from_json(&serde_saphyr::from_str::<Json>(yaml).unwrap()).unwrap()
}

/// What `yaml` is rejected for, as it is shown to people.
fn shown(rejected: &[Rejected]) -> Vec<String> {
    rejected.iter().map(ToString::to_string).collect()
}

/// A listener with one HTTP chain; `manager` is the rest of the connection manager.
fn http_listener(manager: &str) -> Result<config::HttpConnectionManager, Vec<Rejected>> {
    let yaml = format!(
        r#"
name: l
address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}
filter_chains:
- filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: s
{manager}
"#
    );
    let listener = super::listener(&message(&yaml))?;
    match &listener.filter_chains[0].filter {
        config::NetworkFilter::Http(manager) => Ok((**manager).clone()),
        config::NetworkFilter::Tcp(_) => unreachable!("the chain is an HTTP one"),
    }
}

const ROUTER: &str = r#"
      http_filters:
      - name: router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#;
