//! Evaluation, in a bounded number of steps.

use std::cmp::Ordering;
use std::rc::Rc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::MAX_STEPS;
use super::node::{Function, Literal, Macro, Node, Operator};
use super::value::{Failure, Outcome, Value};
use crate::stream_info::FormatContext;

/// Bytes of new text that count as one step.
const BYTES_A_STEP: usize = 64;

/// One evaluation of an expression.
pub(super) struct Evaluation<'a, 's> {
    stream: &'s FormatContext<'a>,
    steps: usize,
    /// Of the macros around.
    variables: Vec<Value<'a>>,
}

impl<'a, 's> Evaluation<'a, 's> {
    pub(super) fn new(stream: &'s FormatContext<'a>) -> Self {
        Self { stream, steps: 0, variables: Vec::new() }
    }

    fn spend(&mut self, steps: usize) -> Result<(), Failure> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > MAX_STEPS { Err(Failure::Steps) } else { Ok(()) }
    }

    pub(super) fn value(&mut self, node: &'a Node) -> Outcome<'a> {
        self.spend(1)?;
        match node {
            Node::Literal(literal) => Ok(literal.into()),
            Node::Attribute(attribute) => attribute.of(self.stream),
            Node::Variable(depth) => self.variables.get(*depth).cloned().ok_or(Failure::Missing),
            Node::Entry(of, key) => {
                let of = self.value(of)?;
                of.entry(&self.value(key)?)
            }
            Node::Has(of, name) => self.has(of, name.as_deref()),
            Node::All(nodes) => self.until(nodes, false),
            Node::Any(nodes) => self.until(nodes, true),
            Node::Not(node) => match self.value(node)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                _ => Err(Failure::Type),
            },
            Node::Negative(node) => negative(&self.value(node)?),
            Node::Binary(operator, left, right) => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                self.binary(*operator, &left, &right)
            }
            Node::Choice(parts) => {
                let [condition, yes, no] = &**parts;
                match self.value(condition)? {
                    Value::Bool(true) => self.value(yes),
                    Value::Bool(false) => self.value(no),
                    _ => Err(Failure::Type),
                }
            }
            Node::List(nodes) => Ok(Value::List(self.values(nodes)?.into())),
            Node::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| Ok((self.value(key)?, self.value(value)?)));
                Ok(Value::Map(entries.collect::<Result<Vec<_>, Failure>>()?.into()))
            }
            Node::Call(function, arguments) => {
                let arguments = self.values(arguments)?;
                call(*function, &arguments)
            }
            Node::Matches(of, pattern) => match self.value(of)? {
                Value::Text(text) => Ok(Value::Bool(pattern.is_match(text.as_bytes()))),
                _ => Err(Failure::Type),
            },
            Node::Macro(kind, of, asked) => self.walk(*kind, of, asked),
        }
    }

    fn values(&mut self, nodes: &'a [Node]) -> Result<Vec<Value<'a>>, Failure> {
        nodes.iter().map(|node| self.value(node)).collect()
    }

    /// Whether there is a value at all; what `has()` asks about may itself be missing further up, which is no failure here.
    fn has(&mut self, of: &'a Node, name: Option<&'a str>) -> Outcome<'a> {
        let found = self.value(of).and_then(|value| match name {
            Some(name) => value.entry(&Value::Text(name.into())),
            None => Ok(value),
        });
        match found {
            Ok(_) => Ok(Value::Bool(true)),
            Err(Failure::Missing) => Ok(Value::Bool(false)),
            Err(failure) => Err(failure),
        }
    }

    /// `&&` (`decisive` is false) and `||`: one decisive value decides, whatever fails beside it.
    fn until(&mut self, nodes: &'a [Node], decisive: bool) -> Outcome<'a> {
        let mut failed = None;
        for node in nodes {
            match self.value(node) {
                Ok(Value::Bool(value)) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(Failure::Type)),
                Err(Failure::Steps) => return Err(Failure::Steps),
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn walk(&mut self, kind: Macro, of: &'a Node, asked: &'a [Node]) -> Outcome<'a> {
        let elements = self.value(of)?.elements()?;
        let (mut failed, mut hits, mut made) = (None, 0, Vec::new());
        for element in elements {
            self.variables.push(element.clone());
            let answer = self.ask(kind, element, asked, &mut made);
            self.variables.pop();
            match (kind, answer) {
                (_, Err(Failure::Steps)) => return Err(Failure::Steps),
                (Macro::All, Ok(false)) => return Ok(Value::Bool(false)),
                (Macro::Exists, Ok(true)) => return Ok(Value::Bool(true)),
                (Macro::All | Macro::Exists, Err(failure)) => failed = failed.or(Some(failure)),
                (_, Err(failure)) => return Err(failure),
                (_, Ok(hit)) => hits += usize::from(hit),
            }
        }
        match (kind, failed) {
            (_, Some(failure)) => Err(failure),
            (Macro::All, None) => Ok(Value::Bool(true)),
            (Macro::Exists, None) => Ok(Value::Bool(false)),
            (Macro::ExistsOne, None) => Ok(Value::Bool(hits == 1)),
            (Macro::Map | Macro::Filter, None) => Ok(Value::List(made.into())),
        }
    }

    /// Asks about the element that the innermost variable holds; what a list macro makes of it goes to `made`.
    fn ask(&mut self, kind: Macro, element: Value<'a>, asked: &'a [Node], made: &mut Vec<Value<'a>>) -> Result<bool, Failure> {
        let (condition, result) = match (kind, asked) {
            (Macro::Map, [result]) => (None, Some(result)),
            (Macro::Map, [condition, result]) => (Some(condition), Some(result)),
            (_, [condition, ..]) => (Some(condition), None),
            (_, []) => (None, None),
        };
        let hit = match condition.map(|condition| self.value(condition)).transpose()? {
            None => true,
            Some(Value::Bool(hit)) => hit,
            Some(_) => return Err(Failure::Type),
        };
        match result {
            Some(result) if hit => made.push(self.value(result)?),
            None if hit && kind == Macro::Filter => made.push(element),
            _ => {}
        }
        Ok(hit)
    }

    fn binary(&mut self, operator: Operator, left: &Value<'a>, right: &Value<'a>) -> Outcome<'a> {
        let ordered = |wanted: fn(Ordering) -> bool| left.order(right).map(wanted).map(Value::Bool).ok_or(Failure::Type);
        match operator {
            Operator::Equal => Ok(Value::Bool(left.equals(right))),
            Operator::NotEqual => Ok(Value::Bool(!left.equals(right))),
            Operator::Less => ordered(Ordering::is_lt),
            Operator::LessOrEqual => ordered(Ordering::is_le),
            Operator::Greater => ordered(Ordering::is_gt),
            Operator::GreaterOrEqual => ordered(Ordering::is_ge),
            Operator::In => match right {
                Value::List(items) => {
                    self.spend(items.len())?;
                    Ok(Value::Bool(items.iter().any(|item| item.equals(left))))
                }
                _ => match right.entry(left) {
                    Ok(_) => Ok(Value::Bool(true)),
                    Err(Failure::Missing) => Ok(Value::Bool(false)),
                    Err(failure) => Err(failure),
                },
            },
            Operator::Add => self.add(left, right),
            Operator::Subtract => match (left, right) {
                (Value::Duration(a), Value::Duration(b)) | (Value::Timestamp(a), Value::Timestamp(b)) => {
                    a.checked_sub(*b).map(Value::Duration).ok_or(Failure::Range)
                }
                (Value::Timestamp(a), Value::Duration(b)) => a.checked_sub(*b).map(Value::Timestamp).ok_or(Failure::Range),
                _ => arithmetic(operator, left, right),
            },
            Operator::Multiply | Operator::Divide | Operator::Remainder => arithmetic(operator, left, right),
        }
    }

    fn add(&mut self, left: &Value<'a>, right: &Value<'a>) -> Outcome<'a> {
        match (left, right) {
            (Value::Text(a), Value::Text(b)) => {
                self.spend((a.len() + b.len()) / BYTES_A_STEP)?;
                Ok(Value::Text(format!("{a}{b}").into()))
            }
            (Value::List(a), Value::List(b)) => {
                self.spend(a.len() + b.len())?;
                Ok(Value::List(a.iter().chain(&**b).cloned().collect::<Rc<[_]>>()))
            }
            (Value::Duration(a), Value::Duration(b)) => a.checked_add(*b).map(Value::Duration).ok_or(Failure::Range),
            (Value::Timestamp(a), Value::Duration(b)) | (Value::Duration(b), Value::Timestamp(a)) => {
                a.checked_add(*b).map(Value::Timestamp).ok_or(Failure::Range)
            }
            _ => arithmetic(Operator::Add, left, right),
        }
    }
}

