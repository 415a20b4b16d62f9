//! Route configurations as they are sent: one message with a virtual host for every service, of which a push changes one.
//!
//! A virtual host whose bytes are known is not translated again. Where all can be, they are kept packed and made when a request
//! asks for them.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Name;
use skiff_proto::envoy::config::route::v3::RouteConfiguration;
use skiff_proxy::config::{self, Resource, VirtualHostEntry};
use skiff_proxy::http::route::may_be_packed;
use xxhash_rust::xxh64::xxh64;

use super::packed::Packer;
use crate::translate::envoy::{Invalid, Rejected, model, rejected};

/// A route configuration that was accepted.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) config: Arc<config::RouteConfiguration>,
    /// Of the bytes of its virtual hosts, in their order.
    hashes: Box<[u64]>,
}

/// A route configuration that has come.
pub(super) struct Sent<'a> {
    message: RouteConfiguration,
    parts: model::Routes<'a>,
}

impl<'a> Sent<'a> {
    /// # Errors
    /// When the bytes are no route configuration, or one that is not called as `named` says.
    pub(super) fn read(bytes: &'a [u8], named: Option<&str>) -> Result<Self, Vec<Rejected>> {
        let Some(parts) = model::Routes::split(bytes) else {
            return Err(model::undecodable::<RouteConfiguration>(named, "is cut off, or no message"));
        };
        let message = model::decode(&parts.shell, named, |message: &RouteConfiguration| &message.name)?;
        Ok(Self { message, parts })
    }

    pub(super) fn name(&self) -> &str {
        &self.message.name
    }

    /// Translates what is not in `current` already.
    ///
    /// # Errors
    /// Every field that cannot be honoured.
    pub(super) fn translate(&self, current: Option<&Routes>, packer: &mut Packer) -> Result<Routes, Vec<Rejected>> {
        let mut config = model::route_shell(&self.message, &self.parts.shell)?;
        let current = current.filter(|current| is_same_shell(&current.config, &config));
        let known: HashMap<u64, &VirtualHostEntry> =
            current.iter().flat_map(|current| current.hashes.iter().copied().zip(&current.config.virtual_hosts)).collect();
        let hashes: Box<[u64]> = self.parts.hosts.iter().map(|bytes| xxh64(bytes, 0)).collect();
        let (mut hosts, mut wrong) = (Vec::with_capacity(hashes.len()), Vec::<Invalid>::new());
        for (index, (bytes, hash)) in self.parts.hosts.iter().zip(&hashes).enumerate() {
            match known.get(hash) {
                Some(&host) => hosts.push(host.clone()),
                None => match model::virtual_host(bytes, index) {
                    Ok(host) => {
                        let packed = may_be_packed(&host, &config).then(|| Resource::packed(packer.pack(bytes)));
                        let host = Arc::new(host);
                        let resource = packed.unwrap_or_else(|| Arc::clone(&host).into());
                        hosts.push(VirtualHostEntry::new(host.domains.iter().map(String::as_str), resource));
                    }
                    Err(all) => wrong.extend(all),
                },
            }
        }
        if !wrong.is_empty() {
            return Err(rejected(&RouteConfiguration::type_url(), self.name(), wrong));
        }
        if hosts.iter().any(|host| host.host().whole().is_some()) {
            // All or none: a header may choose among the clusters of all.
            hosts.iter_mut().for_each(|host| *host = (*host.host().get()).clone().into());
        }
        config.virtual_hosts = hosts;
        Ok(Routes { config: Arc::new(config), hashes })
    }
}

