//! Resources as xDS sends them: encoded messages, and what they are translated into.

use prost::{Message, Name};
use skiff_proto::envoy::config::{cluster::v3 as cds, endpoint::v3 as eds, listener::v3 as lds, route::v3 as rds};
use skiff_proxy::config::{self, ClusterDiscovery};

use super::fields::wire::{self, Value};
use super::outcome::{At, Invalid, Outcome};
use super::{Rejected, cluster, endpoint, fields, listener, rejected, route};

/// What a message is translated into.
pub(crate) trait Model: Sized {
    /// The message.
    type Message: Message + Name + Default;

    fn name(message: &Self::Message) -> &str;

    fn translate(message: &Self::Message) -> Outcome<Self>;
}

/// What can be kept as its message, and be made again.
pub(crate) trait Packable: Model {
    /// What stands in for one that cannot be read again.
    fn nothing() -> Self;

    /// Reads a message that has been translated before, so that nothing is wrong with it.
    fn again(bytes: &[u8]) -> Self {
        let translated = Self::Message::decode(bytes).ok().and_then(|message| Self::translate(&message).ok());
        translated.unwrap_or_else(|| {
            tracing::error!(message = Self::Message::full_name(), "a resource cannot be read again, it is left out");
            Self::nothing()
        })
    }
}

impl Model for config::Cluster {
    type Message = cds::Cluster;

    fn name(message: &cds::Cluster) -> &str {
        &message.name
    }

    fn translate(message: &cds::Cluster) -> Outcome<Self> {
        cluster::cluster(message)
    }
}

impl Packable for config::Cluster {
    fn nothing() -> Self {
        Self::new("", ClusterDiscovery::Static(<_>::default()))
    }
}

impl Model for config::ClusterLoadAssignment {
    type Message = eds::ClusterLoadAssignment;

    fn name(message: &eds::ClusterLoadAssignment) -> &str {
        &message.cluster_name
    }

    fn translate(message: &eds::ClusterLoadAssignment) -> Outcome<Self> {
        endpoint::load_assignment(message, endpoint::Names::Refused)
    }
}

impl Packable for config::ClusterLoadAssignment {
    fn nothing() -> Self {
        Self::default()
    }
}

impl Model for config::Listener {
    type Message = lds::Listener;

    fn name(message: &lds::Listener) -> &str {
        &message.name
    }

    fn translate(message: &lds::Listener) -> Outcome<Self> {
        listener::listener(message)
    }
}

impl Model for config::VirtualHost {
    type Message = rds::VirtualHost;

    fn name(message: &rds::VirtualHost) -> &str {
        &message.name
    }

    fn translate(message: &rds::VirtualHost) -> Outcome<Self> {
        route::virtual_host(message)
    }
}

impl Packable for config::VirtualHost {
    fn nothing() -> Self {
        Self::default()
    }
}

/// Decodes a resource; `named` is the name beside it, if there is one.
///
/// # Errors
/// When the bytes are no such message, or one with another name.
pub(crate) fn decode<M: Message + Name + Default>(
    bytes: &[u8],
    named: Option<&str>,
    name_of: impl Fn(&M) -> &str,
) -> Result<M, Vec<Rejected>> {
    let message = M::decode(bytes).map_err(|error| undecodable::<M>(named, &error.to_string()))?;
    match named.filter(|&named| named != name_of(&message)) {
        Some(_) => Err(undecodable::<M>(named, &format!("holds the resource {:?}", name_of(&message)))),
        None => Ok(message),
    }
}

/// A resource of which no more is known than the name beside it.
pub(crate) fn undecodable<M: Name>(named: Option<&str>, reason: &str) -> Vec<Rejected> {
    let name = named.unwrap_or_default().to_owned();
    vec![Rejected { type_url: M::type_url(), name, path: String::new(), reason: reason.to_owned() }]
}

/// Translates a message that came as `bytes`.
///
/// # Errors
/// Every field that cannot be honoured, also those that decoding has left out.
pub(crate) fn translate<M: Message + Name, T>(
    message: &M,
    bytes: &[u8],
    name: &str,
    translate: impl FnOnce(&M) -> Outcome<T>,
) -> Result<T, Vec<Rejected>> {
    super::judged(fields::check_wire::<M>(bytes), || translate(message)).map_err(|all| rejected(&M::type_url(), name, all))
}

/// A route configuration as it was sent, its virtual hosts apart: thousands, of which a push changes one.
pub(crate) struct Routes<'a> {
    /// The message without them, encoded.
    pub(crate) shell: Vec<u8>,
    /// Each of them, encoded.
    pub(crate) hosts: Vec<&'a [u8]>,
}

impl<'a> Routes<'a> {
    /// `None` when the bytes are no message.
    pub(crate) fn split(bytes: &'a [u8]) -> Option<Self> {
        /// `RouteConfiguration.virtual_hosts`.
        const VIRTUAL_HOSTS: u32 = 2;
        let (mut shell, mut hosts, mut rest) = (Vec::new(), Vec::new(), bytes);
        while !rest.is_empty() {
            let before = rest;
            match wire::one(&mut rest).ok()? {
                (VIRTUAL_HOSTS, Value::Bytes(host)) => hosts.push(host),
                _ => shell.extend_from_slice(&before[..before.len() - rest.len()]),
            }
        }
        Some(Self { shell, hosts })
    }
}

/// Translates a route configuration without virtual hosts.
///
/// # Errors
/// Every field that cannot be honoured.
pub(crate) fn route_shell(message: &rds::RouteConfiguration, bytes: &[u8]) -> Result<config::RouteConfiguration, Vec<Rejected>> {
    translate(message, bytes, &message.name, route::route_configuration)
}

/// Translates the virtual host at `index` of its route configuration.
///
/// # Errors
/// Every field that cannot be honoured, with its path from the route configuration on.
pub(crate) fn virtual_host(bytes: &[u8], index: usize) -> Outcome<config::VirtualHost> {
    let undecodable = |error: prost::DecodeError| vec![Invalid { path: String::new(), reason: error.to_string() }];
    let translated = rds::VirtualHost::decode(bytes)
        .map_err(undecodable)
        .and_then(|message| super::judged(fields::check_wire::<rds::VirtualHost>(bytes), || route::virtual_host(&message)));
    translated.at(&format!("virtual_hosts[{index}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_hosts_are_taken_out_of_their_configuration() {
        let host = |name: &str| rds::VirtualHost { name: name.to_owned(), ..Default::default() };
        let (name, virtual_hosts) = ("9080".to_owned(), vec![host("a"), host("b")]);
        let whole =
            rds::RouteConfiguration { name, virtual_hosts, most_specific_header_mutations_wins: true, ..Default::default() };
        let bytes = whole.encode_to_vec();
        let Routes { shell, hosts } = Routes::split(&bytes).unwrap();
        let hosts: Vec<_> = hosts.into_iter().map(|bytes| rds::VirtualHost::decode(bytes).unwrap()).collect();
        let shell = rds::RouteConfiguration::decode(shell.as_slice()).unwrap();
        assert!(shell.virtual_hosts.is_empty());
        assert_eq!(rds::RouteConfiguration { virtual_hosts: hosts, ..shell }, whole);
        assert!(Routes::split(&bytes[..bytes.len() - 1]).is_none(), "cut off");
    }
}
