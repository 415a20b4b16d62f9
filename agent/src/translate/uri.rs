//! Addresses of HTTP servers, as configurations write them.

use http::Uri;

/// An absolute `http` or `https` URI in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpUri {
    pub(super) https: bool,
    /// Host and, where it is written, port.
    pub(super) authority: String,
    /// Host without brackets.
    pub(super) host: String,
    /// The port that is written, else the scheme's.
    pub(super) port: u16,
    /// Path and query.
    pub(super) path: String,
}

impl HttpUri {
    /// Takes a URI apart. Whoever may write one makes the sidecar ask somebody in its own network: only plain addresses of HTTP
    /// servers are taken, without user and password, and no link-local ones, where clouds keep credentials.
    ///
    /// # Errors
    /// Says what was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("{text:?}: expected {what}"));
        let Ok(uri) = text.parse::<Uri>() else { return wrong("an absolute http or https URI") };
        let (https, default_port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return wrong("http or https"),
        };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else { return wrong("a host") };
        if authority.as_str().contains('@') {
            return wrong("no user and password");
        }
        // Behind the host there is nothing or a port; one that is too large is none to the parser.
        let has_port = authority.as_str().len() > authority.host().len();
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return wrong("a port from 1 to 65535");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let link_local = match host.parse() {
            Ok(std::net::IpAddr::V4(ip)) => ip.is_link_local() || ip.is_unspecified(),
            Ok(std::net::IpAddr::V6(ip)) => {
                let mapped = ip.to_ipv4_mapped().is_some_and(|ip| ip.is_link_local() || ip.is_unspecified());
                ip.is_unicast_link_local() || ip.is_unspecified() || mapped
            }
            Err(_) => false,
        };
        if link_local {
            return wrong("no link-local address");
        }
        Ok(Self {
            https,
            authority: authority.as_str().to_owned(),
            host,
            port: authority.port_u16().unwrap_or(default_port),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_address() {
        let uri = HttpUri::parse("https://issuer.example/keys?v=1#x").unwrap();
        assert_eq!(
            (uri.https, &*uri.authority, &*uri.host, uri.port, &*uri.path),
            (true, "issuer.example", "issuer.example", 443, "/keys?v=1")
        );
        let uri = HttpUri::parse("http://[::1]:8080").unwrap();
        assert_eq!((uri.https, &*uri.authority, &*uri.host, uri.port, &*uri.path), (false, "[::1]:8080", "::1", 8080, "/"));
    }

    #[test]
    fn what_is_no_plain_address_is_refused() {
        for text in [
            "",
            "keys",
            "/keys",
            "file:///etc/passwd",
            "ftp://host/keys",
            "http://",
            "http://user:secret@host/",
            "http://host:0/",
            "http://host:/",
            "http://host:99999/",
            "http://a b/",
            "http://host/\r\nx: y",
            "http://169.254.169.254/latest/meta-data",
            "http://[::ffff:169.254.170.2]/v2",
            "http://[fe80::1]/",
            "http://0.0.0.0/",
        ] {
            assert!(HttpUri::parse(text).is_err(), "{text:?}");
        }
    }
}
