//! From text to tokens.

/// A token, and the byte at which it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    /// An operator or a bracket.
    Sign(&'static str),
}

/// Longer ones first.
const SIGNS: [&str; 26] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]", "{", "}",
    "=", "|",
];

/// All tokens of `source`.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>, String> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(first) = source[at..].chars().next() {
        if first.is_ascii_whitespace() {
            at += 1;
        } else if source[at..].starts_with("//") {
            at += source[at..].find('\n').unwrap_or(source.len() - at);
        } else {
            let (token, length) = token(&source[at..], first).map_err(|reason| format!("{reason} at byte {at}"))?;
            all.push((token, at));
            at += length;
        }
    }
    Ok(all)
}

fn token(rest: &str, first: char) -> Result<(Token, usize), String> {
    let raw = rest.strip_prefix(['r', 'R']).filter(|quoted| quoted.starts_with(['"', '\'']));
    if let Some(quoted) = raw {
        return text(quoted, true).map(|(token, length)| (token, length + 1));
    }
    if first == '"' || first == '\'' {
        return text(rest, false);
    }
    if first.is_ascii_digit() {
        return number(rest);
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        return Ok((Token::Name(rest[..end].to_owned()), end));
    }
    let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign)).filter(|sign| !matches!(**sign, "=" | "|"));
    sign.map(|sign| (Token::Sign(sign), sign.len())).ok_or_else(|| format!("{first:?} is not part of the language"))
}

fn number(rest: &str) -> Result<(Token, usize), String> {
    let digits = |from: usize| rest[from..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| from + end);
    if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = u64::from_str_radix(&hex[..end], 16).map_err(|_| "a number that is none".to_owned())?;
        return integer(value, rest, end + 2);
    }
    let mut end = digits(0);
    let fraction = rest[end..].strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if fraction {
        end = digits(end + 1);
    }
    let exponent =
        rest[end..].strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).map_or((rest, 1), |rest| (rest, 2)));
    let exponent = exponent.filter(|(rest, _)| rest.starts_with(|c: char| c.is_ascii_digit()));
    if let Some((_, skipped)) = exponent {
        end = digits(end + skipped);
    }
    if fraction || exponent.is_some() {
        return rest[..end].parse().map(|value| (Token::Double(value), end)).map_err(|_| "a number that is none".to_owned());
    }
    integer(rest[..end].parse().map_err(|_| "a number that is too large".to_owned())?, rest, end)
}

fn integer(value: u64, rest: &str, end: usize) -> Result<(Token, usize), String> {
    if rest[end..].starts_with(['u', 'U']) {
        return Ok((Token::Uint(value), end + 1));
    }
    i64::try_from(value).map(|value| (Token::Int(value), end)).map_err(|_| "a number that is too large".to_owned())
}

/// A text in quotes; `raw` takes backslashes as they are.
fn text(quoted: &str, raw: bool) -> Result<(Token, usize), String> {
    let mut chars = quoted.char_indices();
    let quote = chars.next().map_or('"', |(_, quote)| quote);
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\n' | '\r' => break,
            _ if c == quote => return Ok((Token::Text(value), at + 1)),
            '\\' if !raw => value.push(escape(&mut chars)?),
            _ => value.push(c),
        }
    }
    Err("a text without its closing quote".to_owned())
}

fn escape(chars: &mut std::str::CharIndices<'_>) -> Result<char, String> {
    let mut next = || chars.next().map(|(_, c)| c);
    let unknown = || "an unknown escape".to_owned();
    let kind = next().ok_or_else(unknown)?;
    let mut digits = |count: usize| {
        let number = (0..count).try_fold(0, |number: u32, _| Some(number * 16 + next()?.to_digit(16)?));
        number.and_then(char::from_u32).ok_or_else(unknown)
    };
    match kind {
        'n' => Ok('\n'),
        'r' => Ok('\r'),
        't' => Ok('\t'),
        '\\' | '"' | '\'' | '`' | '?' => Ok(kind),
        'x' | 'X' => digits(2),
        'u' => digits(4),
        _ => Err(unknown()),
    }
}
