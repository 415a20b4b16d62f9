//! Tracing: a span for each request that is traced (Envoy's `HttpConnectionManager.Tracing`).
//!
//! [`Tracer`] is what a connection manager holds. It decides (`decision`), reads and writes who is whose parent
//! (`context`), and hands finished spans with their `tags` to an exporter.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/observability/tracing>

mod context;
mod decision;
mod tags;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use context::SpanIds;
pub(crate) use context::b3_trace_id;

use self::context::{Carried, Parent};
use self::tags::{CustomTags, Tags};
use super::export::{Exporter, Form, otlp, write_zipkin};
use super::format::FormatError;
use crate::config::{self, OpenTelemetry, TracingProvider, TrafficDirection};
use crate::http::head::{RequestHead, Version};
use crate::stream_info::{FormatContext, LocalInfo};

pub(crate) use self::tags::AttemptEnd;

/// What a tracing block is compiled into.
#[derive(Debug)]
pub struct Tracer {
    config: Arc<config::Tracing>,
    is_egress: bool,
    local: Arc<LocalInfo>,
    tags: CustomTags,
    exporter: Arc<Exporter>,
}

/// A span of a request that is not over.
#[derive(Debug)]
pub struct ActiveSpan {
    ids: SpanIds,
    parent: Option<u64>,
    state: Vec<u8>,
    name: String,
    /// The span of the client has the same id.
    shared: bool,
    /// The span before is another process'.
    remote: bool,
    is_client: bool,
    start: SystemTime,
    /// What the caller is told of the span's name.
    told: Option<Arc<str>>,
}

/// A span that is over, for exporters.
pub(crate) struct Finished<'a> {
    pub(crate) ids: SpanIds,
    pub(crate) parent: Option<u64>,
    pub(crate) state: &'a [u8],
    pub(crate) name: &'a str,
    pub(crate) shared: bool,
    pub(crate) remote: bool,
    pub(crate) is_client: bool,
    pub(crate) start: SystemTime,
    pub(crate) end: SystemTime,
    pub(crate) tags: Tags,
}

impl Tracer {
    /// What the exporter of this configuration needs to know: where to and in which form.
    pub(crate) fn export(config: &config::Tracing) -> (&config::ExportService, Form) {
        match &config.provider {
            TracingProvider::OpenTelemetry(provider) => (&provider.service, Form::Spans(resource(provider))),
            TracingProvider::Zipkin(provider) => (&provider.service, Form::Zipkin),
        }
    }

    /// Compiles a tracing block.
    ///
    /// # Errors
    /// When the format of a tag is refused.
    pub(crate) fn compile(
        config: &Arc<config::Tracing>,
        direction: TrafficDirection,
        local: &Arc<LocalInfo>,
        exporter: Arc<Exporter>,
    ) -> Result<Self, FormatError> {
        Ok(Self {
            config: config.clone(),
            is_egress: direction != TrafficDirection::Inbound,
            local: local.clone(),
            tags: CustomTags::compile(&config.custom_tags)?,
            exporter,
        })
    }

    /// Whether it serves the application's calls.
    pub fn is_egress(&self) -> bool {
        self.is_egress
    }

    /// Whether attempts have spans of their own.
    pub fn spawns_upstream_spans(&self) -> bool {
        self.config.spawn_upstream_span
    }

