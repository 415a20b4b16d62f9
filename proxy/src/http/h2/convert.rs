//! Heads between the `http` crate's types, which h2 speaks, and ours.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Method, Request, Response, StatusCode, Uri};

use super::super::head::{Headers, Known, RequestHead, ResponseHead, Scheme, Version};

/// Why a request that h2 accepted is refused all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// `:path` is missing, empty or not absolute.
    Path,
    /// A header that has no place in HTTP/2.
    ConnectionHeader,
    /// More fields than the limit.
    TooManyHeaders,
}

/// Fills `head` from a request.
///
/// # Errors
/// For what RFC 9113 calls malformed and h2 lets through.
pub fn read_request(request: &http::request::Parts, max_headers: u32, head: &mut RequestHead) -> Result<(), RequestError> {
    head.clear();
    head.version = Version::Http2;
    head.method = request.method.clone();
    head.scheme = if request.uri.scheme() == Some(&UriScheme::HTTPS) { Scheme::Https } else { Scheme::Http };
    if request.headers.len() > max_headers as usize {
        return Err(RequestError::TooManyHeaders);
    }
    if let Some(authority) = request.uri.authority() {
        head.set_authority(authority.as_str().as_bytes());
    }
    let mut cookie: Vec<u8> = Vec::new();
    for (name, value) in &request.headers {
        let value = value.as_bytes();
        match Known::of(name.as_str().as_bytes()) {
            Known::Connection | Known::ProxyConnection | Known::KeepAlive | Known::TransferEncoding | Known::Upgrade => {
                return Err(RequestError::ConnectionHeader);
            }
            Known::Te if value != b"trailers" => return Err(RequestError::ConnectionHeader),
            // RFC 9113 §8.2.3: crumbs are joined before they leave HTTP/2.
            Known::Cookie => {
                if !cookie.is_empty() {
                    cookie.extend_from_slice(b"; ");
                }
                cookie.extend_from_slice(value);
                continue;
            }
            Known::Other if name == http::header::HOST => {
                if !head.has_authority() {
                    head.set_authority(value);
                }
                continue;
            }
            _ => {}
        }
        head.headers.push(name.as_str().as_bytes(), value);
    }
    if !cookie.is_empty() {
        head.headers.push_known(Known::Cookie, &cookie);
    }
    match request.uri.path_and_query() {
        Some(path) if path.as_str().starts_with('/') || path == "*" => head.set_path(path.as_str().as_bytes()),
        None if head.method == Method::CONNECT => {}
        _ => return Err(RequestError::Path),
    }
    Ok(())
}

/// Fills `head` from a response.
pub fn read_response(response: &http::response::Parts, head: &mut ResponseHead) {
    head.clear();
    head.version = Version::Http2;
    head.status = response.status;
    for (name, value) in &response.headers {
        head.headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Trailers as a field list.
pub fn read_trailers(map: &HeaderMap) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in map {
        headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
    headers
}

fn append(headers: &Headers, map: &mut HeaderMap) {
    map.reserve(headers.len());
    for (name, value) in headers.iter() {
        // Both codecs have checked every field on its way in; what cannot be said in HTTP/2 is left out rather than sent broken.
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else { continue };
        map.append(name, value);
    }
}

/// A request for h2; `None` when authority or path cannot be expressed.
pub fn write_request(head: &RequestHead) -> Option<Request<()>> {
    let mut uri = Uri::builder().scheme(match head.scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    });
    uri = uri.authority(Authority::try_from(head.authority()).ok()?);
    uri = uri.path_and_query(PathAndQuery::try_from(if head.path().is_empty() { b"/" } else { head.path() }).ok()?);
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri.build().ok()?;
    *request.version_mut() = http::Version::HTTP_2;
    append(&head.headers, request.headers_mut());
    request.headers_mut().remove(http::header::TRANSFER_ENCODING);
    Some(request)
}

/// A response for h2.
pub fn write_response(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = if head.status == StatusCode::SWITCHING_PROTOCOLS { StatusCode::OK } else { head.status };
    *response.version_mut() = http::Version::HTTP_2;
    append(&head.headers, response.headers_mut());
    response
}

/// Trailers for h2.
pub fn write_trailers(trailers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    append(trailers, &mut map);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: Request<()>) -> http::request::Parts {
        request.into_parts().0
    }

    #[test]
    fn cookies_are_joined_and_host_gives_way_to_authority() {
        let request =
            Request::get("http://a.example/p?q=1").header("cookie", "a=1").header("host", "b.example").header("cookie", "b=2");
        let mut head = RequestHead::new();
        read_request(&parts(request.body(()).unwrap()), 100, &mut head).unwrap();
        assert_eq!(head.authority(), b"a.example");
        assert_eq!(head.path(), b"/p?q=1");
        assert_eq!(head.headers.get(Known::Cookie), Some(&b"a=1; b=2"[..]));
        assert_eq!(head.headers.len(), 1);
    }

    #[test]
    fn connection_headers_are_refused() {
        for (name, value) in [("connection", "close"), ("te", "gzip"), ("upgrade", "x"), ("transfer-encoding", "chunked")] {
            let request = Request::get("http://a/").header(name, value).body(()).unwrap();
            assert_eq!(
                read_request(&parts(request), 100, &mut RequestHead::new()),
                Err(RequestError::ConnectionHeader),
                "{name}"
            );
        }
        let request = Request::get("http://a/").header("te", "trailers").body(()).unwrap();
        assert_eq!(read_request(&parts(request), 100, &mut RequestHead::new()), Ok(()));
    }

    #[test]
    fn a_request_goes_out_with_its_pseudo_headers() {
        let mut head = RequestHead::new();
        head.set_authority(b"details.bookinfo:9080");
        head.set_path(b"/details/0");
        head.headers.push(b"x-a", b"1");
        let request = write_request(&head).unwrap();
        assert_eq!(request.uri().to_string(), "http://details.bookinfo:9080/details/0");
        assert_eq!(request.headers()["x-a"], "1");
        head.set_authority(b"not a host");
        assert!(write_request(&head).is_none());
    }
}
