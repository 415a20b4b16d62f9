//! Fault injection (Envoy `envoy.filters.http.fault`).

use http::StatusCode;

use super::exchange::Exchange;
use super::local_reply::LocalReply;
use crate::config::Fault;
use crate::flags::ResponseFlags;

/// Delays the request and says how it is to be aborted, each for its share of requests.
pub(super) async fn inject(fault: &Fault, exchange: &mut Exchange) -> Option<LocalReply> {
    if let Some(delay) = &fault.delay
        && delay.fraction.draw()
    {
        exchange.info.flags |= ResponseFlags::DELAY_INJECTED;
        tokio::time::sleep(delay.fixed).await;
    }
    let abort = fault.abort.as_ref().filter(|abort| abort.fraction.draw())?;
    let status = abort.http_status.and_then(|code| StatusCode::from_u16(u16::try_from(code.get()).ok()?).ok());
    let status = status.unwrap_or(StatusCode::OK);
    let mut reply = LocalReply::new(status, &b"fault filter abort"[..], ResponseFlags::FAULT_INJECTED, "fault_filter_abort");
    reply.grpc_status = abort.grpc_status;
    Some(reply)
}
