//! The index of virtual hosts by domain: exact, then longest suffix, then longest prefix, then `*`.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use smallvec::SmallVec;

/// Domains of a route configuration, lower case, each with the index of its virtual host.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: ByDomain,
    /// `*.foo`, by length without the star, longest first.
    suffixes: Wildcards,
    /// `foo.*`, likewise.
    prefixes: Wildcards,
    any: Option<usize>,
}

type Wildcards = Vec<(usize, ByDomain)>;

type ByDomain = HashMap<Box<[u8]>, usize, BuildHasherDefault<DomainHasher>>;

impl Domains {
    /// Adds a domain; false when it is taken.
    pub(super) fn insert(&mut self, domain: &str, host: usize) -> bool {
        let domain = domain.to_ascii_lowercase().into_bytes();
        let previous = match domain.as_slice() {
            b"*" => self.any.replace(host),
            [b'*', suffix @ ..] => insert_wildcard(&mut self.suffixes, suffix, host),
            [prefix @ .., b'*'] => insert_wildcard(&mut self.prefixes, prefix, host),
            _ => self.exact.insert(domain.into_boxed_slice(), host),
        };
        previous.is_none()
    }

    /// The virtual host of an authority, whose case does not matter.
    pub(super) fn find(&self, authority: &[u8]) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        // Every byte is looked at: without an early exit the loop is a handful of vector instructions.
        if authority.iter().fold(false, |upper, byte| upper | byte.is_ascii_uppercase()) {
            let mut lower = SmallVec::<[u8; 256]>::from_slice(authority);
            lower.make_ascii_lowercase();
            self.find_lower(&lower)
        } else {
            self.find_lower(authority)
        }
    }

    fn find_lower(&self, host: &[u8]) -> Option<usize> {
        self.exact
            .get(host)
            .copied()
            .or_else(|| find_wildcard(&self.suffixes, host, |host, len| &host[host.len() - len..]))
            .or_else(|| find_wildcard(&self.prefixes, host, |host, len| &host[..len]))
            .or(self.any)
    }
}

fn insert_wildcard(wildcards: &mut Wildcards, text: &[u8], host: usize) -> Option<usize> {
    let at = wildcards.partition_point(|(len, _)| *len > text.len());
    if wildcards.get(at).is_none_or(|(len, _)| *len != text.len()) {
        wildcards.insert(at, (text.len(), ByDomain::default()));
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

    #[test]
    fn the_most_specific_domain_wins_whatever_the_order() {
        let mut domains = Domains::default();
        let all = ["*", "*.com", "*.foo.com", "*-bar.foo.com", "foo.*", "foo.b*", "www.foo.com", "[::1]"];
        for (index, domain) in all.iter().enumerate() {
            assert!(domains.insert(domain, index));
        }
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
            assert_eq!(domains.find(host.as_bytes()).map(|index| all[index]), Some(expected), "{host}");
        }
    }

    #[test]
    fn a_domain_is_taken_once() {
        let mut domains = Domains::default();
        for domain in ["*", "*.foo", "foo.*", "foo"] {
            assert!(domains.insert(domain, 0));
            assert!(!domains.insert(&domain.to_uppercase(), 1), "{domain}");
        }
    }

    #[test]
    fn ports_are_cut_off_outside_of_brackets() {
        for (authority, host) in [("a:80", "a"), ("a", "a"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]"), ("a:", "a"), ("", "")] {
            assert_eq!(without_port(authority.as_bytes()), host.as_bytes());
        }
    }
}
