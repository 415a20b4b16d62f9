//! HTTP/1 as the least forgiving server would read it (RFC 9112), written without a look at the product's own parser.
//!
//! Whatever skiff writes must be one message to this reader, with nothing to argue about: that is what makes smuggling impossible.

/// A message as it stands on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The three words of the first line.
    pub start: [Vec<u8>; 3],
    /// Fields in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// How long the body is said to be.
    pub framing: Framing,
    /// Bytes of the whole message.
    pub size: usize,
}

/// What delimits a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Nothing: there is none.
    #[default]
    None,
    /// `content-length`.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// The end of the connection.
    Close,
}

/// What kind of message to expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// A response, to HEAD or not.
    Response {
        /// The request was HEAD.
        head: bool,
        /// The request was CONNECT.
        connect: bool,
    },
}

impl Message {
    /// All values of a field.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value.as_slice())
    }

    fn one(&self, name: &'static str) -> Result<Option<&[u8]>, String> {
        let mut values = self.values(name);
        let first = values.next();
        if values.next().is_some() { Err(format!("{name} twice")) } else { Ok(first) }
    }
}

/// Reads one message; `None` when it is cut off.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8], kind: Kind) -> Result<Option<Message>, String> {
    let Some((mut message, size)) = read_head(bytes, kind)? else { return Ok(None) };
    message.size = size;
    let rest = &bytes[size..];
    let body = match message.framing {
        Framing::None => Some((Vec::new(), 0)),
        Framing::Length(length) => {
            let length = usize::try_from(length).map_err(|e| e.to_string())?;
            rest.get(..length).map(|body| (body.to_vec(), length))
        }
        Framing::Chunked => chunks(rest)?,
        Framing::Close => Some((rest.to_vec(), rest.len())),
    };
    Ok(body.map(|(body, length)| {
        message.body = body;
        message.size += length;
        message
    }))
}

/// Reads the head of a message, and how many bytes it takes.
///
/// # Errors
/// What is wrong with it.
pub fn read_head(bytes: &[u8], kind: Kind) -> Result<Option<(Message, usize)>, String> {
    let mut message = Message::default();
    let mut at = 0;
    let Some(first) = line(bytes, &mut at)? else { return Ok(None) };
    let words: Vec<&[u8]> = first.splitn(3, |b| *b == b' ').collect();
    let [a, b, c] = words[..] else { return Err(format!("first line {:?}", String::from_utf8_lossy(first))) };
    message.start = [a.to_vec(), b.to_vec(), c.to_vec()];
    let well_formed = match kind {
        Kind::Request => token(a) && !b.is_empty() && b.iter().all(|b| *b > b' ' && *b != 0x7f) && c == b"HTTP/1.1",
        Kind::Response { .. } => {
            matches!(a, b"HTTP/1.1" | b"HTTP/1.0") && b.len() == 3 && b.iter().all(u8::is_ascii_digit) && value(c)
        }
    };
    if !well_formed {
        return Err(format!("first line {:?}", String::from_utf8_lossy(first)));
    }
    loop {
        let Some(field) = line(bytes, &mut at)? else { return Ok(None) };
        if field.is_empty() {
            break;
        }
        let text = || String::from_utf8_lossy(field).into_owned();
        let colon = field.iter().position(|b| *b == b':').ok_or_else(|| format!("no colon in {:?}", text()))?;
        let (name, rest) = (&field[..colon], field[colon + 1..].trim_ascii());
        if !token(name) || !value(rest) {
            return Err(format!("field {:?}", text()));
        }
        message.fields.push((name.to_vec(), rest.to_vec()));
    }
    message.framing = framing(&message, kind)?;
    if kind == Kind::Request && message.values("host").count() != 1 {
        return Err("not exactly one host".to_owned());
    }
    Ok(Some((message, at)))
}

fn framing(message: &Message, kind: Kind) -> Result<Framing, String> {
    let length = match message.one("content-length")? {
        Some(digits) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
            Some(number.ok_or("content-length overflows")?)
        }
        Some(_) => return Err("content-length is no number".to_owned()),
        None => None,
    };
    let chunked = match message.one("transfer-encoding")? {
        Some(b"chunked") => true,
        Some(_) => return Err("transfer-encoding other than chunked".to_owned()),
        None => false,
    };
    if length.is_some() && chunked {
        return Err("content-length and transfer-encoding".to_owned());
    }
    if let Kind::Response { head, connect } = kind {
        let status = &message.start[1];
        let bodiless = status[0] == b'1' || status == b"204";
        if (bodiless || connect && status[0] == b'2') && (chunked || length.is_some_and(|length| length > 0)) {
            return Err(format!("a body is announced for {}", String::from_utf8_lossy(status)));
        }
        if head || bodiless || status == b"304" || connect && status[0] == b'2' {
            return Ok(Framing::None);
        }
    }
    Ok(match (length, chunked, kind) {
        (_, true, _) => Framing::Chunked,
        (Some(length), _, _) => Framing::Length(length),
        (None, _, Kind::Request) => Framing::None,
        (None, _, Kind::Response { .. }) => Framing::Close,
    })
}

/// The next line without its CRLF. A CR or LF alone, or another control character, is nobody's line.
fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, String> {
    let rest = &bytes[*at..];
    let Some(end) = rest.iter().position(|b| *b == b'\n') else { return Ok(None) };
    let line = rest[..end].strip_suffix(b"\r").ok_or("a bare LF")?;
    if line.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(format!("a control character in {:?}", String::from_utf8_lossy(line)));
    }
    *at += end + 1;
    Ok(Some(line))
}

fn token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn value(value: &[u8]) -> bool {
    value.iter().all(|b| *b >= b' ' && *b != 0x7f || *b == b'\t')
}

/// A chunked body without extensions, and how many bytes it takes.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(size) = line(bytes, &mut at)? else { return Ok(None) };
        if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
            return Err(format!("chunk size {:?}", String::from_utf8_lossy(size)));
        }
        let size = usize::from_str_radix(&String::from_utf8_lossy(size), 16).map_err(|e| e.to_string())?;
        if size == 0 {
            break;
        }
        let Some(data) = bytes.get(at..at + size) else { return Ok(None) };
        body.extend_from_slice(data);
        at += size;
        match line(bytes, &mut at)? {
            Some(b"") => {}
            Some(_) => return Err("no CRLF after a chunk".to_owned()),
            None => return Ok(None),
        }
    }
    // Trailers.
    loop {
        match line(bytes, &mut at)? {
            Some(b"") => return Ok(Some((body, at))),
            Some(field) => {
                let colon = field.iter().position(|b| *b == b':').ok_or("no colon in a trailer")?;
                if !token(&field[..colon]) {
                    return Err("the name of a trailer".to_owned());
                }
            }
            None => return Ok(None),
        }
    }
}
