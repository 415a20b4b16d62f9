//! Which bytes a field may have, by the rules of Envoy's HTTP/2 library (RFC 9113 §8.2.1).

const NAME: u8 = 1;
const VALUE: u8 = 2;
const TOKEN: u8 = 4;
const AUTHORITY: u8 = 8;
const SCHEME: u8 = 16;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let mut class = 0;
        let alphanumeric = byte.is_ascii_alphanumeric();
        if alphanumeric || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~') {
            class |= TOKEN;
            if !byte.is_ascii_uppercase() {
                class |= NAME;
            }
        }
        if byte >= b' ' && byte != 0x7f || byte == b'\t' {
            class |= VALUE;
        }
        // No user information, no delimiter of a URI.
        if alphanumeric || matches!(byte, b'!' | b'$'..=b'.' | b':' | b';' | b'=' | b'[' | b']' | b'_' | b'~') {
            class |= AUTHORITY;
        }
        if alphanumeric || matches!(byte, b'+' | b'-' | b'.') {
            class |= SCHEME;
        }
        classes[at] = class;
        at += 1;
    }
    classes
}

fn all(text: &[u8], class: u8) -> bool {
    text.iter().all(|byte| CLASSES[usize::from(*byte)] & class != 0)
}

/// A field name in lower case, or a pseudo header's with its colon.
pub(super) fn is_name(name: &[u8]) -> bool {
    let name = name.strip_prefix(b":").unwrap_or(name);
    !name.is_empty() && all(name, NAME)
}

/// A field value: no control character but the tab.
pub(super) fn is_value(value: &[u8]) -> bool {
    all(value, VALUE)
}

/// A method.
pub(super) fn is_token(method: &[u8]) -> bool {
    !method.is_empty() && all(method, TOKEN)
}

/// A host with or without port.
pub(super) fn is_authority(authority: &[u8]) -> bool {
    !authority.is_empty() && all(authority, AUTHORITY)
}

/// A URI scheme.
pub(super) fn is_scheme(scheme: &[u8]) -> bool {
    scheme.first().is_some_and(u8::is_ascii_alphabetic) && all(scheme, SCHEME)
}

/// A path: anything but white space and control characters. What it means is looked at later.
pub(super) fn is_path(path: &[u8]) -> bool {
    !path.is_empty() && path.iter().all(|byte| *byte > b' ' && *byte != 0x7f)
}
