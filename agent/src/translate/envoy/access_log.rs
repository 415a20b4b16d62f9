//! Access logs and their filters.

use std::sync::Arc;

use skiff_proto::envoy::config::accesslog::v3 as pb;
use skiff_proto::envoy::config::core::v3::substitution_format_string::Format;
use skiff_proto::envoy::config::core::v3::{DataSource, RuntimeUInt32, SubstitutionFormatString, data_source::Specifier};
use skiff_proto::envoy::data::accesslog::v3::AccessLogType;
use skiff_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use skiff_proto::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use skiff_proto::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use skiff_proto::envoy::extensions::access_loggers::stream::v3 as stream;
use skiff_proto::google::protobuf::{Any, Struct, value::Kind};
use skiff_proto::opentelemetry::common::v1::{KeyValueList, any_value};
use skiff_proxy::cel::Expression;
use skiff_proxy::config::{AccessLog, AccessLogFilter, AccessLogSink, Fraction, LogFormat, OtelLog};

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic, rbac, tracing};

pub(super) fn access_log(message: &pb::AccessLog) -> Outcome<AccessLog> {
    let pb::access_log::ConfigType::TypedConfig(config) = required(message.config_type.as_ref(), "typed_config")?;
    let (sink, format) = logger(config).at("typed_config")?;
    let filter = maybe(message.filter.as_ref(), "filter", filter)?;
    Ok(AccessLog { filter, format, sink })
}

fn logger(config: &Any) -> Outcome<(AccessLogSink, LogFormat)> {
    match any::type_name(config).as_str() {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => file(&any::unpack(config)?),
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let message: stream::StdoutAccessLog = any::unpack(config)?;
            let stream::stdout_access_log::AccessLogFormat::LogFormat(format) =
                required(message.access_log_format.as_ref(), "log_format")?;
            Ok((AccessLogSink::Stdout, substitution(format).at("log_format")?))
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            let message: stream::StderrAccessLog = any::unpack(config)?;
            let stream::stderr_access_log::AccessLogFormat::LogFormat(format) =
                required(message.access_log_format.as_ref(), "log_format")?;
            Ok((AccessLogSink::Stderr, substitution(format).at("log_format")?))
        }
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => open_telemetry(&any::unpack(config)?),
        other => invalid(format!("access logger {other} is not supported")),
    }
}

/// The fields of the deprecated `common_config` count where the newer ones beside it are not set.
fn open_telemetry(message: &OpenTelemetryAccessLogConfig) -> Outcome<(AccessLogSink, LogFormat)> {
    let common = message.common_config.clone().unwrap_or_default();
    let service = match (message.grpc_service.as_ref().or(common.grpc_service.as_ref()), &message.http_service) {
        (Some(grpc), None) => tracing::grpc_service(grpc).at("grpc_service")?,
        (None, Some(http)) => tracing::http_service(http, "/v1/logs").at("http_service")?,
        _ => return invalid("expected grpc_service or http_service"),
    };
    let fields = |list: Option<&KeyValueList>, field: &str| maybe(list, field, texts).map(Option::unwrap_or_default);
    let format = match message.body.as_ref().and_then(|body| body.value.as_ref()) {
        None => LogFormat::Text(String::new()),
        Some(any_value::Value::StringValue(text)) => LogFormat::Text(text.clone()),
        Some(any_value::Value::KvlistValue(list)) => {
            LogFormat::Json { fields: texts(list).at("body")?, omit_empty_values: false, sort: false }
        }
        Some(_) => return invalid("expected string_value or kvlist_value").at("body"),
    };
    let otel = OtelLog {
        service,
        log_name: if message.log_name.is_empty() { common.log_name } else { message.log_name.clone() },
        builtin_labels: !message.disable_builtin_labels,
        resource_attributes: fields(message.resource_attributes.as_ref(), "resource_attributes")?,
        attributes: fields(message.attributes.as_ref(), "attributes")?,
    };
    Ok((AccessLogSink::OpenTelemetry(Arc::new(otel)), format))
}

