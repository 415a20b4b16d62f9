//! Log records for a collector of OpenTelemetry.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/access_loggers/open_telemetry/v3/logs_service.proto>

use std::sync::Arc;

use crate::config::{LogFormat, OtelLog};
use crate::stream_info::{FormatContext, LocalInfo};
use crate::telemetry::export::otlp::{AnyValue, KeyValue, KeyValueList, LogRecord, Value, record, resource};
use crate::telemetry::export::{Exporter, Form};
use crate::telemetry::format::{Format, FormatError};
use crate::telemetry::trace::nanoseconds;

/// What records say and who gets them.
#[derive(Debug)]
pub(super) struct OtelRecords {
    body: Body,
    attributes: Fields,
    exporter: Arc<Exporter>,
}

type Fields = Box<[(String, Format)]>;

#[derive(Debug)]
enum Body {
    None,
    Text(Format),
    Map(Fields),
}

/// The form of an exporter of these records.
pub(crate) fn form(log: &OtelLog, local: &LocalInfo) -> Form {
    let labels =
        [("log_name", &log.log_name), ("zone_name", &local.zone), ("cluster_name", &local.cluster), ("node_name", &local.node)];
    let labels = labels.into_iter().filter(|_| log.builtin_labels).map(|(key, value)| (key.to_owned(), value.clone()));
    Form::Logs(resource(labels.chain(log.resource_attributes.iter().cloned())))
}

impl OtelRecords {
    pub(super) fn compile(body: &LogFormat, log: &OtelLog, exporter: Arc<Exporter>) -> Result<Self, FormatError> {
        let body = match body {
            LogFormat::Text(text) if text.is_empty() => Body::None,
            LogFormat::Text(text) => Body::Text(Format::compile(text)?),
            LogFormat::Json { fields: all, .. } => Body::Map(fields(all)?),
        };
        Ok(Self { body, attributes: fields(&log.attributes)?, exporter })
    }

    /// Queues a record; `buffer` is memory to be used.
    pub(super) fn log(&self, context: &FormatContext<'_>, buffer: &mut Vec<u8>) {
        let body = match &self.body {
            Body::None => None,
            Body::Text(format) => Some(AnyValue::text(render(format, context, buffer))),
            Body::Map(fields) => {
                let values = render_all(fields, context, buffer);
                Some(AnyValue { value: Some(Value::List(KeyValueList { values })) })
            }
        };
        let ids = context.info.trace;
        let message = LogRecord {
            time_unix_nano: nanoseconds(context.info.start_time),
            body,
            attributes: render_all(&self.attributes, context, buffer),
            trace_id: ids.map(|ids| ids.trace.to_be_bytes().to_vec()).unwrap_or_default(),
            span_id: ids.map(|ids| ids.span.to_be_bytes().to_vec()).unwrap_or_default(),
        };
        buffer.clear();
        record(&message, buffer);
        self.exporter.push(buffer);
    }
}

fn fields(formats: &[(String, String)]) -> Result<Fields, FormatError> {
    formats.iter().map(|(key, format)| Ok((key.clone(), Format::compile(format)?))).collect()
}

fn render(format: &Format, context: &FormatContext<'_>, buffer: &mut Vec<u8>) -> String {
    buffer.clear();
    format.render(context, buffer);
    String::from_utf8_lossy(buffer).into_owned()
}

fn render_all(fields: &Fields, context: &FormatContext<'_>, buffer: &mut Vec<u8>) -> Vec<KeyValue> {
    fields.iter().map(|(key, format)| KeyValue::text(key, render(format, context, buffer))).collect()
}
