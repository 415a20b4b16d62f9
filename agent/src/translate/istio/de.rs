//! From [`Node`]s to typed resources through serde, with the line and the path of the field in every error.
//!
//! serde's own errors know neither, so this small deserializer notes both where a visitor first fails and words the
//! reason in one way: the value that was found, then what was expected.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::yaml::{Key, Node, Value};

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// Zero until the innermost deserializer has placed the error.
    pub(crate) line: u64,
    pub(crate) path: String,
    pub(crate) reason: String,
}

impl FieldError {
    pub(crate) fn at(line: u64, path: String, reason: impl Into<String>) -> Self {
        Self { line, path, reason: reason.into() }
    }

    fn unplaced(path: String, reason: String) -> Self {
        Self { line: 0, path, reason }
    }

    /// Sets line and path unless a deserializer further in has done so.
    fn place(mut self, line: u64, path: &Path<'_>) -> Self {
        if self.line == 0 {
            self.line = line;
            let suffix = std::mem::take(&mut self.path);
            self.path = path.to_string();
            if !suffix.is_empty() {
                if !self.path.is_empty() {
                    self.path.push('.');
                }
                self.path.push_str(&suffix);
            }
        }
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.line, self.path, self.reason)
    }
}

impl std::error::Error for FieldError {}

impl serde::de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::unplaced(String::new(), message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("{}: expected {expected}", Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("{variant:?}: expected one of {}", expected.join(", ")))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("unknown field, expected one of {}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::unplaced(field.to_owned(), "missing".to_owned())
    }
}

/// A found value in the words of YAML.
struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Bool(value) => write!(f, "{value}"),
            Unexpected::Signed(value) => write!(f, "{value}"),
            Unexpected::Unsigned(value) => write!(f, "{value}"),
            Unexpected::Float(value) => write!(f, "{value}"),
            Unexpected::Str(value) => write!(f, "{value:?}"),
            Unexpected::Unit | Unexpected::Option => f.write_str("null"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Map | Unexpected::StructVariant => f.write_str("a mapping"),
            other => write!(f, "{other}"),
        }
    }
}

/// Where a node is, as a chain that lives on the stack and is only written out for an error.
enum Path<'p> {
    Root(&'p str),
    Field(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Field(Path::Root(""), name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A value that remembers where it was written, for errors that are only found when resources are put together.
#[derive(Clone, Debug)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) line: u64,
    pub(crate) path: String,
}

impl<T> Located<T> {
    pub(crate) fn error(&self, reason: impl Into<String>) -> FieldError {
        FieldError::at(self.line, self.path.clone(), reason)
    }
}

/// Name of the newtype through which [`Located`] asks [`NodeDeserializer`] for the place.
const LOCATED: &str = "$Located";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LocatedVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for LocatedVisitor<T> {
            type Value = Located<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
                let missing = || serde::de::Error::custom("a value without a place");
                Ok(Located {
                    value: parts.next_element()?.ok_or_else(missing)?,
                    line: parts.next_element()?.ok_or_else(missing)?,
                    path: parts.next_element()?.ok_or_else(missing)?,
                })
            }
        }
        deserializer.deserialize_newtype_struct(LOCATED, LocatedVisitor(std::marker::PhantomData))
    }
}

/// Reads `T` from `node`, whose place in its document is `path` (empty for the document itself).
pub(crate) fn from_node<T: DeserializeOwned>(node: &Node, path: &str) -> Result<T, FieldError> {
    NodeDeserializer { node, path: &Path::Root(path) }.seed(std::marker::PhantomData)
}

#[derive(Clone, Copy)]
struct NodeDeserializer<'de, 'p> {
    node: &'de Node,
    path: &'p Path<'p>,
}

impl<'de> NodeDeserializer<'de, '_> {
    /// Reads through `seed`, and places the errors that it makes by itself, after the value was read.
    fn seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, FieldError> {
        seed.deserialize(self).map_err(|error| error.place(self.node.line, self.path))
    }

    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(value) => visitor.visit_borrowed_str(value),
            Value::Sequence(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), path: self.path }),
            Value::Mapping(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None, path: self.path }),
        }
        .map_err(|error| error.place(self.node.line, self.path))
    }
}

impl<'de> Deserializer<'de> for NodeDeserializer<'de, '_> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, FieldError> {
        if name == LOCATED { visitor.visit_seq(Place { inner: self, step: 0 }) } else { visitor.visit_newtype_struct(self) }
    }

    // `spec:` without a value means an empty one, as it does for Kubernetes.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.node.value {
            Value::Null => visitor
                .visit_map(Entries { entries: [].iter(), value: None, path: self.path })
                .map_err(|error| error.place(self.node.line, self.path)),
            _ => self.visit(visitor),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.node.value {
            Value::Null => visitor.visit_seq(Items { items: [].iter().enumerate(), path: self.path }),
            _ => self.visit(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match &self.node.value {
            Value::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            Value::Mapping(entries) if entries.len() == 1 => visitor.visit_enum(Variant { entry: &entries[0], path: self.path }),
            Value::Mapping(_) => Err(serde::de::Error::custom(format_args!("expected exactly one of {}", variants.join(", ")))),
            other => Err(serde::de::Error::custom(format_args!("{other}: expected one of {}", variants.join(", ")))),
        }
        .map_err(|error| error.place(self.node.line, self.path))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

struct Items<'de, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    path: &'p Path<'p>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, FieldError> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        NodeDeserializer { node, path: &Path::Index(self.path, index) }.seed(seed).map(Some)
    }
}

struct Entries<'de, 'p> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    value: Option<&'de (Key, Node)>,
    path: &'p Path<'p>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        let key: StrDeserializer<'_, FieldError> = entry.0.name.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.place(entry.0.line, &Path::Field(self.path, &entry.0.name)))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let (key, node) = self.value.take().ok_or_else(|| serde::de::Error::custom("a value without a key"))?;
        NodeDeserializer { node, path: &Path::Field(self.path, &key.name) }.seed(seed)
    }
}

/// A one-entry mapping as a variant: `{exact: /health}`.
struct Variant<'de, 'p> {
    entry: &'de (Key, Node),
    path: &'p Path<'p>,
}

impl<'de> EnumAccess<'de> for Variant<'de, '_> {
    type Error = FieldError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), FieldError> {
        let name: StrDeserializer<'_, FieldError> = self.entry.0.name.as_str().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de, '_> {
    type Error = FieldError;

    fn unit_variant(self) -> Result<(), FieldError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, FieldError> {
        let (key, node) = self.entry;
        NodeDeserializer { node, path: &Path::Field(self.path, &key.name) }.seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, FieldError> {
        let (key, node) = self.entry;
        NodeDeserializer { node, path: &Path::Field(self.path, &key.name) }.visit(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, FieldError> {
        let (key, node) = self.entry;
        NodeDeserializer { node, path: &Path::Field(self.path, &key.name) }.visit(visitor)
    }
}

/// The three parts of a [`Located`]: value, line, path.
struct Place<'de, 'p> {
    inner: NodeDeserializer<'de, 'p>,
    step: u8,
}

impl<'de> SeqAccess<'de> for Place<'de, '_> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, FieldError> {
        self.step += 1;
        match self.step {
            1 => seed.deserialize(self.inner).map(Some),
            2 => seed.deserialize(self.inner.node.line.into_deserializer()).map(Some),
            3 => seed.deserialize(self.inner.path.to_string().into_deserializer()).map(Some),
            _ => Ok(None),
        }
    }
}
