//! Expressions of CEL over the attributes of a stream, as access logs use them (Envoy's `Filters::Common::Expr`).
//!
//! Of the language there is what policies and filters are written in: literals, operators, members, indexes, `has()`, the macros
//! over lists and maps, and the standard functions on text, numbers and times. An expression is compiled when configuration is
//! published; attributes are resolved then, so that evaluating `response.code >= 400` is two steps and no look-up by name.
//!
//! Why not a library: the well-kept crate for CEL (`cel`) brings ANTLR's runtime and a dozen crates into every sidecar, builds a map
//! of all variables for every evaluation, and has no bound on what a nested macro may take.
//!
//! Bounds: [`MAX_SOURCE`], [`MAX_NESTING`] and [`MAX_NODES`] of an expression, [`MAX_STEPS`] of an evaluation.
//!
//! <https://github.com/google/cel-spec/blob/master/doc/langdef.md>,
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes>

mod attribute;
mod eval;
mod lex;
mod node;
mod parse;
#[cfg(test)]
mod tests;
mod value;

use crate::stream_info::FormatContext;
use eval::Evaluation;
use node::Node;

/// Bytes of an expression.
pub const MAX_SOURCE: usize = 4096;
/// Brackets and calls inside of each other.
pub const MAX_NESTING: usize = 32;
/// Operators, literals and attributes of an expression, which bounds how deep an evaluation goes.
pub const MAX_NODES: usize = 512;
/// Nodes that one evaluation may visit; text that it makes counts too.
pub const MAX_STEPS: usize = 10_000;

/// Why an expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CEL expression {expression:?}: {reason}")]
pub struct CelError {
    /// The expression.
    pub expression: String,
    /// What is wrong, where, and what was expected.
    pub reason: String,
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    root: Node,
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// When it is none, is too large, or names what no stream has.
    pub fn compile(source: &str) -> Result<Self, CelError> {
        let refuse = |reason: String| CelError { expression: source.chars().take(200).collect(), reason };
        if source.len() > MAX_SOURCE {
            return Err(refuse(format!("expected at most {MAX_SOURCE} bytes")));
        }
        parse::parse(source).map(|root| Self { root }).map_err(refuse)
    }

    /// Whether it holds; false for what is no truth value and for everything that cannot be evaluated, a missing attribute
    /// above all.
    pub fn holds(&self, stream: &FormatContext<'_>) -> bool {
        Evaluation::new(stream).value(&self.root).is_ok_and(|value| value.is_true())
    }

    /// Appends the value as text, or as JSON; false, and nothing appended, when it cannot be evaluated.
    pub(crate) fn write(&self, stream: &FormatContext<'_>, json: bool, out: &mut Vec<u8>) -> bool {
        match Evaluation::new(stream).value(&self.root) {
            Ok(value) => {
                out.extend_from_slice(if json { value.json().to_string() } else { value.text() }.as_bytes());
                true
            }
            Err(_) => false,
        }
    }
}
