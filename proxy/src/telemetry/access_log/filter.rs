//! Which streams are logged (Envoy `AccessLogFilter`).

use super::AccessLogError;
use crate::cel::Expression;
use crate::config::{AccessLogFilter, Fraction, MetadataMatcher};
use crate::flags::ResponseFlags;
use crate::http::route::HeaderMatcher;
use crate::rbac::metadata_matches;
use crate::stream_info::FormatContext;
use crate::telemetry::grpc_status;

/// A compiled filter.
#[derive(Debug)]
pub(super) enum Filter {
    All,
    AnyFlag,
    Flags(ResponseFlags),
    StatusAtLeast(u16),
    StatusEquals(u16),
    StatusAtMost(u16),
    StatusNot(u16),
    /// Milliseconds.
    DurationAtLeast(u64),
    DurationEquals(u64),
    DurationAtMost(u64),
    DurationNot(u64),
    Share(Fraction),
    Header(HeaderMatcher),
    GrpcStatus {
        statuses: Box<[u32]>,
        exclude: bool,
    },
    Metadata {
        matcher: MetadataMatcher,
        if_absent: bool,
    },
    Cel(Expression),
    Http(bool),
    And(Box<[Filter]>),
    Or(Box<[Filter]>),
}

impl Filter {
    pub(super) fn compile(filter: &AccessLogFilter) -> Result<Self, AccessLogError> {
        let all = |filters: &[AccessLogFilter]| filters.iter().map(Self::compile).collect::<Result<_, _>>();
        Ok(match filter {
            AccessLogFilter::ResponseFlags(names) if names.is_empty() => Self::AnyFlag,
            AccessLogFilter::ResponseFlags(names) => Self::Flags(flags(names)?),
            AccessLogFilter::StatusAtLeast(status) => Self::StatusAtLeast(*status),
            AccessLogFilter::StatusEquals(status) => Self::StatusEquals(*status),
            AccessLogFilter::StatusAtMost(status) => Self::StatusAtMost(*status),
            AccessLogFilter::StatusNot(status) => Self::StatusNot(*status),
            AccessLogFilter::DurationAtLeast(milliseconds) => Self::DurationAtLeast(*milliseconds),
            AccessLogFilter::DurationEquals(milliseconds) => Self::DurationEquals(*milliseconds),
            AccessLogFilter::DurationAtMost(milliseconds) => Self::DurationAtMost(*milliseconds),
            AccessLogFilter::DurationNot(milliseconds) => Self::DurationNot(*milliseconds),
            AccessLogFilter::Share(fraction) => Self::Share(*fraction),
            AccessLogFilter::Header(header) => Self::Header(HeaderMatcher::compile(header)),
            AccessLogFilter::GrpcStatus { statuses, exclude } => {
                Self::GrpcStatus { statuses: statuses.as_slice().into(), exclude: *exclude }
            }
            AccessLogFilter::Metadata { matcher, if_absent } => {
                Self::Metadata { matcher: matcher.clone(), if_absent: *if_absent }
            }
            AccessLogFilter::Cel(source) => Self::Cel(Expression::compile(source)?),
            AccessLogFilter::Http(http) => Self::Http(*http),
            // Envoy's health check filter marks such requests, and there is none in a sidecar's chain.
            AccessLogFilter::NotHealthCheck => Self::All,
            AccessLogFilter::And(filters) => Self::And(all(filters)?),
            AccessLogFilter::Or(filters) => Self::Or(all(filters)?),
        })
    }

    pub(super) fn matches(&self, context: &FormatContext<'_>) -> bool {
        let info = context.info;
        match self {
            Self::All => true,
            Self::AnyFlag => !info.flags.is_empty(),
            Self::Flags(flags) => info.flags.intersects(*flags),
            Self::StatusAtLeast(status) => info.response_code >= *status,
            Self::StatusEquals(status) => info.response_code == *status,
            Self::StatusAtMost(status) => info.response_code <= *status,
            Self::StatusNot(status) => info.response_code != *status,
            Self::DurationAtLeast(milliseconds) => duration(context) >= u128::from(*milliseconds),
            Self::DurationEquals(milliseconds) => duration(context) == u128::from(*milliseconds),
            Self::DurationAtMost(milliseconds) => duration(context) <= u128::from(*milliseconds),
            Self::DurationNot(milliseconds) => duration(context) != u128::from(*milliseconds),
            Self::Share(fraction) => fraction.draw(),
            Self::Header(header) => context.request.is_some_and(|head| header.matches(head)),
            Self::GrpcStatus { statuses, exclude } => {
                let status = grpc_status(context).unwrap_or_else(|| crate::error::grpc_status(info.response_code));
                statuses.contains(&status) != *exclude
            }
            Self::Metadata { matcher, if_absent } => match info.found_out(&matcher.filter, &matcher.path) {
                Some(_) => metadata_matches(matcher, info.metadata.as_deref()),
                None => *if_absent,
            },
            Self::Cel(expression) => expression.holds(context),
            Self::Http(http) => info.protocol.is_some() == *http,
            Self::And(filters) => filters.iter().all(|filter| filter.matches(context)),
            Self::Or(filters) => filters.iter().any(|filter| filter.matches(context)),
        }
    }
}

/// Milliseconds so far.
fn duration(context: &FormatContext<'_>) -> u128 {
    context.now.saturating_duration_since(context.info.start).as_millis()
}

fn flags(names: &[String]) -> Result<ResponseFlags, AccessLogError> {
    names.iter().try_fold(ResponseFlags::NONE, |flags, name| {
        let flag = ResponseFlags::from_short_name(name).ok_or_else(|| AccessLogError::UnknownFlag(name.clone()))?;
        Ok(flags | flag)
    })
}
