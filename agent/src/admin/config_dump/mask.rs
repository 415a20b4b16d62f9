//! A field mask over JSON: `mask=cluster.name,version_info`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Of a mask, in names.
const MAX_MASK: usize = 256;

/// A field mask: names to keep, and what to keep inside of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mask(BTreeMap<String, Self>);

impl Mask {
    /// # Errors
    /// When it is too long.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.split(['.', ',']).count() > MAX_MASK {
            return Err(format!("mask: expected at most {MAX_MASK} names"));
        }
        let mut mask = Self::default();
        for path in text.split(',').filter(|path| !path.is_empty()) {
            path.split('.').fold(&mut mask, |at, name| at.0.entry(name.to_owned()).or_default());
        }
        Ok(mask)
    }

    /// What is kept inside of a field; `None` when the field is not kept.
    pub(super) fn inside(&self, field: &str) -> Option<&Self> {
        if self.0.is_empty() { Some(self) } else { self.0.get(field) }
    }

    pub(super) fn apply(&self, object: Map<String, Value>) -> Map<String, Value> {
        if self.0.is_empty() {
            return object;
        }
        let kept = object.into_iter().filter_map(|(key, value)| match self.0.get(&key) {
            Some(inside) => Some((key, inside.apply_to(value))),
            // What an Any is stays with it.
            None => (key == "@type").then_some((key, value)),
        });
        kept.collect()
    }

    fn apply_to(&self, value: Value) -> Value {
        match value {
            Value::Object(object) => Value::Object(self.apply(object)),
            Value::Array(items) => items.into_iter().map(|item| self.apply_to(item)).collect(),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn masks_keep_what_they_name() {
        let mask = Mask::parse("cluster.name,cluster.lb,version_info").unwrap();
        let Value::Object(element) = json!({
            "version_info": "1",
            "last_updated": "now",
            "cluster": {"@type": "x", "name": "a", "lb": [{"deep": 1}], "other": 2},
        }) else {
            panic!()
        };
        assert_eq!(
            Value::Object(mask.apply(element)),
            json!({"version_info": "1", "cluster": {"@type": "x", "name": "a", "lb": [{"deep": 1}]}})
        );
        assert!(mask.inside("cluster").is_some() && mask.inside("last_updated").is_none());
        assert!(Mask::default().inside("anything").is_some());
        assert!(Mask::parse(&"a.".repeat(MAX_MASK)).is_err());
    }
}
