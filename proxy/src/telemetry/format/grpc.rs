//! `%GRPC_STATUS%`.

use super::output::Output;
use crate::error;
use crate::http::head::Known;
use crate::stream_info::FormatContext;

/// How a status is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum GrpcStatusStyle {
    Camel,
    Snake,
    Number,
}

/// The gRPC status of a stream: of the trailers, else of the response head, else Envoy's reading of the HTTP status.
/// `None` when the request is not gRPC, or there is no response yet.
pub fn grpc_status(context: &FormatContext<'_>) -> Option<u32> {
    context.request.filter(|head| head.is_grpc())?;
    let sent = [context.trailers, context.response.map(|head| &head.headers)];
    let status = sent.into_iter().flatten().find_map(|headers| headers.get(Known::GrpcStatus));
    match status {
        Some(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        None if context.info.response_code == 0 => None,
        None => Some(error::grpc_status(context.info.response_code)),
    }
}

impl GrpcStatusStyle {
    pub(super) fn write(self, status: u32, out: &mut Output<'_>) -> bool {
        const NAMES: [(&str, &str); 17] = [
            ("OK", "OK"),
            ("Canceled", "CANCELLED"),
            ("Unknown", "UNKNOWN"),
            ("InvalidArgument", "INVALID_ARGUMENT"),
            ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
            ("NotFound", "NOT_FOUND"),
            ("AlreadyExists", "ALREADY_EXISTS"),
            ("PermissionDenied", "PERMISSION_DENIED"),
            ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
            ("FailedPrecondition", "FAILED_PRECONDITION"),
            ("Aborted", "ABORTED"),
            ("OutOfRange", "OUT_OF_RANGE"),
            ("Unimplemented", "UNIMPLEMENTED"),
            ("Internal", "INTERNAL"),
            ("Unavailable", "UNAVAILABLE"),
            ("DataLoss", "DATA_LOSS"),
            ("Unauthenticated", "UNAUTHENTICATED"),
        ];
        match (self, NAMES.get(status as usize)) {
            (Self::Camel, Some((camel, _))) => out.trusted(camel.as_bytes()),
            (Self::Snake, Some((_, snake))) => out.trusted(snake.as_bytes()),
            _ => out.number(status.into()),
        }
    }
}
