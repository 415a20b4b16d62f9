//! A collector of OpenTelemetry: it keeps what it is sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use crate::wait::within;

/// Names and texts.
pub type Attributes = BTreeMap<String, String>;

/// A span, and whose it is.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Attributes of the resource.
    pub resource: Attributes,
    /// Attributes of the span.
    pub tags: Attributes,
    /// The rest of it.
    pub span: Span,
}

impl Exported {
    /// The trace, in hexadecimal digits.
    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// The span, in hexadecimal digits.
    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// The span before, in hexadecimal digits; empty when there is none.
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// A tag; `-` when there is none.
    pub fn tag(&self, name: &str) -> &str {
        self.tags.get(name).map_or("-", String::as_str)
    }
}

/// A log record, and whose it is.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Attributes of the resource.
    pub resource: Attributes,
    /// Attributes of the record.
    pub attributes: Attributes,
    /// Its body, if that is a text.
    pub body: String,
    /// The rest of it.
    pub record: LogRecord,
}

/// The collector. Dropping it closes its port.
#[derive(Debug)]
pub struct Collector {
    kept: Kept,
    running: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    spans: Arc<watch::Sender<Vec<Exported>>>,
    logs: Arc<watch::Sender<Vec<Logged>>>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Collector {
    /// Starts it.
    pub async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let kept = Kept::default();
        let running = tokio::spawn(serve(listener, kept.clone()));
        Self { kept, running }
    }

    /// Waits for so many spans; all of them.
    pub async fn spans(&self, count: usize) -> Vec<Exported> {
        let mut spans = self.kept.spans.subscribe();
        let wait = spans.wait_for(|spans| spans.len() >= count);
        within("spans reach the collector", wait).await.unwrap().clone()
    }

    /// Waits for so many log records; all of them.
    pub async fn logs(&self, count: usize) -> Vec<Logged> {
        let mut logs = self.kept.logs.subscribe();
        let wait = logs.wait_for(|logs| logs.len() >= count);
        within("log records reach the collector", wait).await.unwrap().clone()
    }
}

async fn serve(listener: TcpListener, kept: Kept) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn({
            let (traces, logs) = (TraceServiceServer::new(kept.clone()), LogsServiceServer::new(kept.clone()));
            move |request: http::Request<Incoming>| {
                let (mut traces, mut logs) = (traces.clone(), logs.clone());
                async move {
                    if request.uri().path().contains("TraceService") {
                        traces.call(request).await
                    } else {
                        logs.call(request).await
                    }
                }
            }
        });
        connections.spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = Vec::new();
        for group in request.into_inner().resource_spans {
            let resource = attributes(&group.resource.unwrap_or_default().attributes);
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                all.push(Exported { resource: resource.clone(), tags: attributes(&span.attributes), span });
            }
        }
        self.spans.send_modify(|spans| spans.extend(all));
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Kept {
    async fn export(&self, request: Request<ExportLogsServiceRequest>) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut all = Vec::new();
        for group in request.into_inner().resource_logs {
            let resource = attributes(&group.resource.unwrap_or_default().attributes);
            for record in group.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                let body = text(record.body.as_ref());
                all.push(Logged { resource: resource.clone(), attributes: attributes(&record.attributes), body, record });
            }
        }
        self.logs.send_modify(|logs| logs.extend(all));
        Ok(Response::new(Default::default()))
    }
}

fn attributes(pairs: &[KeyValue]) -> Attributes {
    pairs.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        None => String::new(),
        Some(other) => format!("{other:?}"),
    }
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
