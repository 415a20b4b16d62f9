//! The index of virtual hosts by domain: exact, then longest suffix, then longest prefix, then `*`.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::config::VirtualHostEntry;

/// Where the domains of a route configuration are: which of its virtual hosts. The texts of exact ones, four for each service of a
/// mesh, stay in the configuration, which every call is given.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: HashTable<At>,
    /// `*.foo`, by length without the star, longest first.
    suffixes: Wildcards,
    /// `foo.*`, likewise.
    prefixes: Wildcards,
    any: Option<usize>,
}

/// The place of a domain.
#[derive(Clone, Copy, Debug)]
struct At {
    /// Index of the virtual host.
    host: u32,
    /// From where to where of [`VirtualHostEntry::lines`].
    start: u32,
    end: u32,
}

type Wildcards = Vec<(usize, HashMap<Box<[u8]>, usize, BuildHasherDefault<DomainHasher>>)>;

impl Domains {
    /// Of all virtual hosts; the domain that occurs twice, if one does.
    pub(super) fn of(hosts: &[VirtualHostEntry]) -> Result<Self, &str> {
        let mut all = Self::default();
        for (index, host) in hosts.iter().enumerate() {
            let mut start = 0;
            for domain in host.domains() {
                if !all.insert(domain, index, start, hosts) {
                    return Err(domain);
                }
                start += domain.len() + 1;
            }
        }
        all.exact.shrink_to_fit(|at| hash(text(*at, hosts)));
        Ok(all)
    }

    /// Adds a domain; false when it is taken.
    fn insert(&mut self, domain: &str, host: usize, start: usize, hosts: &[VirtualHostEntry]) -> bool {
        let previous = match domain.as_bytes() {
            b"*" => self.any.replace(host),
            [b'*', suffix @ ..] => insert_wildcard(&mut self.suffixes, suffix, host),
            [prefix @ .., b'*'] => insert_wildcard(&mut self.prefixes, prefix, host),
            exact => {
                if self.find_exact(exact, hosts).is_some() {
                    return false;
                }
                // No message is so long that one does not fit.
                let [Ok(host), Ok(start), Ok(end)] = [host, start, start + exact.len()].map(u32::try_from) else { return false };
                self.exact.insert_unique(hash(exact), At { host, start, end }, |at| hash(text(*at, hosts)));
                None
            }
        };
        previous.is_none()
    }

    /// The virtual host of an authority, whose case does not matter.
    pub(super) fn find(&self, authority: &[u8], hosts: &[VirtualHostEntry]) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        // Every byte is looked at: without an early exit the loop is a handful of vector instructions.
        if authority.iter().fold(false, |upper, byte| upper | byte.is_ascii_uppercase()) {
            let mut lower = SmallVec::<[u8; 256]>::from_slice(authority);
            lower.make_ascii_lowercase();
            self.find_lower(&lower, hosts)
        } else {
            self.find_lower(authority, hosts)
        }
    }

    fn find_lower(&self, host: &[u8], hosts: &[VirtualHostEntry]) -> Option<usize> {
        self.find_exact(host, hosts)
            .or_else(|| find_wildcard(&self.suffixes, host, |host, len| &host[host.len() - len..]))
            .or_else(|| find_wildcard(&self.prefixes, host, |host, len| &host[..len]))
            .or(self.any)
    }

    fn find_exact(&self, host: &[u8], hosts: &[VirtualHostEntry]) -> Option<usize> {
        self.exact.find(hash(host), |at| text(*at, hosts) == host).map(|at| at.host as usize)
    }
}

fn text(at: At, hosts: &[VirtualHostEntry]) -> &[u8] {
    let lines = hosts.get(at.host as usize).map_or("", VirtualHostEntry::lines);
    lines.as_bytes().get(at.start as usize..at.end as usize).unwrap_or_default()
}

fn hash(domain: &[u8]) -> u64 {
    let mut hasher = DomainHasher::default();
    hasher.write(domain);
    hasher.finish()
}

