//! Tracing of a connection manager, and the collectors that spans and log records go to.

use prost::Message;
use skiff_proto::envoy::config::core::v3 as core;
use skiff_proto::envoy::config::trace::v3 as trace;
use skiff_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use skiff_proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use skiff_proto::envoy::extensions::tracers::opentelemetry::resource_detectors::v3::StaticConfigResourceDetectorConfig;
use skiff_proto::envoy::r#type::metadata::v3 as metadata;
use skiff_proto::envoy::r#type::tracing::v3::{CustomTag, custom_tag};
use skiff_proto::google::protobuf::Any;
use skiff_proxy::config::{self, ExportService, Fraction, TagValue, TracingProvider};

use super::ext_authz::grpc_metadata;
use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic};

const DETECTORS: &str = "envoy.extensions.tracers.opentelemetry.resource_detectors.v3";

/// `None` without a tracer that skiff has: the block changes nothing then, as any block did before skiff had tracers.
pub(super) fn tracing(message: &hcm::Tracing, request_id: Option<&UuidRequestIdConfig>) -> Outcome<Option<config::Tracing>> {
    let Some(provider) = maybe(message.provider.as_ref(), "provider", provider)?.flatten() else { return Ok(None) };
    let share =
        |percent: Option<&_>, field: &str| maybe(percent, field, basic::percent).map(|share| share.unwrap_or(Fraction::ALL));
    let flag = |value: Option<&_>| basic::flag(value, true);
    let defaults = config::Tracing::new(provider);
    Ok(Some(config::Tracing {
        client_sampling: share(message.client_sampling.as_ref(), "client_sampling")?,
        random_sampling: share(message.random_sampling.as_ref(), "random_sampling")?,
        overall_sampling: share(message.overall_sampling.as_ref(), "overall_sampling")?,
        use_request_id: request_id.is_none_or(|id| flag(id.use_request_id_for_trace_sampling.as_ref())),
        pack_trace_reason: request_id.is_none_or(|id| flag(id.pack_trace_reason.as_ref())),
        max_path_tag_length: basic::count(message.max_path_tag_length.as_ref(), defaults.max_path_tag_length),
        custom_tags: each(&message.custom_tags, "custom_tags", custom_tag)?,
        spawn_upstream_span: basic::flag(message.spawn_upstream_span.as_ref(), false),
        ..defaults
    }))
}

fn provider(message: &trace::tracing::Http) -> Outcome<Option<TracingProvider>> {
    let Some(trace::tracing::http::ConfigType::TypedConfig(config)) = &message.config_type else { return Ok(None) };
    match any::type_name(config).as_str() {
        "envoy.config.trace.v3.OpenTelemetryConfig" => {
            let provider = open_telemetry(&any::unpack(config)?).at("typed_config")?;
            Ok(Some(TracingProvider::OpenTelemetry(provider)))
        }
        "envoy.config.trace.v3.ZipkinConfig" => Ok(Some(TracingProvider::Zipkin(zipkin(config).at("typed_config")?))),
        _ => Ok(None),
    }
}

fn open_telemetry(message: &trace::OpenTelemetryConfig) -> Outcome<config::OpenTelemetry> {
    let service = match (&message.grpc_service, &message.http_service) {
        (Some(grpc), None) => grpc_service(grpc).at("grpc_service")?,
        (None, Some(http)) => http_service(http, "/v1/traces").at("http_service")?,
        _ => return invalid("expected grpc_service or http_service"),
    };
    let mut provider = config::OpenTelemetry {
        service,
        service_name: message.service_name.clone(),
        resource_attributes: Vec::new(),
        detect_environment: false,
    };
    each(&message.resource_detectors, "resource_detectors", |detector| {
        let config = required(detector.typed_config.as_ref(), "typed_config")?;
        match any::type_name(config).strip_prefix(DETECTORS) {
            Some(".EnvironmentResourceDetectorConfig") => provider.detect_environment = true,
            Some(".StaticConfigResourceDetectorConfig") => {
                let attributes = any::unpack::<StaticConfigResourceDetectorConfig>(config)?.attributes;
                let mut attributes: Vec<_> = attributes.into_iter().collect();
                attributes.sort();
                provider.resource_attributes.extend(attributes);
            }
            _ => return invalid(format!("resource detector {} is not supported", any::type_name(config))),
        }
        Ok(())
    })?;
    Ok(provider)
}

/// `ZipkinConfig.collector_service`, which is younger than our copy of the message.
#[derive(Clone, PartialEq, Message)]
struct CollectorService {
    #[prost(message, optional, tag = "9")]
    collector_service: Option<core::HttpService>,
}

const ZIPKIN_PATH: &str = "/api/v2/spans";

