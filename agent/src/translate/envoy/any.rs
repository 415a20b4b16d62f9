//! Typed configuration: what an Any holds.

use prost::{Message, Name};
use skiff_proto::google::protobuf::{Any, Struct};

use super::outcome::{Outcome, invalid};

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

/// The full name of the message inside, looking through a `TypedStruct`.
pub(super) fn type_name(any: &Any) -> String {
    let name = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
    let outer = name(&any.type_url);
    match TypedStruct::decode(any.value.as_slice()) {
        Ok(inner) if is_typed_struct(&outer) => name(&inner.type_url),
        _ => outer,
    }
}

/// The message of type `T` inside.
pub(super) fn unpack<T: Message + Name + Default>(any: &Any) -> Outcome<T> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != T::full_name() {
        return invalid(format!("expected {}, found {name}", T::full_name()));
    }
    T::decode(any.value.as_slice()).or_else(|error| invalid(format!("{name} cannot be decoded: {error}")))
}
