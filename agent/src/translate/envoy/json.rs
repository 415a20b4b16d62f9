//! Messages from JSON, by the protobuf JSON mapping: names in snake or camel case, `10s` for a Duration, `@type` for an Any.
//!
//! <https://protobuf.dev/programming-guides/json/>. Every mistake is reported with its path, not only the first.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use base64::Engine;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde_json::Value as Json;

use super::any;
use super::outcome::{At, Invalid, Outcome, invalid};

/// Descriptors of the messages that skiff reads: megabytes, of which a running sidecar needs none. They are there for as long as
/// somebody holds them; who reads or writes many messages holds them over all of them.
#[expect(clippy::expect_used, reason = "the descriptors are built into the program and every test decodes them")]
pub(crate) fn descriptors() -> Arc<DescriptorPool> {
    static HELD: Mutex<Weak<DescriptorPool>> = Mutex::new(Weak::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.upgrade().unwrap_or_else(|| {
        let pool = DescriptorPool::decode(skiff_proto::ENVOY_DESCRIPTORS).expect("the descriptors were made by our build script");
        let pool = Arc::new(pool);
        *held = Arc::downgrade(&pool);
        pool
    })
}

/// The message of type `T` that `json` stands for.
pub(crate) fn from_json<T: Message + prost::Name + Default>(json: &Json) -> Outcome<T> {
    let Some(descriptor) = descriptors().get_message_by_name(&T::full_name()) else {
        return invalid(format!("no descriptor of {}", T::full_name()));
    };
    message(&descriptor, json)?.transcode_to().or_else(|error| invalid(error.to_string()))
}

/// Descriptors of the filters that Istio adds: these alone come as a `TypedStruct`, and [`descriptors`] take megabytes.
#[expect(clippy::expect_used, reason = "the descriptors are built into the program and every test decodes them")]
static FILTERS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(skiff_proto::FILTER_DESCRIPTORS).expect("the descriptors were made by our build script")
});

/// The encoded message of this type that `json` stands for; `None` when it is no filter of Istio's.
pub(super) fn encoded(name: &str, json: &Json) -> Outcome<Option<Vec<u8>>> {
    let descriptor = FILTERS.get_message_by_name(name);
    descriptor.map(|descriptor| Ok(message(&descriptor, json)?.encode_to_vec())).transpose()
}

fn message(descriptor: &MessageDescriptor, json: &Json) -> Outcome<DynamicMessage> {
    if let Some(bytes) = well_known(descriptor, json)? {
        return DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).or_else(|error| invalid(error.to_string()));
    }
    let Json::Object(object) = json else { return expected("an object", json) };
    let mut message = DynamicMessage::new(descriptor.clone());
    let mut failed = Vec::new();
    for (key, json) in object {
        let field = descriptor.get_field_by_name(key).or_else(|| descriptor.get_field_by_json_name(key));
        let Some(field) = field else {
            failed.push(Invalid { path: key.clone(), reason: format!("unknown field of {}", descriptor.full_name()) });
            continue;
        };
        if json.is_null() && !is_message(&field, "google.protobuf.Value") {
            continue;
        }
        match field_value(&field, json).at(field.name()) {
            Ok(_) if one_of_is_taken(&message, &field) => {
                let others = "excludes another field that is set".to_owned();
                failed.push(Invalid { path: field.name().to_owned(), reason: others });
            }
            Ok(value) => message.set_field(&field, value),
            Err(all) => failed.extend(all),
        }
    }
    if failed.is_empty() { Ok(message) } else { Err(failed) }
}

fn is_message(field: &FieldDescriptor, name: &str) -> bool {
    field.kind().as_message().is_some_and(|message| message.full_name() == name)
}

fn one_of_is_taken(message: &DynamicMessage, field: &FieldDescriptor) -> bool {
    field.containing_oneof().is_some_and(|one_of| one_of.fields().any(|other| message.has_field(&other)))
}

