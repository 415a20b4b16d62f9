//! Routes: the virtual host that Envoy's documentation names, found without an index.

use skiff_proxy::config::{Route, RouteAction, RouteConfiguration, RouteMatch, RouteTarget, VirtualHost};
use skiff_proxy::http::head::RequestHead;
use skiff_proxy::http::route::RouteTable;

use crate::input::Input;

/// Any domains and any authority.
pub fn routes(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let authority = input.part().to_vec();
    let mut domains: Vec<String> = Vec::new();
    while !input.is_empty() && domains.len() < 24 {
        let domain = input.text();
        // Translations refuse control characters, the index domains that are equal without case.
        if !domain.is_empty()
            && !domain.contains(|letter: char| letter.is_ascii_control())
            && !domains.iter().any(|known| known.eq_ignore_ascii_case(&domain))
        {
            domains.push(domain);
        }
    }
    let virtual_host = |(index, domain): (usize, &String)| {
        let target = RouteTarget::Forward(Box::new(RouteAction::cluster("c")));
        VirtualHost {
            name: index.to_string(),
            domains: vec![domain.clone()],
            routes: vec![Route::new("r", RouteMatch::any(), target)],
            ..VirtualHost::default()
        }
    };
    let virtual_hosts = domains.iter().enumerate().map(|host| virtual_host(host).into()).collect();
    let ignore_port_in_host_matching = choice & 1 != 0;
    let config =
        RouteConfiguration { name: "t".to_owned(), virtual_hosts, ignore_port_in_host_matching, ..RouteConfiguration::default() };
    let table = RouteTable::compile(&config.into(), &|_| None).unwrap();
    let mut head = RequestHead::new();
    head.set_authority(&authority);
    head.set_path(b"/");
    let found = table.find(&head).map(|found| found.virtual_host.name.parse::<usize>().unwrap());
    assert_eq!(found, expected(&domains, &authority, ignore_port_in_host_matching), "{domains:?} for {authority:?}");
}

/// Exact, then the longest suffix, then the longest prefix, then `*`; without case.
fn expected(domains: &[String], authority: &[u8], ignore_port: bool) -> Option<usize> {
    let mut host = authority.to_ascii_lowercase();
    if ignore_port
        && let Some(colon) = host.iter().rposition(|b| *b == b':')
        && !host[colon..].contains(&b']')
    {
        host.truncate(colon);
    }
    let rank = |domain: &String| {
        let domain = domain.to_ascii_lowercase().into_bytes();
        match domain.as_slice() {
            b"*" => Some((0, 0)),
            [b'*', suffix @ ..] => (host.len() > suffix.len() && host.ends_with(suffix)).then_some((2, suffix.len())),
            [prefix @ .., b'*'] => (host.len() > prefix.len() && host.starts_with(prefix)).then_some((1, prefix.len())),
            exact => (exact == host).then_some((3, 0)),
        }
    };
    domains.iter().enumerate().filter_map(|(index, domain)| Some((rank(domain)?, index))).max().map(|(_, index)| index)
}