    /// Begins the span of a request and writes the decision into its x-request-id; `None` for a caller whose own span cannot be
    /// read. `decorator` is the route's.
    pub fn start(
        &self,
        head: &mut RequestHead,
        decorator: Option<&(Arc<str>, bool)>,
        start: SystemTime,
    ) -> Option<Box<ActiveSpan>> {
        let traced = decision::decide(&self.config, head);
        let told = decorator.filter(|(operation, propagate)| *propagate && !operation.is_empty()).map(|(operation, _)| operation);
        // The caller's name for the call; it stays between the proxies.
        let asked = head.headers.find(&DECORATOR).map(|name| String::from_utf8_lossy(name).into_owned());
        let asked = asked.filter(|name| !self.is_egress && !name.is_empty());
        match told {
            Some(operation) if self.is_egress => head.headers.set_named(&DECORATOR, operation.as_bytes()),
            _ => drop(head.headers.remove_named(&DECORATOR)),
        }
        let parent = match self.carried(head) {
            Carried::Unreadable => return None,
            Carried::Nothing => None,
            Carried::Parent(parent) => Some(parent),
        };
        let mut span = self.begin(parent, traced, start);
        if !self.is_egress && asked.is_none() {
            span.told = told.cloned();
        }
        span.name = match (asked, decorator) {
            (Some(asked), _) => asked,
            (None, Some((operation, _))) if !operation.is_empty() => operation.to_string(),
            _ if self.is_egress => format!("egress {}", String::from_utf8_lossy(head.authority())),
            _ => "ingress".to_owned(),
        };
        Some(span)
    }

    fn carried(&self, head: &RequestHead) -> Carried {
        match &self.config.provider {
            TracingProvider::OpenTelemetry(_) => context::read_w3c(head),
            TracingProvider::Zipkin(zipkin) => match context::read_b3(head) {
                Carried::Nothing if zipkin.with_w3c => context::read_w3c(head),
                carried => carried,
            },
        }
    }

    fn begin(&self, parent: Option<Parent>, traced: bool, start: SystemTime) -> Box<ActiveSpan> {
        let zipkin = if let TracingProvider::Zipkin(zipkin) = &self.config.provider { Some(zipkin) } else { None };
        let sampled = parent.as_ref().and_then(|parent| parent.sampled).unwrap_or(traced);
        let mut own = fastrand::u64(1..);
        let (mut before, mut shared, mut state, mut trace) = (None, false, Vec::new(), None);
        if let Some(parent) = parent.filter(|parent| parent.trace != 0) {
            shared = !self.is_egress && zipkin.is_some_and(|zipkin| zipkin.shared_span_context);
            (own, before) = if shared { (parent.span, parent.before) } else { (own, Some(parent.span)) };
            (state, trace) = (parent.state, Some(parent.trace));
        }
        let trace = trace.unwrap_or_else(|| match zipkin {
            // Zipkin's first span is called as its trace.
            Some(zipkin) if zipkin.trace_id_128bit => u128::from(fastrand::u64(1..)) << 64 | u128::from(own),
            Some(_) => own.into(),
            None => fastrand::u128(1..),
        });
        let is_client = self.is_egress && !self.config.spawn_upstream_span;
        let ids = SpanIds { trace, span: own, sampled };
        let remote = before.is_some();
        Box::new(ActiveSpan { ids, parent: before, state, name: String::new(), shared, remote, is_client, start, told: None })
    }

    /// Begins the span of an attempt upstream.
    pub fn start_upstream(&self, of: &ActiveSpan, cluster: &str) -> Box<ActiveSpan> {
        Box::new(ActiveSpan {
            ids: SpanIds { span: fastrand::u64(1..), ..of.ids },
            parent: Some(of.ids.span),
            state: of.state.clone(),
            name: format!("router {cluster} egress"),
            shared: false,
            remote: false,
            is_client: true,
            start: SystemTime::now(),
            told: None,
        })
    }

    /// Tells the next hop which span is its parent.
    pub fn inject(&self, span: &ActiveSpan, head: &mut RequestHead) {
        if self.config.no_context_propagation {
            return;
        }
        match &self.config.provider {
            TracingProvider::OpenTelemetry(_) => context::write_w3c(head, span.ids, &span.state),
            TracingProvider::Zipkin(zipkin) => {
                context::write_b3(head, span.ids, span.parent);
                if zipkin.with_w3c {
                    context::write_w3c(head, span.ids, &span.state);
                }
            }
        }
    }

    /// Exports the span of a request that is over.
    pub fn finish(&self, span: &ActiveSpan, stream: &FormatContext<'_>) {
        if span.ids.sampled {
            let end = span.start + stream.now.saturating_duration_since(stream.info.start);
            let tags = tags::of_request(&self.config, &self.local, &self.tags, stream);
            self.export_span(span, end, tags);
        }
    }