fn zipkin(config: &Any) -> Outcome<config::Zipkin> {
    use trace::zipkin_config::{CollectorEndpointVersion, TraceContextOption};
    let message: trace::ZipkinConfig = any::unpack(config)?;
    if message.collector_endpoint_version == CollectorEndpointVersion::HttpProto as i32 {
        return invalid("expected HTTP_JSON").at("collector_endpoint_version");
    }
    let service = CollectorService::decode(config.value.as_slice()).ok().and_then(|message| message.collector_service);
    let service = match &service {
        Some(service) => http_service(service, ZIPKIN_PATH).at("collector_service")?,
        None if message.collector_cluster.is_empty() => return invalid("is missing").at("collector_cluster"),
        None => {
            let host = Some(&message.collector_hostname).filter(|host| !host.is_empty()).unwrap_or(&message.collector_cluster);
            let path = Some(&message.collector_endpoint).filter(|path| !path.is_empty());
            ExportService {
                http_path: Some(path.map_or(ZIPKIN_PATH, String::as_str).to_owned()),
                ..ExportService::grpc(&message.collector_cluster, host)
            }
        }
    };
    Ok(config::Zipkin {
        service,
        trace_id_128bit: message.trace_id_128bit,
        shared_span_context: basic::flag(message.shared_span_context.as_ref(), true),
        with_w3c: message.trace_context_option == TraceContextOption::UseB3WithW3cPropagation as i32,
    })
}

pub(super) fn grpc_service(message: &core::GrpcService) -> Outcome<ExportService> {
    use core::grpc_service::TargetSpecifier;
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &message.target_specifier else {
        return invalid("expected envoy_grpc");
    };
    let authority = if target.authority.is_empty() { &target.cluster_name } else { &target.authority };
    Ok(ExportService {
        headers: grpc_metadata(&message.initial_metadata)?,
        timeout: basic::limit(message.timeout.as_ref(), None, "timeout")?.unwrap_or(ExportService::TIMEOUT),
        ..ExportService::grpc(&target.cluster_name, authority)
    })
}

/// The address may come without a scheme, as istiod writes it; the path is `default` where there is none.
pub(super) fn http_service(message: &core::HttpService, default: &str) -> Outcome<ExportService> {
    use core::http_uri::HttpUpstreamType;
    let uri = required(message.http_uri.as_ref(), "http_uri")?;
    let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
        return invalid("is missing").at("http_uri.cluster");
    };
    let address = uri.uri.split_once("://").map_or(uri.uri.as_str(), |(_, rest)| rest);
    let (authority, path) = address.split_at(address.find('/').unwrap_or(address.len()));
    let headers = each(&message.request_headers_to_add, "request_headers_to_add", |option| {
        required(option.header.as_ref(), "header").cloned()
    })?;
    Ok(ExportService {
        http_path: Some(if path.is_empty() { default } else { path }.to_owned()),
        headers: grpc_metadata(&headers).at("request_headers_to_add")?,
        timeout: basic::limit(uri.timeout.as_ref(), None, "timeout").at("http_uri")?.unwrap_or(ExportService::TIMEOUT),
        ..ExportService::grpc(cluster, authority)
    })
}

fn custom_tag(message: &CustomTag) -> Outcome<config::CustomTag> {
    if message.tag.is_empty() {
        return invalid("is empty").at("tag");
    }
    let value = match required(message.r#type.as_ref(), "type")? {
        custom_tag::Type::Literal(literal) => TagValue::Literal(literal.value.clone()),
        custom_tag::Type::Environment(environment) => {
            TagValue::Environment { name: environment.name.clone(), default: environment.default_value.clone() }
        }
        custom_tag::Type::RequestHeader(header) => {
            TagValue::RequestHeader { name: header.name.to_ascii_lowercase(), default: header.default_value.clone() }
        }
        custom_tag::Type::Metadata(found) => found_out(found).at("metadata")?,
        custom_tag::Type::Value(format) => TagValue::Format(format.clone()),
    };
    Ok(config::CustomTag { name: message.tag.clone(), value })
}

fn found_out(message: &custom_tag::Metadata) -> Outcome<TagValue> {
    use metadata::metadata_key::path_segment::Segment;
    let kind = message.kind.as_ref().and_then(|kind| kind.kind.as_ref());
    if !matches!(kind, None | Some(metadata::metadata_kind::Kind::Request(_))) {
        return invalid("expected request: metadata of routes, clusters and hosts is not kept").at("kind");
    }
    let key = required(message.metadata_key.as_ref(), "metadata_key")?;
    let path = each(&key.path, "path", |segment| match &segment.segment {
        Some(Segment::Key(key)) => Ok(key.clone()),
        _ => invalid("expected key"),
    })
    .at("metadata_key")?;
    Ok(TagValue::Metadata { filter: key.key.clone(), path, default: message.default_value.clone() })
}