fn insert_wildcard(wildcards: &mut Wildcards, text: &[u8], host: usize) -> Option<usize> {
    let at = wildcards.partition_point(|(len, _)| *len > text.len());
    if wildcards.get(at).is_none_or(|(len, _)| *len != text.len()) {
        wildcards.insert(at, (text.len(), HashMap::default()));
    }
    wildcards[at].1.insert(text.into(), host)
}

/// The star stands for at least one byte: `*.foo.com` is not `.foo.com`.
fn find_wildcard(wildcards: &Wildcards, host: &[u8], part: impl Fn(&[u8], usize) -> &[u8]) -> Option<usize> {
    wildcards.iter().filter(|(len, _)| *len < host.len()).find_map(|(len, texts)| texts.get(part(host, *len)).copied())
}

/// The authority without its port; IPv6 literals keep their brackets.
pub(super) fn without_port(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|b| *b == b':') {
        Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
        _ => authority,
    }
}

/// A short multiplicative hash. Keys come from configuration only, so callers cannot make them collide.
#[derive(Debug, Default)]
struct DomainHasher(u64);

impl DomainHasher {
    fn mix(&mut self, word: u64) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0 ^ word).wrapping_mul(ODD).rotate_left(26);
    }
}

impl Hasher for DomainHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        self.mix(rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    }

    fn write_usize(&mut self, length: usize) {
        self.mix(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VirtualHost;

    fn hosts(domains: &[&str]) -> VirtualHostEntry {
        let domains = domains.iter().map(|&domain| domain.to_owned()).collect();
        VirtualHost { domains, ..VirtualHost::default() }.into()
    }

    #[test]
    fn the_most_specific_domain_wins_whatever_the_order() {
        let all = ["*", "*.com", "*.foo.com", "*-bar.foo.com", "foo.*", "foo.b*", "www.foo.com", "[::1]"];
        let hosts = all.map(|domain| hosts(&[domain]));
        let domains = Domains::of(&hosts).unwrap();
        for (host, expected) in [
            ("www.foo.com", "www.foo.com"),
            ("WWW.Foo.COM", "www.foo.com"),
            ("x-bar.foo.com", "*-bar.foo.com"),
            ("a.foo.com", "*.foo.com"),
            (".foo.com", "*.com"),
            ("foo.com", "*.com"),
            ("foo.bar", "foo.b*"),
            ("foo.org", "foo.*"),
            ("foo.", "*"),
            ("www.foo.com.", "*"),
            ("", "*"),
        ] {
            assert_eq!(domains.find(host.as_bytes(), &hosts).map(|index| all[index]), Some(expected), "{host}");
        }
    }

    #[test]
    fn a_domain_is_taken_once() {
        for domain in ["*", "*.foo", "foo.*", "foo", ""] {
            let upper = domain.to_uppercase();
            assert_eq!(Domains::of(&[hosts(&["bar", domain]), hosts(&[&upper])]).unwrap_err(), domain);
            assert_eq!(Domains::of(&[hosts(&[domain, domain])]).unwrap_err(), domain);
        }
    }

    #[test]
    fn every_domain_of_many_hosts_is_found() {
        let all: Vec<_> = (0..1000).map(|number| hosts(&[&format!("a{number}"), &format!("b{number}.test"), ""][..2])).collect();
        let domains = Domains::of(&all).unwrap();
        for number in 0..1000 {
            for text in [format!("a{number}"), format!("B{number}.test")] {
                assert_eq!(domains.find(text.as_bytes(), &all), Some(number), "{text}");
            }
        }
        assert_eq!(domains.find(b"a1000", &all), None);
    }

    #[test]
    fn ports_are_cut_off_outside_of_brackets() {
        for (authority, host) in [("a:80", "a"), ("a", "a"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]"), ("a:", "a"), ("", "")] {
            assert_eq!(without_port(authority.as_bytes()), host.as_bytes());
        }
    }
}
