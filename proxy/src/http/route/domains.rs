//! The index of virtual hosts by domain: exact, then longest suffix, then longest prefix, then `*`.

use std::collections::HashMap;

use smallvec::SmallVec;

/// Domains of a route configuration, lower case, each with the index of its virtual host.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: HashMap<Box<[u8]>, usize>,
    /// `*.foo`, by length without the star, longest first.
    suffixes: Wildcards,
    /// `foo.*`, likewise.
    prefixes: Wildcards,
    any: Option<usize>,
}

type Wildcards = Vec<(usize, HashMap<Box<[u8]>, usize>)>;

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
        if authority.iter().any(u8::is_ascii_uppercase) {
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
        wildcards.insert(at, (text.len(), HashMap::new()));
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
