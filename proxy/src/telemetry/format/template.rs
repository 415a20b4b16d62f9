//! A whole log line: text, or one JSON object.

use super::operator::Command;
use super::output::{Output, Style};
use super::{Format, FormatError, Missing, Piece};
use crate::config::LogFormat;
use crate::stream_info::FormatContext;

/// A compiled [`LogFormat`].
#[derive(Clone, Debug)]
pub struct LogTemplate {
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    Text(Format),
    Json { members: Box<[Member]>, omit_empty_values: bool },
}

#[derive(Clone, Debug)]
struct Member {
    /// The key, encoded, with its colon.
    key: Box<[u8]>,
    value: Format,
}

impl LogTemplate {
    /// Compiles a log format.
    ///
    /// # Errors
    /// When one of its format strings is refused.
    pub fn compile(format: &LogFormat) -> Result<Self, FormatError> {
        let layout = match format {
            LogFormat::Text(text) => Layout::Text(Format::compile(text)?),
            LogFormat::Json { fields, omit_empty_values, sort } => {
                let mut fields: Vec<_> = fields.iter().collect();
                if *sort {
                    fields.sort_by_key(|(key, _)| key);
                }
                let members = fields.into_iter().map(Member::compile).collect::<Result<_, _>>()?;
                Layout::Json { members, omit_empty_values: *omit_empty_values }
            }
        };
        Ok(Self { layout })
    }

    /// Appends one line. JSON lines end with a line feed, text lines with whatever the format ends with.
    pub fn render(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        match &self.layout {
            Layout::Text(format) => format.render(context, out),
            Layout::Json { members, omit_empty_values } => {
                let start = out.len();
                for member in members {
                    member.render(context, *omit_empty_values, out);
                }
                // Every member is preceded by a comma; the first one becomes the brace.
                match out.get_mut(start) {
                    Some(comma) => *comma = b'{',
                    None => out.push(b'{'),
                }
                out.extend_from_slice(b"}\n");
            }
        }
    }
}

impl Member {
    fn compile((key, value): &(String, String)) -> Result<Self, FormatError> {
        let mut encoded = vec![b'"'];
        Output::new(&mut encoded, Style::Json).literal(key);
        encoded.extend_from_slice(b"\":");
        Ok(Self { key: encoded.into(), value: Format::compile(value)? })
    }

    fn render(&self, context: &FormatContext<'_>, omit_empty_values: bool, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(b',');
        out.extend_from_slice(&self.key);
        match &*self.value.pieces {
            // A lone operator keeps its type: numbers are numbers, missing values are null.
            [Piece::Command(command)] => {
                if !render_typed(command, context, out) {
                    if omit_empty_values {
                        out.truncate(start);
                    } else {
                        out.extend_from_slice(b"null");
                    }
                }
            }
            _ => {
                let missing = if omit_empty_values { Missing::Nothing } else { Missing::Dash };
                out.push(b'"');
                self.value.render_styled(context, missing, &mut Output::new(out, Style::Json));
                out.push(b'"');
            }
        }
    }
}

fn render_typed(command: &Command, context: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
    if command.is_number() {
        return command.write(context, &mut Output::new(out, Style::Json));
    }
    if let Some(json) = command.json(context) {
        out.extend_from_slice(&json);
        return true;
    }
    out.push(b'"');
    if command.write(context, &mut Output::new(out, Style::Json)) {
        out.push(b'"');
        return true;
    }
    out.pop();
    false
}
