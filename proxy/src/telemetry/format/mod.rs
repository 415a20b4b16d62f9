//! Envoy's format language, compiled: access-log lines and the values of header mutations.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter>
//!
//! [`Format::compile`] resolves every `%OPERATOR%` once, so that rendering is a walk over an enum that appends bytes. What
//! a peer chose (headers, SNI, certificate subjects) passes through `Output::untrusted`, so no value can end a
//! line and forge the next one. Quotes stay as they are in text, as in Envoy: who parses logs by machine takes JSON.

mod clock;
mod grpc;
mod lookup;
mod operator;
mod output;
mod parse;
mod template;
#[cfg(test)]
mod tests;

pub use grpc::grpc_status;
pub use template::LogTemplate;

use crate::stream_info::FormatContext;
use operator::Command;
use output::{Output, StaticText, Style, count_controls};

/// A compiled format string; also the values of header mutations.
#[derive(Clone, Debug)]
pub struct Format {
    pieces: Box<[Piece]>,
    /// Control characters in the static text.
    controls: usize,
}

/// Why a format string is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("format {format:?}: {reason}")]
pub struct FormatError {
    /// The format.
    pub format: String,
    /// What is wrong, where, and what was expected.
    pub reason: String,
}

/// What stands for a value that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Dash,
    Nothing,
}

/// Static text or one operator.
#[derive(Clone, Debug)]
enum Piece {
    Text(StaticText),
    Command(Command),
}

impl Format {
    /// Compiles `source`. `%%` is a percent sign; host name and environment are read now and are static text afterwards.
    ///
    /// # Errors
    /// When an operator is unknown, unterminated or has bad parameters; the reason names operator and byte position.
    pub fn compile(source: &str) -> Result<Self, FormatError> {
        let pieces = parse::parse(source).map_err(|reason| FormatError { format: source.to_owned(), reason })?;
        let controls = |piece: &Piece| if let Piece::Text(text) = piece { count_controls(text.as_str().as_bytes()) } else { 0 };
        Ok(Self { controls: pieces.iter().map(controls).sum(), pieces: pieces.into() })
    }

    /// Appends the rendered text. Missing values are `-`.
    pub fn render(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        self.render_text(context, Missing::Dash, out);
    }

    /// Appends the rendered text. Missing values are nothing, as in the values of header mutations, where Envoy leaves out
    /// a header whose value comes out empty.
    pub fn render_header(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        self.render_text(context, Missing::Nothing, out);
    }

    /// The text of a format without operators.
    pub fn as_static(&self) -> Option<&str> {
        match &*self.pieces {
            [] => Some(""),
            [Piece::Text(text)] => Some(text.as_str()),
            _ => None,
        }
    }

    fn render_text(&self, context: &FormatContext<'_>, missing: Missing, out: &mut Vec<u8>) {
        let start = out.len();
        self.render_styled(context, missing, &mut Output::new(out, Style::Raw));
        // One look at the whole text costs less than one at each value, and hostile values are rare.
        if count_controls(&out[start..]) != self.controls {
            out.truncate(start);
            self.render_styled(context, missing, &mut Output::new(out, Style::Line));
        }
    }

    fn render_styled(&self, context: &FormatContext<'_>, missing: Missing, out: &mut Output<'_>) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => text.write(out),
                Piece::Command(command) => {
                    if !command.write(context, out) && missing == Missing::Dash {
                        out.buffer.push(b'-');
                    }
                }
            }
        }
    }
}
