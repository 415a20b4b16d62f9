//! Access logs: which streams are logged, how their lines look and where they go.
//!
//! [`AccessLogs`] is what a listener, connection manager or TCP proxy holds: filters and templates, compiled. A line is
//! rendered into a buffer of the worker's thread and copied into the queue of its sink under a short lock; [`LogWriter`]'s
//! thread writes many lines with one system call.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage>

mod filter;
pub(crate) mod otel;
#[cfg(test)]
mod tests;
mod writer;

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

pub use writer::{LogOptions, LogWriter};

use super::export::Exporter;
use super::format::{FormatError, LogTemplate};
use crate::cel::CelError;
use crate::config;
use crate::stream_info::FormatContext;
use filter::Filter;
use otel::OtelRecords;
use writer::Sink;

/// Rendering buffers above this are given back: one 60 KiB head must not stay with every worker.
const KEPT_CAPACITY: usize = 16 * 1024;

/// Why a list of access logs is refused.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// A format string.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A filter's expression.
    #[error(transparent)]
    Cel(#[from] CelError),
    /// A filter names a response flag that does not exist.
    #[error("access log filter: unknown response flag {0:?}")]
    UnknownFlag(String),
    /// A file cannot be opened.
    #[error("access log {sink:?}: {source}")]
    Open {
        /// Where the lines would go.
        sink: config::AccessLogSink,
        /// What the system says.
        source: io::Error,
    },
}

/// A compiled list of access logs. Cheap to share; logging takes no system call while the writer is awake.
#[derive(Debug, Default)]
pub struct AccessLogs {
    logs: Box<[AccessLog]>,
}

#[derive(Debug)]
struct AccessLog {
    filter: Filter,
    output: Output,
}

#[derive(Debug)]
enum Output {
    Lines { template: LogTemplate, sink: Sink },
    Records(OtelRecords),
}

impl AccessLogs {
    /// Compiles `logs` and opens their sinks with `writer`; `exporter` finds those of records.
    ///
    /// # Errors
    /// When a format or filter is refused or a file cannot be opened.
    pub(crate) fn compile(
        logs: &[config::AccessLog],
        writer: &LogWriter,
        exporter: &dyn Fn(&config::OtelLog) -> Arc<Exporter>,
    ) -> Result<Self, AccessLogError> {
        let compile = |log: &config::AccessLog| {
            let filter = log.filter.as_ref().map_or(Ok(Filter::All), Filter::compile)?;
            if let config::AccessLogSink::OpenTelemetry(otel) = &log.sink {
                let records = OtelRecords::compile(&log.format, otel, exporter(otel))?;
                return Ok(AccessLog { filter, output: Output::Records(records) });
            }
            let template = LogTemplate::compile(&log.format)?;
            let open = |source| AccessLogError::Open { sink: log.sink.clone(), source };
            let sink = writer.sink(&log.sink).map_err(open)?;
            Ok(AccessLog { filter, output: Output::Lines { template, sink } })
        };
        Ok(Self { logs: logs.iter().map(compile).collect::<Result<_, AccessLogError>>()? })
    }

    /// Whether nothing is ever logged, so that the caller need not build a context.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Logs a stream that has ended. Never blocks on a sink: when a queue is full the line is dropped and counted.
    pub fn log(&self, context: &FormatContext<'_>) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        for log in &self.logs {
            if !log.filter.matches(context) {
                continue;
            }
            LINE.with_borrow_mut(|line| {
                line.clear();
                match &log.output {
                    Output::Lines { template, sink } => {
                        template.render(context, line);
                        sink.push(line);
                    }
                    Output::Records(records) => records.log(context, line),
                }
                if line.capacity() > KEPT_CAPACITY {
                    *line = Vec::new();
                }
            });
        }
    }
}
