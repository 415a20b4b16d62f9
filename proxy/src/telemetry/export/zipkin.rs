//! Zipkin's JSON, version 2, over HTTP.
//!
//! <https://zipkin.io/zipkin-api/#/default/post_spans>

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::Method;
use serde_json::{Map, Value, json};

use crate::config::ExportService;
use crate::error::Error;
use crate::http::grpc::protocol;
use crate::http::head::{Known, RequestHead};
use crate::http::subrequest::{self, Limits};
use crate::telemetry::trace::{Finished, b3_trace_id, nanoseconds};
use crate::upstream::Cluster;
use crate::upstream::pool::Pool;

/// One span and a comma.
pub(crate) fn write(span: &Finished<'_>, service: &str, out: &mut Vec<u8>) {
    let microseconds = |time: SystemTime| nanoseconds(time) / 1000;
    let tags: Map<String, Value> = (&span.tags).into_iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
    let mut json = json!({
        "traceId": b3_trace_id(span.ids.trace),
        "id": format!("{:016x}", span.ids.span),
        "name": span.name,
        "kind": if span.is_client { "CLIENT" } else { "SERVER" },
        "timestamp": microseconds(span.start),
        "duration": microseconds(span.end).saturating_sub(microseconds(span.start)).max(1),
        "localEndpoint": { "serviceName": service },
        "tags": tags,
    });
    if let Some(parent) = span.parent {
        json["parentId"] = json!(format!("{parent:016x}"));
    }
    if span.shared {
        json["shared"] = json!(true);
    }
    out.extend_from_slice(json.to_string().as_bytes());
    out.push(b',');
}

/// Sends spans.
pub(super) async fn export(
    spans: &[u8],
    service: &ExportService,
    pool: &Rc<Pool>,
    cluster: &Arc<Cluster>,
    limits: Limits,
) -> Result<(), Error> {
    let mut head = RequestHead::new();
    head.method = Method::POST;
    head.set_authority(service.authority.as_bytes());
    head.set_path(service.http_path.as_deref().unwrap_or("/api/v2/spans").as_bytes());
    head.headers.push_known(Known::ContentType, b"application/json");
    for (name, value) in &service.headers {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    // The last comma becomes the bracket.
    let body = [b"[", spans.strip_suffix(b",").unwrap_or(spans), b"]"].concat();
    let answer = subrequest::send(pool, cluster, head, body.into(), limits).await?;
    // Zipkin answers 202.
    if answer.head.status.is_success() { Ok(()) } else { Err(protocol(format!("status {}", answer.head.status))) }
}
