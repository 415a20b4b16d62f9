//! Envoy v3 resources to the configuration model: pure functions, one for each type of resource.
//!
//! Static bootstraps ([`crate::bootstrap`]) and xDS are the two sources. Nothing is skipped silently: every field that is set
//! must be one that the translation honours or one that is known to change nothing here ([`ignored`] lists those);
//! anything else, an unknown filter above all, rejects the resource with the path of the field.
#![expect(deprecated, reason = "istiod and hand-written bootstraps still use fields that Envoy has deprecated")]

mod access_log;
mod any;
mod basic;
mod cluster;
mod endpoint;
mod ext_authz;
mod fields;
mod http;
mod http_filter;
mod json;
mod jwt;
mod listener;
pub(crate) mod model;
mod node;
mod outcome;
mod peer;
mod rate_limit;
mod rbac;
mod route;
mod route_action;
mod stats;
mod tcp;
mod tls;
mod to_json;
mod tracing;

use std::fmt;

use prost::{Message, Name};
use serde::Serialize;
use skiff_proto::envoy::config::{cluster::v3 as cds, endpoint::v3 as eds, listener::v3 as lds, route::v3 as rds};
use skiff_proto::envoy::extensions::transport_sockets::tls::v3 as sds;
use skiff_proxy::config;

pub(crate) use self::json::{descriptors, from_json};
pub(crate) use self::model::Packable;
pub use self::node::local_node;
use self::outcome::Outcome;
pub(crate) use self::outcome::{At, Invalid};
pub(crate) use self::stats::metric_override;
pub(crate) use self::to_json::{any_to_json, message_to_json};

/// A resource that is not taken over: what ADS answers with a NACK and `skiff check bootstrap` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// `type.googleapis.com/envoy.config.listener.v3.Listener`.
    pub type_url: String,
    /// Resource name.
    pub name: String,
    /// Path of the field inside the resource; empty for the resource itself.
    pub path: String,
    /// What is wrong there and what was expected.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.type_url.rsplit('.').next().unwrap_or_default();
        write!(f, "{kind} {:?}", self.name)?;
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Translates a listener.
///
/// # Errors
/// Every field that cannot be honoured.
pub fn listener(message: &lds::Listener) -> Result<config::Listener, Vec<Rejected>> {
    checked(message, &message.name, listener::listener)
}

/// Translates a route configuration.
///
/// # Errors
/// Every field that cannot be honoured.
pub fn route_configuration(message: &rds::RouteConfiguration) -> Result<config::RouteConfiguration, Vec<Rejected>> {
    checked(message, &message.name, route::route_configuration)
}

/// Translates a cluster.
///
/// # Errors
/// Every field that cannot be honoured.
pub fn cluster(message: &cds::Cluster) -> Result<config::Cluster, Vec<Rejected>> {
    checked(message, &message.name, cluster::cluster)
}

/// Translates the endpoints of a cluster.
///
/// # Errors
/// Every field that cannot be honoured.
pub fn load_assignment(message: &eds::ClusterLoadAssignment) -> Result<config::ClusterLoadAssignment, Vec<Rejected>> {
    checked(message, &message.cluster_name, |message| endpoint::load_assignment(message, endpoint::Names::Refused))
}

/// Translates a certificate or a trust bundle that stands in the message itself (static `secrets`, SDS).
///
/// # Errors
/// Every field that cannot be honoured; secrets in files are not read here.
pub fn secret(message: &sds::Secret) -> Result<config::Secret, Vec<Rejected>> {
    checked(message, &message.name, tls::secret)
}

/// Fields of the message that are set and accepted, but change nothing in skiff.
pub fn ignored<T: Message + Name>(message: &T) -> Vec<String> {
    fields::check(message).ignored
}

fn checked<T: Message + Name, B>(message: &T, name: &str, translate: impl FnOnce(&T) -> Outcome<B>) -> Result<B, Vec<Rejected>> {
    judged(fields::check(message), || translate(message)).map_err(|all| rejected(&T::type_url(), name, all))
}

/// A translation of a message whose fields have been looked at.
fn judged<B>(check: fields::Check, translate: impl FnOnce() -> Outcome<B>) -> Outcome<B> {
    let fields::Check { unsupported: mut all, too_deep, .. } = check;
    if too_deep {
        return Err(all);
    }
    match translate() {
        Ok(value) if all.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(more) => {
            // The translation names what it found in words of its own.
            all.retain(|one| !more.iter().any(|better| better.path.starts_with(&one.path)));
            all.extend(more);
        }
    }
    Err(all)
}

/// Names the resource that the failures belong to.
pub(crate) fn rejected(type_url: &str, name: &str, all: Vec<Invalid>) -> Vec<Rejected> {
    all.into_iter()
        .map(|one| Rejected { type_url: type_url.to_owned(), name: name.to_owned(), path: one.path, reason: one.reason })
        .collect()
}

#[cfg(test)]
mod tests;
