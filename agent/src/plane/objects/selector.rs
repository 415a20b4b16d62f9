//! Kubernetes' label selectors.

use serde::{Deserialize, Serialize};

use super::Labels;

/// What labels an object has to have; an empty one selects every object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// All of these.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
    /// And all of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// What one label has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRequirement")]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what; of `Exists` and `DoesNotExist` there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// It is there and is one of the values.
    In,
    /// It is missing, or is none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is missing.
    DoesNotExist,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

impl TryFrom<RawRequirement> for Requirement {
    type Error = &'static str;

    fn try_from(RawRequirement { key, operator, values }: RawRequirement) -> Result<Self, Self::Error> {
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => Err("values: expected at least one with In and NotIn"),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Err("values: expected none with Exists and DoesNotExist")
            }
            _ => Ok(Self { key, operator, values }),
        }
    }
}

impl LabelSelector {
    /// The first thing that `labels` lack, in words; `None` when they are selected.
    pub fn mismatch(&self, labels: &Labels) -> Option<String> {
        let missing = self.match_labels.iter().find(|(key, value)| labels.get(*key) != Some(value));
        if let Some((key, value)) = missing {
            return Some(format!("label {key} is {}, expected {value}", shown(labels, key)));
        }
        let unmet = self.match_expressions.iter().find(|requirement| !requirement.is_met(labels))?;
        let Requirement { key, operator, values } = unmet;
        let values = if values.is_empty() { String::new() } else { format!(" {}", values.join(", ")) };
        Some(format!("label {key} is {}, expected {operator:?}{values}", shown(labels, key)))
    }
}

impl Requirement {
    fn is_met(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

fn shown(labels: &Labels, key: &str) -> String {
    labels.get(key).map_or_else(|| "missing".to_owned(), |value| format!("{value:?}"))
}
