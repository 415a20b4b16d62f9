//! JSON of tokens and key sets, read strictly: a key that occurs twice could be read in two ways (RFC 7519 §4), so that it is
//! refused, as by Envoy. And written as Envoy writes it, where every number is a double.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Levels of lists and objects in each other, as protobuf's JSON has it.
const MAX_DEPTH: u8 = 100;

/// An object; `None` for anything else.
pub(crate) fn object(text: &[u8]) -> Option<Map<String, Value>> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = deserializer.deserialize_any(Strict(MAX_DEPTH)).ok()?;
    deserializer.end().ok()?;
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// Reads a value that may be nested so deep.
#[derive(Clone, Copy)]
struct Strict(u8);

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("nested too deep"))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("no finite number"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            let value = object.next_value_seed(inner)?;
            if values.insert(key, value).is_some() {
                return Err(A::Error::custom("a key occurs twice"));
            }
        }
        Ok(Value::Object(values))
    }
}

/// Appends `value` as JSON without blanks.
pub(crate) fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Number(number) => write_number(number.as_f64().unwrap_or_default(), out),
        Value::Array(list) => {
            out.push(b'[');
            for (index, value) in list.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(value, out);
            }
            out.push(b']');
        }
        Value::Object(object) => {
            out.push(b'{');
            for (index, (key, value)) in object.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_scalar(key, out);
                out.push(b':');
                write(value, out);
            }
            out.push(b'}');
        }
        scalar => write_scalar(scalar, out),
    }
}

fn write_scalar(value: &(impl serde::Serialize + ?Sized), out: &mut Vec<u8>) {
    // Fails on I/O only, of which a vector has none.
    drop(serde_json::to_writer(out, value));
}

/// A double as C++ writes it: whole numbers that fit 64 bits as such, others in the shortest form that reads back.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the ranges are checked")]
fn write_number(value: f64, out: &mut Vec<u8>) {
    const U64: f64 = 18_446_744_073_709_551_616.0;
    const I64: f64 = -9_223_372_036_854_775_808.0;
    if value.fract() == 0.0 && (0.0..U64).contains(&value) {
        return out.extend_from_slice(itoa::Buffer::new().format(value as u64).as_bytes());
    }
    if value.fract() == 0.0 && (I64..0.0).contains(&value) {
        return out.extend_from_slice(itoa::Buffer::new().format(value as i64).as_bytes());
    }
    let exponent = value.abs().log10().floor();
    if (-4.0..15.0).contains(&exponent) {
        return out.extend_from_slice(value.to_string().as_bytes());
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let sign = if exponent < 0 { '-' } else { '+' };
    out.extend_from_slice(format!("{digits}e{sign}{:02}", exponent.abs()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_that_can_be_read_in_one_way() {
        assert_eq!(object(b" {\"a\":[1,null,{\"b\":\"c\"}]}\n").unwrap()["a"][2]["b"], "c");
        for text in ["", "[]", "1", "{\"a\":1,\"a\":2}", "{\"x\":{\"a\":1,\"a\":1}}", "{} x", "{'a':1}", "{\"a\":\"\u{1}\"}"] {
            assert!(object(text.as_bytes()).is_none(), "{text}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_none(), "no UTF-8");
        let deep = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(object(deep(90).as_bytes()).is_some());
        assert!(object(deep(120).as_bytes()).is_none());
        assert!(object(deep(100_000).as_bytes()).is_none());
    }

    #[test]
    fn numbers_look_as_envoy_writes_them() {
        // Recorded from Envoy 1.40.
        for (text, expected) in [
            ("4102444800", "4102444800"),
            ("1.5", "1.5"),
            ("-3", "-3"),
            ("1e21", "1e+21"),
            ("12345678901234567890", "12345678901234567168"),
            ("9007199254740993", "9007199254740992"),
            ("0.1", "0.1"),
            ("1e-9", "1e-09"),
            ("123456789.125", "123456789.125"),
        ] {
            let mut out = Vec::new();
            write(&object(format!("{{\"c\":{text}}}").as_bytes()).unwrap()["c"], &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