impl<'a> From<&'a Literal> for Value<'a> {
    fn from(literal: &'a Literal) -> Self {
        match literal {
            Literal::Null => Self::Null,
            Literal::Bool(value) => Self::Bool(*value),
            Literal::Int(value) => Self::Int(*value),
            Literal::Uint(value) => Self::Uint(*value),
            Literal::Double(value) => Self::Double(*value),
            Literal::Text(text) => Self::Text(text.as_str().into()),
        }
    }
}

fn negative<'a>(value: &Value<'a>) -> Outcome<'a> {
    match value {
        Value::Int(value) => value.checked_neg().map(Value::Int).ok_or(Failure::Range),
        Value::Double(value) => Ok(Value::Double(-value)),
        _ => Err(Failure::Type),
    }
}

/// Two whole numbers of one type; `None` where the result is none of it.
macro_rules! checked {
    ($operator:expr, $a:expr, $b:expr) => {
        match $operator {
            Operator::Add => $a.checked_add(*$b),
            Operator::Subtract => $a.checked_sub(*$b),
            Operator::Multiply => $a.checked_mul(*$b),
            Operator::Divide => $a.checked_div(*$b),
            _ => $a.checked_rem(*$b),
        }
    };
}

/// Both sides have one type, as the language wants it.
fn arithmetic<'a>(operator: Operator, left: &Value<'a>, right: &Value<'a>) -> Outcome<'a> {
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => checked!(operator, a, b).map(Value::Int).ok_or(Failure::Range),
        (Value::Uint(a), Value::Uint(b)) => checked!(operator, a, b).map(Value::Uint).ok_or(Failure::Range),
        (Value::Double(a), Value::Double(b)) => match operator {
            Operator::Add => Ok(Value::Double(a + b)),
            Operator::Subtract => Ok(Value::Double(a - b)),
            Operator::Multiply => Ok(Value::Double(a * b)),
            Operator::Divide => Ok(Value::Double(a / b)),
            _ => Err(Failure::Type),
        },
        _ => Err(Failure::Type),
    }
}

