//! The text of a dump: what stands around the elements.

use std::collections::VecDeque;

use serde_json::Value;

use super::mask::Mask;
use super::{ADMIN, MODEL, Section, View};

/// The text of a dump, piece by piece.
pub(super) struct Dump {
    view: View,
    mask: Option<Mask>,
    /// The elements themselves are the configs.
    as_configs: bool,
    sections: VecDeque<Section>,
    stage: Stage,
    /// Written so far.
    configs: usize,
    /// Of the current list, written so far.
    elements: usize,
}

enum Stage {
    Begin,
    Section,
    List,
    Done,
}

impl Dump {
    pub(super) fn new(view: View, mask: Option<Mask>, sections: Vec<Section>, as_configs: bool) -> Self {
        Self { view, mask, as_configs, sections: sections.into(), stage: Stage::Begin, configs: 0, elements: 0 }
    }

    /// The next piece; `None` behind the last. Some are empty.
    pub(super) fn next(&mut self) -> Option<String> {
        match self.stage {
            Stage::Begin => {
                self.stage = if self.as_configs { Stage::List } else { Stage::Section };
                Some("{\n\"configs\": [\n".to_owned())
            }
            Stage::Section => Some(self.section()),
            Stage::List => Some(self.element()),
            Stage::Done => None,
        }
    }

    fn end(&mut self) -> String {
        self.stage = Stage::Done;
        "\n]\n}\n".to_owned()
    }

    fn separator(&mut self) -> &'static str {
        self.configs += 1;
        if self.configs > 1 { ",\n" } else { "" }
    }

    /// What a section begins with.
    fn section(&mut self) -> String {
        let separator = if self.sections.is_empty() { "" } else { self.separator() };
        let Some(section) = self.sections.front_mut() else { return self.end() };
        self.stage = Stage::List;
        let prefix = if section.type_name == MODEL { "" } else { ADMIN };
        let mut fixed = std::mem::take(&mut section.fixed);
        if let Some(mask) = &self.mask {
            fixed = mask.apply(fixed);
            section.lists.retain(|list| mask.inside(list.field).is_some());
        }
        fixed.insert("@type".to_owned(), format!("{prefix}{}", section.type_name).into());
        let text = format!("{:#}", Value::Object(fixed));
        format!("{separator}{}", text.trim_end_matches('}').trim_end())
    }

    /// An element, or what ends a list or a section.
    fn element(&mut self) -> String {
        let Some(section) = self.sections.front_mut() else { return self.end() };
        let Some(list) = section.lists.first_mut() else {
            self.sections.pop_front();
            self.stage = Stage::Section;
            return if self.as_configs { String::new() } else { "\n}".to_owned() };
        };
        let Some(mut element) = self.view.next(&mut list.source) else {
            section.lists.remove(0);
            let close = if self.elements > 0 && !self.as_configs { "\n]" } else { "" };
            self.elements = 0;
            return close.to_owned();
        };
        if self.as_configs {
            let of_type = format!("{ADMIN}{}.{}", section.type_name, list.element);
            if let (Some(mask), Value::Object(object)) = (&self.mask, &mut element) {
                *object = mask.apply(std::mem::take(object));
            }
            element["@type"] = of_type.into();
            return format!("{}{element:#}", self.separator());
        }
        if let (Some(mask), Value::Object(object)) = (self.mask.as_ref().and_then(|mask| mask.inside(list.field)), &mut element) {
            *object = mask.apply(std::mem::take(object));
        }
        self.elements += 1;
        if self.elements == 1 { format!(",\n\"{}\": [\n{element:#}", list.field) } else { format!(",\n{element:#}") }
    }
}
