//! Values of expressions.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::http::head::{Headers, RequestHead};

/// A value. What it borrows belongs to the stream or to the expression.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, str>),
    /// Nanoseconds.
    Duration(i128),
    /// Nanoseconds since 1970.
    Timestamp(i128),
    List(Rc<[Value<'a>]>),
    Map(Rc<[(Value<'a>, Value<'a>)]>),
    Request(&'a RequestHead),
    Headers(&'a Headers),
    Json(&'a Json),
    /// All metadata: maps by filter.
    Metadata(&'a crate::rbac::Metadata),
}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// An attribute or a key that is not there.
    Missing,
    /// Values that an operator or function does not take.
    Type,
    /// A number that does not fit, or a division by zero.
    Range,
    /// More steps than an evaluation may take.
    Steps,
}

pub(super) type Outcome<'a> = Result<Value<'a>, Failure>;

impl<'a> Value<'a> {
    pub(super) fn bytes(bytes: &'a [u8]) -> Self {
        Self::Text(String::from_utf8_lossy(bytes))
    }

    pub(super) fn of_json(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => Self::Double(number.as_f64().unwrap_or_default()),
            Json::String(text) => Self::Text(text.as_str().into()),
            Json::Array(items) => Self::List(items.iter().map(Self::of_json).collect()),
            Json::Object(_) => Self::Json(json),
        }
    }

    pub(super) fn duration(duration: Duration) -> Self {
        Self::Duration(i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX))
    }

    pub(super) fn timestamp(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::Timestamp(i128::try_from(since.as_nanos()).unwrap_or(i128::MAX))
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }

    /// How many elements, entries or characters there are.
    pub(super) fn size(&self) -> Result<i64, Failure> {
        let size = match self {
            Self::Text(text) => text.chars().count(),
            Self::List(items) => items.len(),
            Self::Map(entries) => entries.len(),
            Self::Request(head) => head.headers.len() + 4,
            Self::Headers(headers) => headers.len(),
            Self::Json(Json::Object(object)) => object.len(),
            _ => return Err(Failure::Type),
        };
        i64::try_from(size).map_err(|_| Failure::Range)
    }

    /// The value under a key: an element of a list, an entry of a map, a header.
    pub(super) fn entry(&self, key: &Value<'a>) -> Outcome<'a> {
        let name = || if let Value::Text(name) = key { Ok(name.as_ref()) } else { Err(Failure::Type) };
        match self {
            Self::List(items) => {
                let index = key.as_index().ok_or(Failure::Type)?;
                items.get(index).cloned().ok_or(Failure::Missing)
            }
            Self::Map(entries) => {
                entries.iter().find(|(known, _)| known.equals(key)).map(|(_, value)| value.clone()).ok_or(Failure::Missing)
            }
            Self::Json(Json::Object(object)) => object.get(name()?).map(Self::of_json).ok_or(Failure::Missing),
            Self::Metadata(metadata) => metadata.get(name()?, &[]).map(Self::of_json).ok_or(Failure::Missing),
            Self::Headers(headers) => header(headers, name()?),
            Self::Request(head) => match name()? {
                ":authority" | "host" if head.has_authority() => Ok(Self::bytes(head.authority())),
                ":path" => Ok(Self::bytes(head.path())),
                ":method" => Ok(Self::Text(head.method.as_str().to_owned().into())),
                ":scheme" => Ok(Self::Text(head.scheme.as_str().into())),
                name => header(&head.headers, name),
            },
            _ => Err(Failure::Type),
        }
    }

    fn as_index(&self) -> Option<usize> {
        match self {
            Self::Int(index) => usize::try_from(*index).ok(),
            Self::Uint(index) => usize::try_from(*index).ok(),
            _ => None,
        }
    }

    /// What a macro walks over: the elements of a list, the keys of a map.
    pub(super) fn elements(&self) -> Result<Vec<Value<'a>>, Failure> {
        let names = |headers: &'a Headers| headers.iter().map(|(name, _)| Self::bytes(name)).collect();
        match self {
            Self::List(items) => Ok(items.to_vec()),
            Self::Map(entries) => Ok(entries.iter().map(|(key, _)| key.clone()).collect()),
            Self::Json(Json::Object(object)) => Ok(object.keys().map(|key| Self::Text(key.as_str().into())).collect()),
            Self::Request(head) => Ok(names(&head.headers)),
            Self::Headers(headers) => Ok(names(headers)),
            _ => Err(Failure::Type),
        }
    }

    /// Equality; values of different kinds are different, numbers compare by their value.
    pub(super) fn equals(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == b,
            (Self::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(&**b).all(|(a, b)| a.equals(b)),
            (Self::Map(a), Value::Map(b)) => {
                let has = |(key, value): &(Value<'_>, Value<'_>)| b.iter().any(|(k, v)| key.equals(k) && value.equals(v));
                a.len() == b.len() && a.iter().all(has)
            }
            (Self::Json(a), Value::Json(b)) => a == b,
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }

    /// Order, of what has one.
    pub(super) fn order(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Value::Text(b)) => Some(a.as_ref().cmp(b.as_ref())),
            (Self::Duration(a), Value::Duration(b)) | (Self::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            _ => match (self.integer(), other.integer()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => self.double()?.partial_cmp(&other.double()?),
            },
        }
    }

    pub(super) fn integer(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some((*value).into()),
            Self::Uint(value) => Some((*value).into()),
            _ => None,
        }
    }

    /// A number as a floating point one.
    #[expect(clippy::cast_precision_loss, reason = "that is what the language says of such comparisons")]
    pub(super) fn double(&self) -> Option<f64> {
        match self {
            Self::Double(value) => Some(*value),
            _ => self.integer().map(|value| value as f64),
        }
    }

    /// As Envoy's formatter writes it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Null => "NULL".to_owned(),
            Self::Text(text) => text.clone().into_owned(),
            Self::Duration(_) | Self::Timestamp(_) => match self.json() {
                Json::String(text) => text,
                other => other.to_string(),
            },
            _ => self.json().to_string(),
        }
    }

    pub(super) fn json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => json!(value),
            Self::Int(value) => json!(value),
            Self::Uint(value) => json!(value),
            Self::Double(value) => json!(value),
            Self::Text(text) => json!(text),
            Self::Duration(nanoseconds) => json!(seconds(*nanoseconds)),
            Self::Timestamp(nanoseconds) => {
                let time = OffsetDateTime::from_unix_timestamp_nanos(*nanoseconds).ok();
                json!(time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default())
            }
            Self::List(items) => items.iter().map(Value::json).collect(),
            Self::Map(entries) => object(entries.iter().map(|(key, value)| (key.text(), value.json()))),
            Self::Request(head) => object(head.headers.iter().map(field)),
            Self::Headers(headers) => object(headers.iter().map(field)),
            Self::Json(json) => (*json).clone(),
            Self::Metadata(_) => Json::Null,
        }
    }
}

fn object(entries: impl Iterator<Item = (String, Json)>) -> Json {
    Json::Object(entries.collect())
}

fn field((name, value): (&[u8], &[u8])) -> (String, Json) {
    (String::from_utf8_lossy(name).into_owned(), json!(String::from_utf8_lossy(value)))
}

/// Repeated headers are one, with commas.
fn header<'a>(headers: &'a Headers, name: &str) -> Outcome<'a> {
    let mut values = headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value);
    let first = values.next().ok_or(Failure::Missing)?;
    let rest: Vec<&[u8]> = values.collect();
    if rest.is_empty() {
        return Ok(Value::bytes(first));
    }
    let all = [&[first][..], &rest].concat().join(&b","[..]);
    Ok(Value::Text(String::from_utf8_lossy(&all).into_owned().into()))
}

/// `1.5s`.
fn seconds(nanoseconds: i128) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let (whole, rest) = (nanoseconds.abs() / 1_000_000_000, nanoseconds.abs() % 1_000_000_000);
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:09}").trim_end_matches('0').to_owned() };
    format!("{sign}{whole}{fraction}s")
}
