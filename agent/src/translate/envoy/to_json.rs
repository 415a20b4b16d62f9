//! Messages to JSON, as Envoy's admin page writes them: the [protobuf JSON mapping](https://protobuf.dev/programming-guides/json/)
//! with the names of the `.proto` files. The way back is [`super::json`].

use base64::Engine;
use prost::Message;
use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage, Value};
use serde_json::{Map, Value as Json, json};
use skiff_proto::google::protobuf as pb;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::any::{self, TypedStruct};
use super::json::descriptors;

/// Messages inside each other that are written; what is nested deeper is left out.
const MAX_DEPTH: usize = 64;

/// A message of type `T` as JSON; null when its descriptor is not built in.
pub(crate) fn message_to_json<T: Message + prost::Name>(message: &T) -> Json {
    let descriptor = descriptors().get_message_by_name(&T::full_name());
    let decoded = descriptor.and_then(|descriptor| DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok());
    decoded.map_or(Json::Null, |decoded| message_at(&decoded, MAX_DEPTH))
}

/// What an Any of this type holds, with its `@type`. A type that is not known here, such as those of Istio's own extensions,
/// shows its bytes as `value` in base64: who knows it skips them, who does not would have nothing to read.
pub(crate) fn any_to_json(type_url: &str, bytes: &[u8]) -> Json {
    any_at(type_url, bytes, MAX_DEPTH)
}

fn any_at(type_url: &str, bytes: &[u8], depth: usize) -> Json {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    if any::is_typed_struct(name)
        && let Ok(inner) = TypedStruct::decode(bytes)
    {
        let value = inner.value.map_or_else(|| json!({}), |value| structure(value, depth));
        return json!({"@type": type_url, "type_url": inner.type_url, "value": value});
    }
    let decoded = descriptors()
        .get_message_by_name(name)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok())
        .filter(|_| depth > 0);
    let mut object = match decoded.map(|decoded| (has_own_form(name), message_at(&decoded, depth - 1))) {
        Some((false, Json::Object(object))) => object,
        Some((_, value)) => Map::from_iter([("value".to_owned(), value)]),
        None => Map::from_iter([("value".to_owned(), base64(bytes).into())]),
    };
    object.insert("@type".to_owned(), type_url.into());
    Json::Object(object)
}

fn message_at(message: &DynamicMessage, depth: usize) -> Json {
    let descriptor = message.descriptor();
    if let Some(json) = own_form(message, descriptor.full_name(), depth) {
        return json;
    }
    if depth == 0 {
        return json!({});
    }
    let fields = message.fields().map(|(field, value)| {
        let kind = field.kind();
        let json = match value {
            Value::List(items) => items.iter().map(|item| value_at(item, &kind, depth)).collect(),
            Value::Map(entries) => {
                let value_kind = kind.as_message().map(|entry| entry.map_entry_value_field().kind());
                let pairs = entries.iter().map(|(key, value)| {
                    (map_key(key), value_kind.as_ref().map_or(Json::Null, |kind| value_at(value, kind, depth)))
                });
                Json::Object(pairs.collect())
            }
            value => value_at(value, &kind, depth),
        };
        (field.name().to_owned(), json)
    });
    Json::Object(fields.collect())
}

fn value_at(value: &Value, kind: &Kind, depth: usize) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        // JavaScript cannot hold these.
        Value::I64(value) => value.to_string().into(),
        Value::U64(value) => value.to_string().into(),
        Value::F32(value) => float(f64::from(*value)),
        Value::F64(value) => float(*value),
        Value::String(text) => text.as_str().into(),
        Value::Bytes(bytes) => base64(bytes).into(),
        Value::EnumNumber(number) => {
            let named = kind.as_enum().and_then(|descriptor| descriptor.get_value(*number));
            named.map_or_else(|| (*number).into(), |value| value.name().into())
        }
        Value::Message(message) => message_at(message, depth.saturating_sub(1)),
        Value::List(_) | Value::Map(_) => Json::Null,
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn float(value: f64) -> Json {
    let special = || {
        if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
    };
    serde_json::Number::from_f64(value).map_or_else(|| special().into(), Json::Number)
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Whether an Any of this type holds its JSON as `value`.
fn has_own_form(name: &str) -> bool {
    name.starts_with("google.protobuf.") && !matches!(name, "google.protobuf.Empty")
}

/// The JSON of messages that have a form of their own.
fn own_form(message: &DynamicMessage, name: &str, depth: usize) -> Option<Json> {
    Some(match name {
        "google.protobuf.Any" => {
            let any: pb::Any = message.transcode_to().ok()?;
            if any.type_url.is_empty() { json!({}) } else { any_at(&any.type_url, &any.value, depth.saturating_sub(1)) }
        }
        "google.protobuf.Duration" => {
            let pb::Duration { seconds, nanos } = message.transcode_to().ok()?;
            duration(seconds, nanos).into()
        }
        "google.protobuf.Timestamp" => {
            let pb::Timestamp { seconds, nanos } = message.transcode_to().ok()?;
            let nanos = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
            OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()?.into()
        }
        "google.protobuf.BoolValue"
        | "google.protobuf.Int32Value"
        | "google.protobuf.Int64Value"
        | "google.protobuf.UInt32Value"
        | "google.protobuf.UInt64Value"
        | "google.protobuf.FloatValue"
        | "google.protobuf.DoubleValue"
        | "google.protobuf.StringValue"
        | "google.protobuf.BytesValue" => {
            let field = message.descriptor().get_field(1)?;
            value_at(&message.get_field(&field), &field.kind(), depth)
        }
        "google.protobuf.Struct" => structure(message.transcode_to().ok()?, depth),
        "google.protobuf.Value" => loose(message.transcode_to().ok()?, depth),
        "google.protobuf.ListValue" => {
            let list: pb::ListValue = message.transcode_to().ok()?;
            list.values.into_iter().map(|value| loose(value, depth)).collect()
        }
        _ => return None,
    })
}

/// `1.500s`, with as many decimals as are needed of 0, 3, 6 and 9.
fn duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
    match nanos {
        0 => format!("{sign}{seconds}s"),
        _ if nanos.is_multiple_of(1_000_000) => format!("{sign}{seconds}.{:03}s", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1_000) => format!("{sign}{seconds}.{:06}s", nanos / 1_000),
        _ => format!("{sign}{seconds}.{nanos:09}s"),
    }
}

