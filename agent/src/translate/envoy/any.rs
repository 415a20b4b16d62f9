//! Typed configuration: what an Any holds.

use std::borrow::Cow;

use prost::{Message, Name};
use serde_json::{Map, Value as Json};
use skiff_proto::google::protobuf::value::Kind;
use skiff_proto::google::protobuf::{Any, Struct, Value};

use super::json;
use super::outcome::{At, Outcome, invalid};

/// `xds.type.v3.TypedStruct`: a message as a Struct, for types that not everybody has compiled in.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TypedStruct {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<Struct>,
}

/// Whether `name` is one of the wrappers that name another type.
pub(super) fn is_typed_struct(name: &str) -> bool {
    matches!(name, "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
}

fn short(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

fn typed_struct(any: &Any) -> Option<TypedStruct> {
    TypedStruct::decode(any.value.as_slice()).ok().filter(|_| is_typed_struct(short(&any.type_url)))
}

/// The full name of the message inside, looking through a `TypedStruct`.
pub(super) fn type_name(any: &Any) -> String {
    typed_struct(any).map_or_else(|| short(&any.type_url).to_owned(), |inner| short(&inner.type_url).to_owned())
}

/// The same message without its `TypedStruct`, where it has one and its type is known.
///
/// # Errors
/// When the Struct holds what its type does not: the same rules as for JSON.
pub(super) fn open(any: &Any) -> Outcome<Cow<'_, Any>> {
    let Some(inner) = typed_struct(any) else { return Ok(Cow::Borrowed(any)) };
    let fields = Json::Object(inner.value.map(object).unwrap_or_default());
    match json::encoded(short(&inner.type_url), &fields).at("value")? {
        Some(value) => Ok(Cow::Owned(Any { type_url: inner.type_url, value })),
        None => Ok(Cow::Borrowed(any)),
    }
}

/// The message of type `T` inside.
pub(super) fn unpack<T: Message + Name + Default>(any: &Any) -> Outcome<T> {
    let any = open(any)?;
    let name = short(&any.type_url);
    if name != T::full_name() {
        return invalid(format!("expected {}, found {name}", T::full_name()));
    }
    T::decode(any.value.as_slice()).or_else(|error| invalid(format!("{name} cannot be decoded: {error}")))
}

fn object(message: Struct) -> Map<String, Json> {
    message.fields.into_iter().map(|(name, value)| (name, to_json(value))).collect()
}

fn to_json(value: Value) -> Json {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(flag)) => Json::Bool(flag),
        Some(Kind::NumberValue(number)) => serde_json::Number::from_f64(number).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(text)) => Json::String(text),
        Some(Kind::StructValue(inner)) => Json::Object(object(inner)),
        Some(Kind::ListValue(list)) => Json::Array(list.values.into_iter().map(to_json).collect()),
    }
}
