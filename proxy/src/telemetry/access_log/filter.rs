//! Which streams are logged (Envoy `AccessLogFilter`).

use super::AccessLogError;
use crate::config::AccessLogFilter;
use crate::flags::ResponseFlags;
use crate::stream_info::FormatContext;

/// A compiled filter.
#[derive(Debug)]
pub(super) enum Filter {
    All,
    AnyFlag,
    Flags(ResponseFlags),
    StatusAtLeast(u16),
    StatusEquals(u16),
    StatusAtMost(u16),
    /// Milliseconds.
    DurationAtLeast(u64),
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
            AccessLogFilter::DurationAtLeast(milliseconds) => Self::DurationAtLeast(*milliseconds),
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
            Self::DurationAtLeast(milliseconds) => {
                context.now.saturating_duration_since(info.start).as_millis() >= u128::from(*milliseconds)
            }
            Self::And(filters) => filters.iter().all(|filter| filter.matches(context)),
            Self::Or(filters) => filters.iter().any(|filter| filter.matches(context)),
        }
    }
}

fn flags(names: &[String]) -> Result<ResponseFlags, AccessLogError> {
    names.iter().try_fold(ResponseFlags::NONE, |flags, name| {
        let flag = ResponseFlags::from_short_name(name).ok_or_else(|| AccessLogError::UnknownFlag(name.clone()))?;
        Ok(flags | flag)
    })
}