fn texts(list: &KeyValueList) -> Outcome<Vec<(String, String)>> {
    each(&list.values, "values", |pair| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => Ok((pair.key.clone(), text.clone())),
        _ => invalid("expected string_value").at("value"),
    })
}

fn file(message: &FileAccessLog) -> Outcome<(AccessLogSink, LogFormat)> {
    let sink = match message.path.as_str() {
        "" => return invalid("is empty").at("path"),
        "/dev/stdout" => AccessLogSink::Stdout,
        "/dev/stderr" => AccessLogSink::Stderr,
        path => AccessLogSink::File(path.into()),
    };
    let format = match &message.access_log_format {
        None => LogFormat::Text(LogFormat::ENVOY.to_owned()),
        Some(AccessLogFormat::Format(text)) if text.is_empty() => LogFormat::Text(LogFormat::ENVOY.to_owned()),
        Some(AccessLogFormat::Format(text)) => LogFormat::Text(text.clone()),
        Some(AccessLogFormat::JsonFormat(fields)) => json(fields, false).at("json_format")?,
        Some(AccessLogFormat::TypedJsonFormat(fields)) => json(fields, false).at("typed_json_format")?,
        Some(AccessLogFormat::LogFormat(format)) => substitution(format).at("log_format")?,
    };
    Ok((sink, format))
}

fn substitution(message: &SubstitutionFormatString) -> Outcome<LogFormat> {
    // Envoy sorts keys itself only on request; a Struct is a map, so written order never reaches it.
    match required(message.format.as_ref(), "format")? {
        Format::TextFormat(text) => Ok(LogFormat::Text(text.clone())),
        Format::TextFormatSource(DataSource { specifier: Some(Specifier::InlineString(text)), .. }) => {
            Ok(LogFormat::Text(text.clone()))
        }
        Format::TextFormatSource(_) => invalid("expected inline_string").at("text_format_source"),
        Format::JsonFormat(fields) => json(fields, message.omit_empty_values).at("json_format"),
    }
}

fn json(message: &Struct, omit_empty_values: bool) -> Outcome<LogFormat> {
    let mut fields = Vec::with_capacity(message.fields.len());
    for (key, value) in &message.fields {
        match &value.kind {
            Some(Kind::StringValue(format)) => fields.push((key.clone(), format.clone())),
            _ => return invalid("expected a text: nested objects and lists are not supported").at(&format!("fields[{key:?}]")),
        }
    }
    fields.sort();
    Ok(LogFormat::Json { fields, omit_empty_values, sort: true })
}

