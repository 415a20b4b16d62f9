//! Which fields Envoy's messages have, by number: enough to walk encoded bytes and say what is in them.
//!
//! [`crate::ENVOY_DESCRIPTORS`] says the same and more, but has to be decoded into megabytes of heap first. These tables lie in the
//! program as they are, and take memory only where they are read.

/// A message of Envoy's API that skiff knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message(u16);

/// A field of a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, in snake case.
    pub name: &'static str,
    /// What it holds, if that is a message.
    pub message: Option<Message>,
    /// Whether it is a list or a map.
    pub is_repeated: bool,
    /// Whether it is a map: [`Self::message`] then has a key with number 1 and a value with number 2.
    pub is_map: bool,
}

struct MessageRow {
    name: u32,
    length: u16,
    first: u16,
    count: u16,
}

struct FieldRow {
    number: u32,
    name: u32,
    length: u16,
    flags: u8,
    message: u16,
}

// As in `build/schema.rs`.
const NO_MESSAGE: u16 = u16::MAX;
const REPEATED: u8 = 1;
const MAP: u8 = 2;

include!(concat!(env!("OUT_DIR"), "/envoy_schema.rs"));

fn text(at: u32, length: u16) -> &'static str {
    let at = at as usize;
    &NAMES[at..at + usize::from(length)]
}

impl Message {
    /// The message with this full name, such as `envoy.config.cluster.v3.Cluster`.
    pub fn named(name: &str) -> Option<Self> {
        let at = MESSAGES.binary_search_by(|row| text(row.name, row.length).cmp(name)).ok()?;
        u16::try_from(at).ok().map(Self)
    }

    /// Its full name.
    pub fn full_name(self) -> &'static str {
        let row = &MESSAGES[usize::from(self.0)];
        text(row.name, row.length)
    }

    /// Its name without the package.
    pub fn name(self) -> &'static str {
        let full = self.full_name();
        full.rsplit('.').next().unwrap_or(full)
    }

    /// The field with this number.
    pub fn field(self, number: u32) -> Option<Field> {
        let row = &MESSAGES[usize::from(self.0)];
        let fields = &FIELDS[usize::from(row.first)..usize::from(row.first) + usize::from(row.count)];
        let field = fields.iter().find(|field| field.number == number)?;
        Some(Field {
            name: text(field.name, field.length),
            message: Some(field.message).filter(|&message| message != NO_MESSAGE).map(Self),
            is_repeated: field.flags & REPEATED != 0,
            is_map: field.flags & MAP != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_number() {
        let cluster = Message::named("envoy.config.cluster.v3.Cluster").unwrap();
        assert_eq!((cluster.full_name(), cluster.name()), ("envoy.config.cluster.v3.Cluster", "Cluster"));
        let name = cluster.field(1).unwrap();
        assert_eq!((name.name, name.message, name.is_repeated), ("name", None, false));
        let assignment = cluster.field(33).unwrap();
        assert_eq!(assignment.message.unwrap().full_name(), "envoy.config.endpoint.v3.ClusterLoadAssignment");
        let options = cluster.field(36).unwrap();
        assert!(options.name == "typed_extension_protocol_options" && options.is_map && options.is_repeated);
        let entry = options.message.unwrap();
        assert_eq!(entry.field(2).unwrap().message.unwrap().full_name(), "google.protobuf.Any");
        assert_eq!(cluster.field(9999), None);
        assert_eq!(Message::named("envoy.config.cluster.v3.Klaster"), None);
    }
}