    /// Exports the span of an attempt that is over.
    pub(crate) fn finish_upstream(&self, span: &ActiveSpan, stream: &FormatContext<'_>, end: AttemptEnd) {
        if span.ids.sampled {
            let tags = tags::of_attempt(&self.tags, stream, end);
            self.export_span(span, SystemTime::now(), tags);
        }
    }

    fn export_span(&self, span: &ActiveSpan, end: SystemTime, tags: Tags) {
        let finished = Finished {
            ids: span.ids,
            parent: span.parent,
            state: &span.state,
            name: tags::bounded(&span.name),
            shared: span.shared,
            remote: span.remote,
            is_client: span.is_client,
            start: span.start,
            end,
            tags,
        };
        let mut record = Vec::with_capacity(2048);
        match &self.config.provider {
            TracingProvider::OpenTelemetry(_) => otlp::record(&to_otlp(finished), &mut record),
            TracingProvider::Zipkin(_) => write_zipkin(&finished, &self.local.cluster, &mut record),
        }
        self.exporter.push(&record);
    }
}

/// Where proxies tell each other what a call is called.
pub(crate) static DECORATOR: std::sync::LazyLock<crate::http::head::HeaderName> =
    std::sync::LazyLock::new(|| crate::http::head::HeaderName::new("x-envoy-decorator-operation"));

impl ActiveSpan {
    /// Its ids.
    pub fn ids(&self) -> SpanIds {
        self.ids
    }

    /// What the caller is told of the span's name.
    pub fn told(&self) -> Option<&Arc<str>> {
        self.told.as_ref()
    }

    /// Takes the name that the callee gives the call.
    pub fn rename(&mut self, name: &[u8]) {
        self.name = String::from_utf8_lossy(name).into_owned();
    }
}

/// `SpanFlags`: the W3C flag of what is exported, and whether the span before is another process'.
const SAMPLED: u32 = 1;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

fn to_otlp(span: Finished<'_>) -> otlp::Span {
    let code: u16 = span.tags.get("http.status_code").and_then(|code| code.parse().ok()).unwrap_or(0);
    let failed = code >= 500 || code >= 400 && span.is_client;
    otlp::Span {
        trace_id: span.ids.trace.to_be_bytes().to_vec(),
        span_id: span.ids.span.to_be_bytes().to_vec(),
        trace_state: tags::bounded(&String::from_utf8_lossy(span.state)).to_owned(),
        parent_span_id: span.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: span.name.to_owned(),
        kind: if span.is_client { 3 } else { 2 },
        start_time_unix_nano: nanoseconds(span.start),
        end_time_unix_nano: nanoseconds(span.end),
        attributes: span.tags.into_iter().map(|(key, value)| otlp::KeyValue::text(key, value)).collect(),
        status: failed.then_some(otlp::Status { code: otlp::STATUS_ERROR }),
        flags: SAMPLED | HAS_IS_REMOTE | if span.remote { IS_REMOTE } else { 0 },
    }
}

/// Since 1970.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The resource of Envoy's spans. `telemetry.sdk.*` says who we are, not who Envoy is.
fn resource(provider: &OpenTelemetry) -> bytes::Bytes {
    let name = if provider.service_name.is_empty() { "unknown_service:envoy" } else { &provider.service_name };
    let own = [
        ("service.name", name),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.name", "skiff"),
        ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    let environment = if provider.detect_environment { detect_environment() } else { Vec::new() };
    otlp::resource(own.chain(environment).chain(provider.resource_attributes.iter().cloned()))
}

/// `key=value,key=value` of `OTEL_RESOURCE_ATTRIBUTES`; what is no such pair is left out.
fn detect_environment() -> Vec<(String, String)> {
    let text = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).filter(|(key, _)| !key.is_empty()).collect()
}

/// As spans write it.
fn protocol(version: Option<Version>) -> &'static str {
    version.map_or("-", Version::as_str)
}