fn field_value(field: &FieldDescriptor, json: &Json) -> Outcome<Value> {
    if field.is_map() {
        return map(field, json);
    }
    if !field.is_list() {
        return scalar(&field.kind(), json);
    }
    let Json::Array(items) = json else { return expected("a list", json) };
    let (mut values, mut failed) = (Vec::with_capacity(items.len()), Vec::new());
    for (index, item) in items.iter().enumerate() {
        match scalar(&field.kind(), item).at(&format!("[{index}]")) {
            Ok(value) => values.push(value),
            Err(all) => failed.extend(all),
        }
    }
    if failed.is_empty() { Ok(Value::List(values)) } else { Err(failed) }
}

fn map(field: &FieldDescriptor, json: &Json) -> Outcome<Value> {
    let kind = field.kind();
    let (Some(entry), Json::Object(object)) = (kind.as_message(), json) else { return expected("an object", json) };
    let (key_kind, value_kind) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
    let mut values = HashMap::with_capacity(object.len());
    for (key, item) in object {
        let at = format!("[{key:?}]");
        let map_key = match key_kind {
            Kind::String => MapKey::String(key.clone()),
            Kind::Uint32 => MapKey::U32(number(&Json::String(key.clone()), "an unsigned 32-bit number").at(&at)?),
            _ => return invalid("maps with such keys are not supported").at(&at),
        };
        values.insert(map_key, scalar(&value_kind, item).at(&at)?);
    }
    Ok(Value::Map(values))
}

fn scalar(kind: &Kind, json: &Json) -> Outcome<Value> {
    Ok(match kind {
        Kind::Bool => match json {
            Json::Bool(value) => Value::Bool(*value),
            _ => return expected("true or false", json),
        },
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(json, "a 32-bit number")?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(json, "a 64-bit number")?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number(json, "an unsigned 32-bit number")?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(json, "an unsigned 64-bit number")?),
        Kind::Float => Value::F32(number(json, "a number")?),
        Kind::Double => Value::F64(number(json, "a number")?),
        Kind::String => match json {
            Json::String(value) => Value::String(value.clone()),
            _ => return expected("a string", json),
        },
        Kind::Bytes => match json {
            Json::String(value) => match base64::engine::general_purpose::STANDARD.decode(value) {
                Ok(bytes) => Value::Bytes(bytes.into()),
                Err(_) => return expected("base64", json),
            },
            _ => return expected("base64", json),
        },
        Kind::Enum(descriptor) => enumeration(descriptor, json)?,
        Kind::Message(descriptor) => Value::Message(message(descriptor, json)?),
    })
}

fn enumeration(descriptor: &EnumDescriptor, json: &Json) -> Outcome<Value> {
    let known = match json {
        Json::String(name) => descriptor.get_value_by_name(name),
        Json::Number(number) => {
            number.as_i64().and_then(|number| i32::try_from(number).ok()).and_then(|number| descriptor.get_value(number))
        }
        _ => None,
    };
    match known {
        Some(value) => Ok(Value::EnumNumber(value.number())),
        None => {
            let names: Vec<String> = descriptor.values().map(|value| value.name().to_owned()).collect();
            expected(format!("one of {}", names.join(", ")), json)
        }
    }
}

/// Numbers may be written as strings, and YAML writers like `1.0`.
fn number<T: FromStr>(json: &Json, what: &str) -> Outcome<T> {
    let text = match json {
        Json::Number(number) => number.to_string(),
        Json::String(text) => text.clone(),
        _ => return expected(what, json),
    };
    text.parse().or_else(|_| text.strip_suffix(".0").unwrap_or("-").parse()).or_else(|_| expected(what, json))
}

