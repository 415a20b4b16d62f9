//! Telemetry resources, and what MeshConfig says where there are none: logs, spans and metrics of each side of a sidecar.
//!
//! As istiod merges them: what the root namespace says, then the workload's own namespace, then resources that select the workload.
//! Logs are in the order of their providers' names. Two things differ: the clusters of collectors are there whatever the Sidecar
//! imports, so that spans arrive (istiod leaves them out, and Envoy drops), and `istio.canonical_*` are the workload's own labels.

mod merge;
mod metrics;

use std::sync::Arc;

use skiff_proxy::config::{
    AccessLog, AccessLogFilter, AccessLogSink, CustomTag, ExportService, Fraction, IstioStats, LogFormat, OpenTelemetry, OtelLog,
    TagValue, Tracing, TracingProvider, Zipkin,
};

use self::merge::{Logging, TracingSpec, merge_logs, merge_tracing};
use super::documents::{Documents, Resource};
use super::registry::{self, Service};
use super::schema::mesh::{
    DEFAULT_JSON, ExportHeader, ExtensionProvider, FileAccessLog, MeshConfig, OpenTelemetryTracer, OtelAls, TraceContextOption,
    ZipkinTracer,
};
use super::schema::selects;
use super::schema::telemetry::{self as schema, Mode};
use super::values::{GoDuration, Port};
use super::{Output, Selection, Workload, clusters};

/// istiod's `PILOT_TRACE_SAMPLING`, one per cent, in millionths.
const DEFAULT_SAMPLING: u32 = 10_000;
/// Of records that no provider names otherwise.
const OTEL_LOG_NAME: &str = "otel_envoy_accesslog";
/// The provider that every mesh has.
const BUILT_IN: &str = "envoy";
const ZIPKIN_PATH: &str = "/api/v2/spans";

/// Logs and spans of one side.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    /// For requests and TCP connections.
    pub(super) access_log: Vec<AccessLog>,
    pub(super) tracing: Option<Arc<Tracing>>,
    /// Istio's metrics.
    pub(super) stats: Option<Arc<IstioStats>>,
}

/// What the sides are made of.
pub(super) struct Telemetry<'a, 'o> {
    pub(super) documents: &'a Documents,
    pub(super) workload: &'a Workload,
    pub(super) mesh: &'a MeshConfig,
    pub(super) root_namespace: &'a str,
    pub(super) services: &'a [Service<'a>],
    pub(super) output: &'o mut Output,
}