fn call<'a>(function: Function, arguments: &[Value<'a>]) -> Outcome<'a> {
    match (function, arguments) {
        (Function::Size, [of]) => of.size().map(Value::Int),
        (Function::StartsWith, [Value::Text(a), Value::Text(b)]) => Ok(Value::Bool(a.starts_with(&**b))),
        (Function::EndsWith, [Value::Text(a), Value::Text(b)]) => Ok(Value::Bool(a.ends_with(&**b))),
        (Function::Contains, [Value::Text(a), Value::Text(b)]) => Ok(Value::Bool(a.contains(&**b))),
        (Function::String, [of]) => match of {
            Value::Text(_) => Ok(of.clone()),
            Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_) | Value::Timestamp(_) => {
                Ok(Value::Text(of.text().into()))
            }
            _ => Err(Failure::Type),
        },
        (Function::Int, [of]) => int(of),
        (Function::Uint, [Value::Text(text)]) => text.parse().map(Value::Uint).map_err(|_| Failure::Range),
        (Function::Uint, [of]) => match int(of)? {
            Value::Int(value) => u64::try_from(value).map(Value::Uint).map_err(|_| Failure::Range),
            _ => Err(Failure::Type),
        },
        (Function::Double, [Value::Text(text)]) => text.parse().map(Value::Double).map_err(|_| Failure::Range),
        (Function::Double, [of]) => of.double().map(Value::Double).ok_or(Failure::Type),
        (Function::Duration, [Value::Text(text)]) => duration(text).map(Value::Duration).ok_or(Failure::Range),
        (Function::Duration, [Value::Duration(value)]) => Ok(Value::Duration(*value)),
        (Function::Timestamp, [Value::Text(text)]) => {
            let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| Failure::Range)?;
            Ok(Value::Timestamp(time.unix_timestamp_nanos()))
        }
        (Function::Timestamp, [Value::Timestamp(value)]) => Ok(Value::Timestamp(*value)),
        _ => Err(Failure::Type),
    }
}

fn int<'a>(of: &Value<'a>) -> Outcome<'a> {
    match of {
        Value::Int(value) => Ok(Value::Int(*value)),
        Value::Uint(value) => i64::try_from(*value).map(Value::Int).map_err(|_| Failure::Range),
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
        Value::Double(value) if value.abs() < 9.2e18 => Ok(Value::Int(*value as i64)),
        Value::Double(_) => Err(Failure::Range),
        Value::Text(text) => text.parse().map(Value::Int).map_err(|_| Failure::Range),
        Value::Timestamp(nanoseconds) => {
            i64::try_from(nanoseconds.div_euclid(1_000_000_000)).map(Value::Int).map_err(|_| Failure::Range)
        }
        _ => Err(Failure::Type),
    }
}

/// `1h30m`, `1.5s`, `-3ms`.
fn duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..unit].parse().ok()?;
        let end = rest[unit..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| unit + end);
        total += number
            * match &rest[unit..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    let duration = Duration::try_from_secs_f64(total).ok()?;
    Some(sign * i128::try_from(duration.as_nanos()).ok()?)
}
