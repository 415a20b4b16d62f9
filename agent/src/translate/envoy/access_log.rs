//! Access logs and their filters.

use skiff_proto::envoy::config::accesslog::v3 as pb;
use skiff_proto::envoy::config::core::v3::substitution_format_string::Format;
use skiff_proto::envoy::config::core::v3::{DataSource, RuntimeUInt32, SubstitutionFormatString, data_source::Specifier};
use skiff_proto::envoy::data::accesslog::v3::AccessLogType;
use skiff_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use skiff_proto::envoy::extensions::access_loggers::stream::v3 as stream;
use skiff_proto::google::protobuf::{Any, Struct, value::Kind};
use skiff_proxy::config::{AccessLog, AccessLogFilter, AccessLogSink, Fraction, LogFormat};

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic, rbac};

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
        other => invalid(format!("access logger {other} is not supported")),
    }
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
        _ => {
            return invalid(
                "this filter is not supported: expected status_code_filter, duration_filter, not_health_check_filter, runtime_filter, header_filter, response_flag_filter, grpc_status_filter, metadata_filter, log_type_filter, and_filter or or_filter",
            );
        }
    })
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