fn structure(value: pb::Struct, depth: usize) -> Json {
    Json::Object(value.fields.into_iter().map(|(key, value)| (key, loose(value, depth))).collect())
}

fn loose(value: pb::Value, depth: usize) -> Json {
    use pb::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) => number(value),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::StructValue(_) | Kind::ListValue(_)) if depth == 0 => Json::Null,
        Some(Kind::StructValue(value)) => structure(value, depth - 1),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(|value| loose(value, depth - 1)).collect(),
    }
}

/// Numbers of a Struct are doubles; whole ones are written as such, ports above all.
fn number(value: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "whole and small enough")]
    let whole = (value.fract() == 0.0 && value.abs() < EXACT).then_some(value as i64);
    whole.map_or_else(|| float(value), Json::from)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use skiff_proto::envoy::config::core::v3::Node;
    use skiff_proto::envoy::config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener};
    use skiff_proto::envoy::config::{core::v3::Metadata, route::v3::RouteConfiguration};
    use skiff_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

    use super::super::from_json;
    use super::*;

    fn there_and_back<T: Message + prost::Name + Default + PartialEq + std::fmt::Debug>(file: &str) -> usize {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/xds/delta").join(file);
        let response = DeltaDiscoveryResponse::decode(fs::read(path).unwrap().as_slice()).unwrap();
        for any in response.resources.iter().filter_map(|resource| resource.resource.as_ref()) {
            let mut json = any_to_json(&any.type_url, &any.value);
            assert_eq!(json["@type"], any.type_url);
            json.as_object_mut().unwrap().remove("@type");
            let back: T = from_json(&json).unwrap_or_else(|all| panic!("{all:?} in {json:#}"));
            // Types that are not known here come back as another message; the JSON says what they were.
            assert_eq!(message_to_json(&back).to_string().len() > 2, json.to_string().len() > 2);
            let text = json.to_string();
            if !text.contains("TypedStruct") && !text.contains("metadataexchange") && !text.contains("stats.PluginConfig") {
                assert_eq!(back, T::decode(any.value.as_slice()).unwrap());
            }
        }
        response.resources.len()
    }

    #[test]
    fn what_istiod_sends_is_read_back_as_it_was() {
        assert!(there_and_back::<Cluster>("002-CDS-dresp.bin") > 5);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/xds/delta");
        let named = |kind: &str| {
            let mut files: Vec<String> =
                fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            files.sort();
            files.into_iter().find(|name| name.contains(kind) && name.contains("resp")).unwrap()
        };
        assert!(there_and_back::<ClusterLoadAssignment>(&named("-EDS-")) > 0);
        assert!(there_and_back::<Listener>(&named("-LDS-")) > 0);
        assert!(there_and_back::<RouteConfiguration>(&named("-RDS-")) > 0);
    }

    #[test]
    fn values_are_written_as_envoy_writes_them() {
        let cluster: Cluster = from_json(&json!({
            "name": "a", "type": "STRICT_DNS", "connect_timeout": "1.5s", "lb_policy": "RING_HASH",
            "ring_hash_lb_config": {"minimum_ring_size": "1024"}, "close_connections_on_host_health_failure": true,
        }))
        .unwrap();
        assert_eq!(
            message_to_json(&cluster),
            json!({
                "name": "a", "type": "STRICT_DNS", "connect_timeout": "1.500s", "lb_policy": "RING_HASH",
                "ring_hash_lb_config": {"minimum_ring_size": "1024"}, "close_connections_on_host_health_failure": true,
            })
        );
        let metadata: Metadata =
            from_json(&json!({"filter_metadata": {"istio": {"port": 9080, "share": 0.5, "of": [null, {}]}}})).unwrap();
        assert_eq!(
            message_to_json(&metadata),
            json!({"filter_metadata": {"istio": {"port": 9080, "share": 0.5, "of": [null, {}]}}})
        );
        assert_eq!(message_to_json(&Node::default()), json!({}));
        for (seconds, nanos, text) in
            [(-1, -500_000_000, "-1.500s"), (0, 1_000, "0.000001s"), (0, 1, "0.000000001s"), (7, 0, "7s")]
        {
            assert_eq!(duration(seconds, nanos), text);
        }
    }

    #[test]
    fn unknown_types_keep_their_name_and_bytes() {
        assert_eq!(
            any_to_json("type.googleapis.com/stats.PluginConfig", b"\x01"),
            json!({"@type": "type.googleapis.com/stats.PluginConfig", "value": "AQ=="})
        );
        assert_eq!(any_to_json("type.googleapis.com/envoy.config.cluster.v3.Cluster", b"\xff")["value"], "/w==");
        let seconds = pb::Duration { seconds: 3, nanos: 0 }.encode_to_vec();
        assert_eq!(any_to_json("type.googleapis.com/google.protobuf.Duration", &seconds)["value"], "3s");
    }
}