fn filter(message: &pb::AccessLogFilter) -> Outcome<AccessLogFilter> {
    use pb::access_log_filter::FilterSpecifier;
    use pb::comparison_filter::Op;
    Ok(match required(message.filter_specifier.as_ref(), "filter_specifier")? {
        FilterSpecifier::StatusCodeFilter(inner) => {
            let (op, value) = comparison(inner.comparison.as_ref()).at("status_code_filter")?;
            let Ok(status) = u16::try_from(value) else { return invalid("expected a status code").at("status_code_filter") };
            match op {
                Op::Eq => AccessLogFilter::StatusEquals(status),
                Op::Ge => AccessLogFilter::StatusAtLeast(status),
                Op::Le => AccessLogFilter::StatusAtMost(status),
                Op::Ne => AccessLogFilter::StatusNot(status),
            }
        }
        FilterSpecifier::DurationFilter(inner) => match comparison(inner.comparison.as_ref()).at("duration_filter")? {
            (Op::Ge, value) => AccessLogFilter::DurationAtLeast(value.into()),
            (Op::Le, value) => AccessLogFilter::DurationAtMost(value.into()),
            (Op::Eq, value) => AccessLogFilter::DurationEquals(value.into()),
            (Op::Ne, value) => AccessLogFilter::DurationNot(value.into()),
        },
        FilterSpecifier::NotHealthCheckFilter(_) => AccessLogFilter::NotHealthCheck,
        FilterSpecifier::RuntimeFilter(inner) => AccessLogFilter::Share(match &inner.percent_sampled {
            Some(percent) => basic::fractional_percent(percent).at("runtime_filter.percent_sampled")?,
            None => Fraction::NONE,
        }),
        FilterSpecifier::HeaderFilter(inner) => {
            let header = required(inner.header.as_ref(), "header_filter.header")?;
            AccessLogFilter::Header(basic::header_matcher(header).at("header_filter.header")?)
        }
        FilterSpecifier::GrpcStatusFilter(inner) => AccessLogFilter::GrpcStatus {
            statuses: inner.statuses.iter().filter_map(|status| u32::try_from(*status).ok()).collect(),
            exclude: inner.exclude,
        },
        FilterSpecifier::MetadataFilter(inner) => {
            let matcher = required(inner.matcher.as_ref(), "metadata_filter.matcher")?;
            AccessLogFilter::Metadata {
                matcher: rbac::metadata_matcher(matcher).at("metadata_filter.matcher")?,
                if_absent: basic::flag(inner.match_if_key_not_found.as_ref(), true),
            }
        }
        FilterSpecifier::LogTypeFilter(inner) => log_types(inner),
        FilterSpecifier::ResponseFlagFilter(inner) => AccessLogFilter::ResponseFlags(inner.flags.clone()),
        FilterSpecifier::AndFilter(inner) => AccessLogFilter::And(each(&inner.filters, "filters", filter).at("and_filter")?),
        FilterSpecifier::OrFilter(inner) => AccessLogFilter::Or(each(&inner.filters, "filters", filter).at("or_filter")?),
        FilterSpecifier::ExtensionFilter(inner) => {
            let pb::extension_filter::ConfigType::TypedConfig(config) = required(inner.config_type.as_ref(), "typed_config")?;
            return cel(config).at("extension_filter.typed_config");
        }
        _ => {
            return invalid(
                "this filter is not supported: expected status_code_filter, duration_filter, not_health_check_filter, runtime_filter, header_filter, response_flag_filter, grpc_status_filter, metadata_filter, log_type_filter, extension_filter, and_filter or or_filter",
            );
        }
    })
}

fn cel(config: &Any) -> Outcome<AccessLogFilter> {
    match any::type_name(config).as_str() {
        "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter" => {
            let message: ExpressionFilter = any::unpack(config)?;
            match Expression::compile(&message.expression) {
                Ok(_) => Ok(AccessLogFilter::Cel(message.expression)),
                Err(error) => invalid(error.to_string()).at("expression"),
            }
        }
        other => invalid(format!("access log filter {other} is not supported")),
    }
}

/// Lines are written at the end of a request or of a TCP connection, never in between.
fn log_types(message: &pb::LogTypeFilter) -> AccessLogFilter {
    let wants = |kind: AccessLogType| message.types.contains(&(kind as i32)) != message.exclude;
    match (wants(AccessLogType::DownstreamEnd), wants(AccessLogType::TcpConnectionEnd)) {
        (true, true) => AccessLogFilter::And(Vec::new()),
        (true, false) => AccessLogFilter::Http(true),
        (false, true) => AccessLogFilter::Http(false),
        (false, false) => AccessLogFilter::Or(Vec::new()),
    }
}

fn comparison(message: Option<&pb::ComparisonFilter>) -> Outcome<(pb::comparison_filter::Op, u32)> {
    let message = required(message, "comparison")?;
    let RuntimeUInt32 { default_value, .. } = required(message.value.as_ref(), "comparison.value")?;
    match pb::comparison_filter::Op::try_from(message.op) {
        Ok(op) => Ok((op, *default_value)),
        Err(_) => invalid("unknown operator").at("comparison.op"),
    }
}