/// The encoded form of messages that have a JSON form of their own.
fn well_known(descriptor: &MessageDescriptor, json: &Json) -> Outcome<Option<Vec<u8>>> {
    use skiff_proto::google::protobuf as pb;
    Ok(Some(match descriptor.full_name() {
        "google.protobuf.Any" => any(json)?.encode_to_vec(),
        "google.protobuf.Duration" => duration(json)?.encode_to_vec(),
        "google.protobuf.BoolValue" => match json {
            Json::Bool(value) => pb::BoolValue { value: *value }.encode_to_vec(),
            _ => return expected("true or false", json),
        },
        "google.protobuf.UInt32Value" => pb::UInt32Value { value: number(json, "an unsigned 32-bit number")? }.encode_to_vec(),
        "google.protobuf.UInt64Value" => pb::UInt64Value { value: number(json, "an unsigned 64-bit number")? }.encode_to_vec(),
        "google.protobuf.DoubleValue" => pb::DoubleValue { value: number(json, "a number")? }.encode_to_vec(),
        "google.protobuf.StringValue" => match json {
            Json::String(value) => pb::StringValue { value: value.clone() }.encode_to_vec(),
            _ => return expected("a string", json),
        },
        "google.protobuf.Struct" => match json {
            Json::Object(object) => structure(object).encode_to_vec(),
            _ => return expected("an object", json),
        },
        "google.protobuf.Value" => value(json).encode_to_vec(),
        _ => return Ok(None),
    }))
}

/// An Any whose type is not known here keeps its name and carries the JSON as a Struct: translation decides by the name.
fn any(json: &Json) -> Outcome<skiff_proto::google::protobuf::Any> {
    let Json::Object(object) = json else { return expected("an object with @type", json) };
    let Some(Json::String(type_url)) = object.get("@type") else { return invalid("is missing").at("@type") };
    let mut rest = object.clone();
    rest.remove("@type");
    let name = type_url.rsplit('/').next().unwrap_or_default();
    if any::is_typed_struct(name) {
        let Some(Json::String(inner)) = rest.get("type_url").or_else(|| rest.get("typeUrl")) else {
            return invalid("is missing").at("type_url");
        };
        let fields = rest.get("value").and_then(Json::as_object).cloned().unwrap_or_default();
        let known = encoded(inner.rsplit('/').next().unwrap_or_default(), &Json::Object(fields.clone())).at("value")?;
        let value = known.unwrap_or_else(|| structure(&fields).encode_to_vec());
        return Ok(skiff_proto::google::protobuf::Any { type_url: inner.clone(), value });
    }
    let value = match descriptors().get_message_by_name(name) {
        Some(descriptor) => message(&descriptor, &Json::Object(rest))?.encode_to_vec(),
        None => structure(&rest).encode_to_vec(),
    };
    Ok(skiff_proto::google::protobuf::Any { type_url: type_url.clone(), value })
}

fn structure(object: &serde_json::Map<String, Json>) -> skiff_proto::google::protobuf::Struct {
    let fields = object.iter().map(|(key, item)| (key.clone(), value(item))).collect();
    skiff_proto::google::protobuf::Struct { fields }
}

fn value(json: &Json) -> skiff_proto::google::protobuf::Value {
    use skiff_proto::google::protobuf::value::Kind;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => {
            Kind::ListValue(skiff_proto::google::protobuf::ListValue { values: items.iter().map(value).collect() })
        }
        Json::Object(object) => Kind::StructValue(structure(object)),
    };
    skiff_proto::google::protobuf::Value { kind: Some(kind) }
}

/// `1.5s`: seconds with at most nine decimals.
fn duration(json: &Json) -> Outcome<skiff_proto::google::protobuf::Duration> {
    let wrong = || expected("a duration such as 1.5s", json);
    let Some(text) = json.as_str().and_then(|text| text.strip_suffix('s')) else { return wrong() };
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "0"));
    let decimal = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !decimal(whole) || !decimal(decimals) || decimals.len() > 9 {
        return wrong();
    }
    let (Ok(seconds), Ok(nanos)) = (whole.parse::<i64>(), format!("{decimals:0<9}").parse::<i32>()) else { return wrong() };
    let sign = if negative { -1 } else { 1 };
    Ok(skiff_proto::google::protobuf::Duration { seconds: seconds * i64::from(sign), nanos: nanos * sign })
}

fn expected<T>(what: impl Display, json: &Json) -> Outcome<T> {
    let found = match json {
        Json::Array(_) => "a list".to_owned(),
        Json::Object(_) => "an object".to_owned(),
        // What stands here may be a key.
        Json::String(text) if text.len() > 80 => "a longer text".to_owned(),
        other => other.to_string(),
    };
    invalid(format!("expected {what}, found {found}"))
}
