//! Turns descriptors into the tables of `skiff_proto::schema`: numbers and one string, so that they cost no memory until they
//! are read and nothing has to be relocated when the program starts.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet, MessageOptions};

use super::Result;

/// As in `src/schema.rs`.
const NO_MESSAGE: u16 = u16::MAX;
const REPEATED: u8 = 1;
const MAP: u8 = 2;

/// The Rust source of the tables.
pub(crate) fn tables(set: &FileDescriptorSet) -> Result<String> {
    let mut messages = BTreeMap::new();
    for file in &set.file {
        let package = file.package();
        for message in &file.message_type {
            collect(message, package, &mut messages);
        }
    }
    let index: HashMap<&str, usize> = messages.keys().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let (mut names, mut rows, mut fields, mut field_count) = (Names::default(), String::new(), String::new(), 0usize);
    for (name, message) in &messages {
        let first = field_count;
        for field in &message.field {
            let type_name = field.type_name().trim_start_matches('.');
            let is_message = field.r#type() == Type::Message;
            let inner = if is_message { messages.get(type_name).copied() } else { None };
            let of = if is_message { index.get(type_name).map_or(Ok(NO_MESSAGE), |&at| u16::try_from(at))? } else { NO_MESSAGE };
            let is_map = inner.is_some_and(|inner| inner.options.as_ref().is_some_and(MessageOptions::map_entry));
            let repeated = field.label() == Label::Repeated;
            let flags = if repeated { REPEATED } else { 0 } | if is_map { MAP } else { 0 };
            let (at, length) = names.place(field.name());
            writeln!(
                fields,
                "FieldRow {{ number: {}, name: {at}, length: {length}, flags: {flags}, message: {of} }},",
                field.number()
            )?;
            field_count += 1;
        }
        let (at, length) = names.place(name);
        writeln!(rows, "MessageRow {{ name: {at}, length: {length}, first: {first}, count: {} }},", field_count - first)?;
    }
    Ok(format!(
        "static NAMES: &str = {:?};\nstatic MESSAGES: [MessageRow; {}] = [\n{rows}];\nstatic FIELDS: [FieldRow; {field_count}] = [\n{fields}];\n",
        names.text,
        messages.len(),
    ))
}

fn collect<'a>(message: &'a DescriptorProto, scope: &str, messages: &mut BTreeMap<String, &'a DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(nested, &name, messages);
    }
    messages.insert(name, message);
}

/// All names in one string, each once.
#[derive(Default)]
struct Names {
    text: String,
    known: HashMap<String, usize>,
}

impl Names {
    fn place(&mut self, name: &str) -> (usize, usize) {
        let text = &mut self.text;
        let at = *self.known.entry(name.to_owned()).or_insert_with(|| {
            text.push_str(name);
            text.len() - name.len()
        });
        (at, name.len())
    }
}
