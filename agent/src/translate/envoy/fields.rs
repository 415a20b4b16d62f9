//! Which fields are honoured, which may be ignored: everything else that is set rejects its resource.
//!
//! A translation that forgets a field would run something else than what was written, so the question is put to the
//! message itself: every set field, down to the messages inside of `typed_config`, must be in [`table::HONOURED`] or
//! [`table::IGNORED`]. New fields of a newer control plane are found the same way.

mod table;

use std::collections::BTreeSet;

use prost::{Message, Name};
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value};

use self::table::{HONOURED, IGNORED};
use super::json::POOL;
use super::outcome::Invalid;

/// What a message holds beside that which is translated.
#[derive(Default)]
pub(super) struct Check {
    /// Set, not known.
    pub(super) unsupported: Vec<Invalid>,
    /// Set, without effect; each path once, without indexes.
    pub(super) ignored: Vec<String>,
}

pub(super) fn check<T: Message + Name>(message: &T) -> Check {
    let descriptor = POOL.get_message_by_name(&T::full_name());
    let decoded = descriptor.and_then(|descriptor| DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok());
    let mut walk = Walk::default();
    match decoded {
        Some(decoded) => walk.message(&decoded, ""),
        None => walk.unsupported(String::new(), format!("no descriptor of {}", T::full_name())),
    }
    Check { unsupported: walk.unsupported, ignored: walk.ignored.into_iter().collect() }
}

#[derive(Default)]
struct Walk {
    unsupported: Vec<Invalid>,
    ignored: BTreeSet<String>,
}

impl Walk {
    fn unsupported(&mut self, path: String, reason: String) {
        self.unsupported.push(Invalid { path, reason });
    }

    fn message(&mut self, message: &DynamicMessage, path: &str) {
        let descriptor = message.descriptor();
        let name = descriptor.full_name();
        if name.starts_with("google.protobuf.") {
            return self.any(message, path);
        }
        let honoured = fields_of(HONOURED, name);
        let ignored = fields_of(IGNORED, name);
        for (field, value) in message.fields() {
            let at = join(path, field.name());
            if ignored.contains(&field.name()) {
                self.ignored.insert(format!("{}.{}", descriptor.name(), field.name()));
            } else if honoured.contains(&field.name()) {
                self.value(value, &at);
            } else {
                self.unsupported(at, format!("{name}.{} is not supported", field.name()));
            }
        }
        for unknown in message.unknown_fields() {
            self.unsupported(path.to_owned(), format!("{name} has an unknown field with number {}", unknown.number()));
        }
    }

    /// Types without a descriptor are left to the translation, which knows extensions by name.
    fn any(&mut self, message: &DynamicMessage, path: &str) {
        if message.descriptor().full_name() != "google.protobuf.Any" {
            return;
        }
        let Ok(any) = message.transcode_to::<skiff_proto::google::protobuf::Any>() else { return };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let Some(descriptor) = POOL.get_message_by_name(name) else { return };
        // A type that is known by its name only rejects the resource in the translation, with a better reason.
        if fields_of(HONOURED, name).is_empty() && fields_of(IGNORED, name).is_empty() {
            return;
        }
        if let Ok(inner) = DynamicMessage::decode(descriptor, any.value.as_slice()) {
            self.message(&inner, path);
        }
    }

    fn value(&mut self, value: &Value, path: &str) {
        match value {
            Value::Message(message) => self.message(message, path),
            Value::List(values) => {
                for (index, value) in values.iter().enumerate() {
                    self.value(value, &format!("{path}[{index}]"));
                }
            }
            Value::Map(values) => {
                for (key, value) in values {
                    let key = if let MapKey::String(key) = key { key.clone() } else { format!("{key:?}") };
                    self.value(value, &format!("{path}[{key:?}]"));
                }
            }
            _ => {}
        }
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn fields_of(table: &[(&str, &'static [&'static str])], name: &str) -> &'static [&'static str] {
    table.iter().find(|(message, _)| *message == name).map_or(&[], |(_, fields)| fields)
}
