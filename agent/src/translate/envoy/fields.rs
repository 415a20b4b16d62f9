//! Which fields are honoured, which may be ignored: everything else that is set rejects its resource.
//!
//! A translation that forgets a field would run something else than what was written, so the question is put to the
//! message itself: every set field, down to the messages inside of `typed_config`, must be in [`table::HONOURED`] or
//! [`table::IGNORED`]. The bytes are walked as they are on the wire: a push of thousands of resources decodes nothing twice.

mod table;
pub(super) mod wire;

use std::collections::BTreeSet;

use prost::{Message, Name};
use skiff_proto::google::protobuf::Any;
use skiff_proto::schema;

use self::table::{HONOURED, IGNORED};
use self::wire::Value;
use super::any;
use super::outcome::Invalid;

/// Messages inside of messages; prost decodes no deeper.
const MAX_DEPTH: usize = 100;

/// What a message holds beside that which is translated.
#[derive(Default)]
pub(super) struct Check {
    /// Set, not known.
    pub(super) unsupported: Vec<Invalid>,
    /// Set, without effect; each path once, without indexes.
    pub(super) ignored: Vec<String>,
    /// Nested deeper than is looked at: not to be translated.
    pub(super) too_deep: bool,
}

pub(super) fn check<T: Message + Name>(message: &T) -> Check {
    check_wire::<T>(&message.encode_to_vec())
}

/// Of a message as it was sent, with the fields that decoding leaves out.
pub(super) fn check_wire<T: Name>(bytes: &[u8]) -> Check {
    let mut walk = Walk::default();
    match schema::Message::named(&T::full_name()) {
        Some(schema) => walk.message(schema, bytes, &Path::Root, 0),
        None => walk.unsupported(&Path::Root, format!("no descriptor of {}", T::full_name())),
    }
    Check { unsupported: walk.unsupported, ignored: walk.ignored.into_iter().collect(), too_deep: walk.too_deep }
}

/// Where the walk is. Written out only for what is found.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'static str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
}

impl Path<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Self::Root => {}
            Self::Field(parent, name) => {
                parent.write(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Self::Index(parent, index) => {
                parent.write(out);
                out.push_str(&format!("[{index}]"));
            }
            Self::Key(parent, key) => {
                parent.write(out);
                out.push_str(&format!("[{key:?}]"));
            }
        }
    }
}

#[derive(Default)]
struct Walk {
    unsupported: Vec<Invalid>,
    ignored: BTreeSet<String>,
    too_deep: bool,
}

impl Walk {
    fn unsupported(&mut self, path: &Path<'_>, reason: String) {
        let mut text = String::new();
        path.write(&mut text);
        self.unsupported.push(Invalid { path: text, reason });
    }

    fn message(&mut self, schema: schema::Message, bytes: &[u8], path: &Path<'_>, depth: usize) {
        let name = schema.full_name();
        if depth > MAX_DEPTH {
            self.too_deep = true;
            return self.unsupported(path, format!("{name} is nested more than {MAX_DEPTH} times"));
        }
        if name.starts_with("google.protobuf.") {
            return self.any(name, bytes, path, depth);
        }
        let honoured = fields_of(HONOURED, name);
        let ignored = fields_of(IGNORED, name);
        // How many elements of each list have been seen; an encoder may put others between them.
        let mut seen: Vec<(u32, usize)> = Vec::new();
        for field in wire::fields(bytes) {
            let Ok((number, value)) = field else {
                return self.unsupported(path, format!("{name} cannot be decoded"));
            };
            let Some(field) = schema.field(number) else {
                self.unsupported(path, format!("{name} has an unknown field with number {number}"));
                continue;
            };
            let at = Path::Field(path, field.name);
            if ignored.contains(&field.name) {
                self.ignored.insert(format!("{}.{}", schema.name(), field.name));
            } else if !honoured.contains(&field.name) {
                if field.is_repeated && seen.iter().any(|(of, _)| *of == number) {
                    continue;
                }
                seen.push((number, 0));
                self.unsupported(&at, format!("{name}.{} is not supported", field.name));
            } else if let (Some(inner), Value::Bytes(value)) = (field.message, value) {
                if field.is_map {
                    self.entry(inner, value, &at, depth);
                } else if field.is_repeated {
                    self.message(inner, value, &Path::Index(&at, next(&mut seen, number)), depth + 1);
                } else {
                    self.message(inner, value, &at, depth + 1);
                }
            }
        }
    }

    /// One entry of a map, whose value counts if it is a message.
    fn entry(&mut self, entry: schema::Message, bytes: &[u8], path: &Path<'_>, depth: usize) {
        let (mut key, mut inner) = ("", None);
        for (number, value) in wire::fields(bytes).flatten() {
            match (number, value) {
                (1, Value::Bytes(text)) => key = std::str::from_utf8(text).unwrap_or_default(),
                (2, Value::Bytes(value)) => inner = entry.field(2).and_then(|field| field.message).map(|inner| (inner, value)),
                _ => {}
            }
        }
        if let Some((inner, value)) = inner {
            self.message(inner, value, &Path::Key(path, key), depth + 1);
        }
    }

    /// Types without a descriptor are left to the translation, which knows extensions by name.
    fn any(&mut self, name: &str, bytes: &[u8], path: &Path<'_>, depth: usize) {
        if name != Any::full_name() {
            return;
        }
        let Ok(any) = Any::decode(bytes) else { return };
        // What a TypedStruct holds that its type does not is told by the translation.
        let Ok(any) = any::open(&any) else { return };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let Some(schema) = schema::Message::named(name) else { return };
        // A type that is known by its name only rejects the resource in the translation, with a better reason.
        if fields_of(HONOURED, name).is_empty() && fields_of(IGNORED, name).is_empty() {
            return;
        }
        self.message(schema, &any.value, path, depth + 1);
    }
}

/// The index of the next element of a list.
fn next(seen: &mut Vec<(u32, usize)>, number: u32) -> usize {
    match seen.iter_mut().find(|(of, _)| *of == number) {
        Some((_, count)) => {
            *count += 1;
            *count
        }
        None => {
            seen.push((number, 0));
            0
        }
    }
}

fn fields_of(table: &[(&str, &'static [&'static str])], name: &str) -> &'static [&'static str] {
    table.iter().find(|(message, _)| *message == name).map_or(&[], |(_, fields)| fields)
}