/// Whether two configurations are the same, their virtual hosts aside.
fn is_same_shell(current: &config::RouteConfiguration, shell: &config::RouteConfiguration) -> bool {
    let config::RouteConfiguration { name, virtual_hosts: _, ignore_port_in_host_matching, headers, filters } = current;
    *name == shell.name
        && *ignore_port_in_host_matching == shell.ignore_port_in_host_matching
        && *headers == shell.headers
        && *filters == shell.filters
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skiff_proto::envoy::config::route::v3::route::Action;
    use skiff_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
    use skiff_proto::envoy::config::route::v3::route_match::PathSpecifier;
    use skiff_proto::envoy::config::route::v3::{Route, RouteAction, RouteMatch, VirtualHost};

    use super::*;

    fn host(name: &str, cluster: ClusterSpecifier) -> VirtualHost {
        let route = Route {
            r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }),
            action: Some(Action::Route(RouteAction { cluster_specifier: Some(cluster), ..Default::default() })),
            ..Default::default()
        };
        VirtualHost { name: name.to_owned(), domains: vec![name.to_owned()], routes: vec![route], ..Default::default() }
    }

    fn to(name: &str, cluster: &str) -> VirtualHost {
        host(name, ClusterSpecifier::Cluster(cluster.to_owned()))
    }

    fn taken(hosts: Vec<VirtualHost>, current: Option<&Routes>) -> Result<Routes, Vec<Rejected>> {
        let message = RouteConfiguration { name: "9080".to_owned(), virtual_hosts: hosts, ..Default::default() };
        Sent::read(&message.encode_to_vec(), Some("9080"))?.translate(current, &mut Packer::default())
    }

    fn clusters(routes: &Routes) -> Vec<String> {
        let cluster = |entry: &VirtualHostEntry| match &entry.host().get().routes[0].action {
            config::RouteTarget::Forward(action) => action.clusters[0].name.clone(),
            other => panic!("{other:?}"),
        };
        routes.config.virtual_hosts.iter().map(cluster).collect()
    }

    #[test]
    fn only_the_virtual_host_that_changed_is_made_anew() {
        let first = taken(vec![to("a", "one"), to("b", "two"), to("c", "three")], None).unwrap();
        assert!(first.config.virtual_hosts.iter().all(|entry| entry.host().whole().is_none()), "all are packed");
        let next = taken(vec![to("c", "three"), to("a", "four"), to("d", "five")], Some(&first)).unwrap();
        assert_eq!(clusters(&next), ["three", "four", "five"]);
        let domains: Vec<_> = next.config.virtual_hosts.iter().flat_map(VirtualHostEntry::domains).collect();
        assert_eq!(domains, ["c", "a", "d"]);
        let [c, a] = [(2, 0), (0, 1)]
            .map(|(before, after)| first.config.virtual_hosts[before].host().is_same(next.config.virtual_hosts[after].host()));
        assert!(c && !a);
    }

    #[test]
    fn where_a_header_chooses_among_the_clusters_none_is_packed() {
        let first = taken(vec![to("a", "one"), to("b", "two")], None).unwrap();
        let by_header = host("c", ClusterSpecifier::ClusterHeader("x-cluster".to_owned()));
        let mut hosts = vec![to("a", "one"), to("b", "two"), by_header];
        let next = taken(hosts.clone(), Some(&first)).unwrap();
        assert!(next.config.virtual_hosts.iter().all(|entry| entry.host().whole().is_some()));
        hosts.pop();
        assert_eq!(*taken(hosts, Some(&next)).unwrap().config, *first.config);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let bad = vec![to("a", "one"), VirtualHost { domains: Vec::new(), ..to("b", "two") }, to("c\n", "three")];
        let refused = taken(bad, None).unwrap_err();
        let found: Vec<_> = refused.iter().map(|one| (one.name.as_str(), one.path.as_str(), one.reason.as_str())).collect();
        let expected = [("virtual_hosts[1].domains", "is empty"), ("virtual_hosts[2].domains[0]", "holds a control character")];
        assert_eq!(found, expected.map(|(path, reason)| ("9080", path, reason)));
        assert_eq!(Sent::read(&[0x12, 5, 1], Some("9080")).err().unwrap()[0].name, "9080");
    }
}