impl<'a> Telemetry<'a, '_> {
    /// One side; `mode` is [`Mode::Server`] for what comes in. Services that it needs go to `collectors`.
    pub(super) fn side(&mut self, mode: Mode, collectors: &mut Selection) -> Side {
        let applicable = self.applicable();
        let access_log = self.access_log(&applicable, mode, collectors);
        let tracing = self.tracing(&applicable, mode, collectors);
        let stats = self.stats(&applicable, mode);
        Side { access_log, tracing: tracing.map(Arc::new), stats: stats.map(Arc::new) }
    }

    /// The resources that count for the workload, the least specific first.
    fn applicable(&self) -> Vec<&'a Resource<schema::Telemetry>> {
        let of = |namespace: &'a str| self.documents.telemetries.iter().filter(move |resource| resource.namespace == namespace);
        let own = self.workload.namespace.as_str();
        let mut namespaces = vec![self.root_namespace];
        if own != self.root_namespace {
            namespaces.push(own);
        }
        let wide = namespaces.into_iter().filter_map(|namespace| of(namespace).find(|one| one.spec.is_namespace_wide()));
        let selected = of(own).filter(|resource| {
            let selector = resource.spec.selector.as_ref().filter(|selector| !selector.match_labels.is_empty());
            selector.is_some_and(|selector| selects(&selector.match_labels, &self.workload.labels))
        });
        wide.chain(selected).collect()
    }

    fn provider(&self, name: &str) -> Option<&'a ExtensionProvider> {
        self.mesh.extension_providers.iter().find(|provider| provider.name.eq_ignore_ascii_case(name))
    }

    fn unknown_provider(&mut self, name: &str, wanted: &str) {
        self.output
            .warn(format!("extension provider {name:?}: MeshConfig has none that skiff can use, expected one with {wanted}"));
    }

    /// The cluster and the host of a provider's service, which has to be declared.
    fn collector(&mut self, provider: &str, service: &str, port: Port, collectors: &mut Selection) -> Option<(String, String)> {
        let (namespace, host) = service.split_once('/').map_or((None, service), |(namespace, host)| (Some(namespace), host));
        let known = self.services.iter().find(|known| {
            known.host == host
                && namespace.is_none_or(|namespace| known.namespace == namespace)
                && known.port(port.get()).is_some()
        });
        let Some(known) = known else {
            let port = port.get();
            self.output.warn(format!("extension provider {provider:?}: no ServiceEntry declares {service} with port {port}"));
            return None;
        };
        collectors.insert((known.host.clone(), port.get()));
        Some((clusters::name(port.get(), "", &known.host), known.host.clone()))
    }

    fn access_log(
        &mut self,
        applicable: &[&'a Resource<schema::Telemetry>],
        mode: Mode,
        collectors: &mut Selection,
    ) -> Vec<AccessLog> {
        let levels: Vec<&[schema::AccessLogging]> =
            applicable.iter().map(|one| &one.spec.access_logging[..]).filter(|logging| !logging.is_empty()).collect();
        let merged = merge_logs(&levels, &self.mesh.default_providers.access_logging, mode);
        let mut said = false;
        let mut logs = Vec::new();
        for (name, filter) in merged {
            let Some((format, sink)) = self.log_output(name, collectors) else { continue };
            said = true;
            if let Logging::On(filter) = filter {
                let filter = filter.map(|filter| AccessLogFilter::Cel(filter.expression.0.clone()));
                logs.push(AccessLog { filter, format, sink });
            }
        }
        // As in istiod, MeshConfig's own log is for those who configure nothing else.
        if said { logs } else { mesh_access_log(self.mesh) }
    }

    fn log_output(&mut self, name: &str, collectors: &mut Selection) -> Option<(LogFormat, AccessLogSink)> {
        let provider = self.provider(name);
        match provider {
            Some(ExtensionProvider { envoy_file_access_log: Some(log), .. }) => Some(file_log(self.mesh, name, log)),
            Some(ExtensionProvider { envoy_otel_als: Some(log), .. }) => self.otel_log(name, log, collectors),
            None if name == BUILT_IN => Some(file_log(self.mesh, name, &FileAccessLog::default())),
            _ => {
                self.unknown_provider(name, "envoyFileAccessLog or envoyOtelAls");
                None
            }
        }
    }

    fn otel_log(&mut self, name: &str, log: &OtelAls, collectors: &mut Selection) -> Option<(LogFormat, AccessLogSink)> {
        let (cluster, host) = self.collector(name, &log.service, log.port, collectors)?;
        let text = if log.log_format.text.is_empty() { LogFormat::ISTIO } else { &log.log_format.text };
        let otel = OtelLog {
            service: ExportService::grpc(cluster, host),
            log_name: if log.log_name.is_empty() { OTEL_LOG_NAME } else { &log.log_name }.to_owned(),
            builtin_labels: false,
            resource_attributes: Vec::new(),
            attributes: log.log_format.labels.clone().into_iter().collect(),
        };
        Some((LogFormat::Text(text.to_owned()), AccessLogSink::OpenTelemetry(Arc::new(otel))))
    }

    fn tracing(
        &mut self,
        applicable: &[&'a Resource<schema::Telemetry>],
        mode: Mode,
        collectors: &mut Selection,
    ) -> Option<Tracing> {
        let entries: Vec<&schema::Tracing> = applicable.iter().flat_map(|one| &one.spec.tracing).collect();
        let default = self.mesh.default_providers.tracing.first();
        if entries.is_empty() && default.is_none() {
            if self.mesh.enable_tracing {
                self.output.warn("enableTracing: without a tracing provider nothing is traced".to_owned());
            }
            return None;
        }
        let spec = merge_tracing(&entries, default.map(String::as_str), mode);
        if spec.disabled {
            return None;
        }
        let name = spec.provider?;
        let (provider, max_tag_length) = match self.provider(name) {
            Some(ExtensionProvider { opentelemetry: Some(tracer), .. }) => {
                (self.open_telemetry(name, tracer, collectors)?, tracer.max_tag_length)
            }
            Some(ExtensionProvider { zipkin: Some(tracer), .. }) => {
                (self.zipkin(name, tracer, collectors)?, tracer.max_tag_length)
            }
            _ => {
                self.unknown_provider(name, "opentelemetry or zipkin");
                return None;
            }
        };
        let (mesh, defaults) = (&self.mesh.default_config.tracing, Tracing::new(provider));
        let max_tag_length = max_tag_length.or(mesh.max_path_tag_length).filter(|length| *length > 0);
        let sampling = spec.sampling.or(mesh.sampling.map(|share| share.0).filter(|share| *share != Fraction::NONE));
        Some(Tracing {
            random_sampling: sampling.unwrap_or(Fraction::from_millionths(DEFAULT_SAMPLING)),
            use_request_id: spec.use_request_id,
            no_context_propagation: spec.no_context_propagation,
            max_path_tag_length: max_tag_length.unwrap_or(defaults.max_path_tag_length),
            custom_tags: self.custom_tags(&spec),
            ..defaults
        })
    }

    fn open_telemetry(&mut self, name: &str, tracer: &OpenTelemetryTracer, to: &mut Selection) -> Option<TracingProvider> {
        let (cluster, host) = self.collector(name, &tracer.service, tracer.port, to)?;
        let plain = ExportService::grpc(cluster, host);
        let service = match &tracer.http {
            Some(http) => ExportService {
                http_path: Some(absolute(&http.path)),
                headers: headers(&http.headers),
                timeout: timeout(http.timeout),
                ..plain
            },
            None => {
                let (metadata, limit) = (&tracer.grpc.initial_metadata, tracer.grpc.timeout);
                ExportService { headers: headers(metadata), timeout: timeout(limit), ..plain }
            }
        };
        Some(TracingProvider::OpenTelemetry(OpenTelemetry {
            service,
            service_name: self.service_cluster(),
            resource_attributes: Vec::new(),
            detect_environment: tracer.resource_detectors.environment.is_some(),
        }))
    }

    fn zipkin(&mut self, name: &str, tracer: &ZipkinTracer, to: &mut Selection) -> Option<TracingProvider> {
        let (cluster, host) = self.collector(name, &tracer.service, tracer.port, to)?;
        let path = if tracer.path.is_empty() { ZIPKIN_PATH } else { &tracer.path };
        // istiod's default is five seconds here.
        let limit = tracer.timeout.map_or(std::time::Duration::from_secs(5), |timeout| timeout.0);
        let service = ExportService {
            http_path: Some(absolute(path)),
            headers: headers(&tracer.headers),
            timeout: limit,
            ..ExportService::grpc(cluster, host)
        };
        Some(TracingProvider::Zipkin(Zipkin {
            service,
            trace_id_128bit: !tracer.enable_64bit_trace_id,
            shared_span_context: false,
            with_w3c: tracer.trace_context_option == TraceContextOption::B3WithW3c,
        }))
    }

    /// As the node is called: spans are of who makes them.
    fn service_cluster(&self) -> String {
        let Workload { name, namespace, labels, .. } = self.workload;
        format!("{}.{namespace}", labels.get("app").unwrap_or(name))
    }

    /// Istio's own tags and the configured ones, by name.
    fn custom_tags(&self, spec: &TracingSpec<'_>) -> Vec<CustomTag> {
        let mut tags = if spec.istio_tags { self.istio_tags() } else { Vec::new() };
        let configured = spec.custom_tags.filter(|tags| !tags.is_empty());
        for (name, tag) in configured.unwrap_or(&self.mesh.default_config.tracing.custom_tags) {
            let value = match tag {
                schema::CustomTag::Literal(literal) => TagValue::Literal(literal.value.clone()),
                schema::CustomTag::Environment(named) => {
                    TagValue::Environment { name: named.name.clone(), default: named.default_value.clone() }
                }
                schema::CustomTag::Header(named) => {
                    TagValue::RequestHeader { name: named.name.to_ascii_lowercase(), default: named.default_value.clone() }
                }
                schema::CustomTag::Formatter(format) => TagValue::Format(format.value.clone()),
            };
            tags.push(CustomTag { name: name.clone(), value });
        }
        tags.sort_by(|a, b| a.name.cmp(&b.name));
        tags
    }

    fn istio_tags(&self) -> Vec<CustomTag> {
        let Workload { name, namespace, labels, cluster_id, trust_domain, .. } = self.workload;
        let literal = |name: &str, value: &str| CustomTag { name: name.to_owned(), value: TagValue::Literal(value.to_owned()) };
        let dry_run = |name: &str, key: &str| CustomTag {
            name: format!("istio.authorization.dry_run.{name}"),
            value: TagValue::Metadata {
                filter: "envoy.filters.http.rbac".to_owned(),
                path: vec![format!("istio_dry_run_{key}")],
                default: String::new(),
            },
        };
        vec![
            literal("istio.canonical_revision", registry::canonical_revision(labels).unwrap_or("latest")),
            literal("istio.canonical_service", registry::canonical_service(labels).unwrap_or(name)),
            literal("istio.mesh_id", trust_domain.as_str()),
            literal("istio.namespace", namespace),
            literal("istio.cluster_id", cluster_id),
            dry_run("allow_policy.name", "allow_shadow_effective_policy_id"),
            dry_run("allow_policy.result", "allow_shadow_engine_result"),
            dry_run("deny_policy.name", "deny_shadow_effective_policy_id"),
            dry_run("deny_policy.result", "deny_shadow_engine_result"),
        ]
    }
}

fn file_log(mesh: &MeshConfig, name: &str, log: &FileAccessLog) -> (LogFormat, AccessLogSink) {
    let format = match &log.log_format {
        // The provider that every mesh has is formatted as MeshConfig says.
        None if name == BUILT_IN && !log.omit_empty_values => mesh_format(mesh),
        Some(format) if !format.text.is_empty() => {
            let end = if format.text.ends_with('\n') { "" } else { "\n" };
            LogFormat::Text(format!("{}{end}", format.text))
        }
        Some(format) => {
            let default = || DEFAULT_JSON.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let fields = if format.labels.is_empty() { default() } else { format.labels.clone().into_iter().collect() };
            LogFormat::Json { fields, omit_empty_values: log.omit_empty_values, sort: true }
        }
        None => LogFormat::Text(LogFormat::ISTIO.to_owned()),
    };
    (format, sink(if log.path.is_empty() { "/dev/stdout" } else { &log.path }))
}

/// The mesh's access log; on where nothing is said, because a local sidecar without one is hard to live with.
fn mesh_access_log(mesh: &MeshConfig) -> Vec<AccessLog> {
    match mesh.access_log_file.as_deref().unwrap_or("/dev/stdout") {
        "" => Vec::new(),
        path => vec![AccessLog { filter: None, format: mesh_format(mesh), sink: sink(path) }],
    }
}

/// The format was tried when the mesh was read.
fn mesh_format(mesh: &MeshConfig) -> LogFormat {
    mesh.log_format().unwrap_or_else(|_| LogFormat::Text(LogFormat::ISTIO.to_owned()))
}

fn sink(path: &str) -> AccessLogSink {
    match path {
        "/dev/stdout" => AccessLogSink::Stdout,
        "/dev/stderr" => AccessLogSink::Stderr,
        path => AccessLogSink::File(path.into()),
    }
}

fn headers(headers: &[ExportHeader]) -> Vec<(String, String)> {
    headers.iter().map(|header| (header.name.0.clone(), header.value.clone())).collect()
}

fn timeout(timeout: Option<GoDuration>) -> std::time::Duration {
    timeout.map_or(ExportService::TIMEOUT, |timeout| timeout.0)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
