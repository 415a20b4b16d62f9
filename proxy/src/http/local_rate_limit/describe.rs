//! Requests as descriptors: what each rule finds in a request (Envoy `config.route.v3.RateLimit`).

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::exchange::Exchange;
use super::super::head::HeaderName;
use super::super::route::{HeaderMatcher, query_matches};
use crate::config::{QueryParameterMatcher, RateLimitAction, RateLimitRule};

/// Key and value of one entry; keys and most values are known beforehand.
pub(super) type Entry = (String, Vec<u8>);

/// A rule, compiled.
#[derive(Debug)]
pub(super) struct Rule(Box<[Action]>);

#[derive(Debug)]
enum Action {
    Fixed(Entry),
    DestinationCluster,
    RequestHeader { name: HeaderName, key: String, skip_if_absent: bool },
    RemoteAddress,
    MaskedRemoteAddress { v4: u8, v6: u8 },
    HeaderMatch { entry: Entry, headers: Box<[HeaderMatcher]>, expect: bool },
    QueryMatch { entry: Entry, parameters: Box<[QueryParameterMatcher]>, expect: bool },
}

impl Rule {
    pub(super) fn compile(config: &RateLimitRule) -> Self {
        Self(config.actions.iter().map(Action::compile).collect())
    }

    /// The descriptor; nothing when an action does not find what it looks for.
    pub(super) fn describe(&self, exchange: &Exchange) -> Option<Vec<Entry>> {
        let mut entries = Vec::with_capacity(self.0.len());
        for action in &self.0 {
            match action.entry(exchange) {
                Found::Entry(entry) => entries.push(entry),
                Found::Skip => {}
                Found::Nothing => return None,
            }
        }
        Some(entries)
    }
}

enum Found {
    Entry(Entry),
    Skip,
    Nothing,
}

impl Action {
    fn compile(config: &RateLimitAction) -> Self {
        let entry = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
        match config {
            RateLimitAction::GenericKey { key, value } => Self::Fixed(entry(key, value)),
            RateLimitAction::DestinationCluster => Self::DestinationCluster,
            RateLimitAction::RequestHeader { name, key, skip_if_absent } => {
                Self::RequestHeader { name: HeaderName::new(name), key: key.clone(), skip_if_absent: *skip_if_absent }
            }
            RateLimitAction::RemoteAddress => Self::RemoteAddress,
            RateLimitAction::MaskedRemoteAddress { v4, v6 } => Self::MaskedRemoteAddress { v4: *v4, v6: *v6 },
            RateLimitAction::HeaderMatch { key, value, headers, expect } => Self::HeaderMatch {
                entry: entry(key, value),
                headers: headers.iter().map(HeaderMatcher::compile).collect(),
                expect: *expect,
            },
            RateLimitAction::QueryMatch { key, value, parameters, expect } => {
                Self::QueryMatch { entry: entry(key, value), parameters: parameters.clone().into(), expect: *expect }
            }
        }
    }

    fn entry(&self, exchange: &Exchange) -> Found {
        let request = &exchange.request;
        let when = |matches: bool, expect: bool, entry: &Entry| {
            if matches == expect { Found::Entry(entry.clone()) } else { Found::Nothing }
        };
        match self {
            Self::Fixed(entry) => Found::Entry(entry.clone()),
            Self::DestinationCluster => match &exchange.info.upstream_cluster {
                Some(name) => Found::Entry(("destination_cluster".to_owned(), name.as_bytes().to_vec())),
                None => Found::Nothing,
            },
            Self::RequestHeader { name, key, skip_if_absent } => match request.value(name) {
                Some(value) if !value.is_empty() => Found::Entry((key.clone(), value.into_owned())),
                _ if *skip_if_absent => Found::Skip,
                _ => Found::Nothing,
            },
            Self::RemoteAddress => {
                let address = exchange.info.remote.ip().to_canonical();
                Found::Entry(("remote_address".to_owned(), address.to_string().into_bytes()))
            }
            Self::MaskedRemoteAddress { v4, v6 } => match masked(exchange.info.remote.ip().to_canonical(), *v4, *v6) {
                Some(net) => Found::Entry(("masked_remote_address".to_owned(), net.to_string().into_bytes())),
                None => Found::Nothing,
            },
            Self::HeaderMatch { entry, headers, expect } => {
                when(headers.iter().all(|header| header.matches(request)), *expect, entry)
            }
            Self::QueryMatch { entry, parameters, expect } => {
                when(parameters.iter().all(|parameter| query_matches(parameter, request)), *expect, entry)
            }
        }
    }
}

fn masked(address: IpAddr, v4: u8, v6: u8) -> Option<IpNet> {
    IpNet::new(address, if address.is_ipv4() { v4 } else { v6 }).ok().map(|net| net.trunc())
}
