//! The time-outs of a forwarded request, and the headers that tell the upstream of them.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/faq/configuration/timeouts>

use std::time::Duration;

use crate::config::RetryPolicy;
use crate::http::exchange::Exchange;
use crate::http::forwarding::Overrides;
use crate::http::head::{Known, RequestHead};
use crate::http::route::ForwardRoute;

/// The time-outs of a forwarded request; `None` is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// Until the whole response.
    pub(super) request: Option<Duration>,
    /// Each attempt, until its response begins.
    pub(super) per_try: Option<Duration>,
    /// No activity within an attempt.
    pub(super) per_try_idle: Option<Duration>,
    /// Life of an attempt, as an internal caller wishes it.
    pub(super) upstream_stream: Option<Duration>,
    /// The upstream may take the time of the whole request for any attempt.
    hedged: bool,
    /// A time-out is answered 204 (`x-envoy-upstream-rq-timeout-alt-response`).
    pub(super) alt_response: bool,
    /// `grpc-timeout` is rewritten: the route has `max_grpc_timeout`.
    sets_grpc_timeout: bool,
}

impl Timeouts {
    /// For a request that takes `action`'s way.
    pub(super) fn of(exchange: &Exchange, action: &ForwardRoute, policy: Option<&RetryPolicy>, wish: Option<&Overrides>) -> Self {
        let asks = action.max_grpc_timeout.filter(|_| exchange.is_grpc());
        let route = match asks {
            Some(max) => Some(route_grpc_timeout(&exchange.request, max, action.grpc_timeout_offset)),
            None => action.timeout,
        };
        Self { sets_grpc_timeout: asks.is_some(), ..Self::new(route, policy, wish) }
    }

    /// From route, retry policy and what the caller asks for. One attempt cannot have more time than all of them.
    fn new(route: Option<Duration>, policy: Option<&RetryPolicy>, wish: Option<&Overrides>) -> Self {
        let request = wish.and_then(|wish| wish.timeout).or(route).filter(|timeout| !timeout.is_zero());
        let per_try = wish.and_then(|wish| wish.per_try_timeout).or(policy.and_then(|policy| policy.per_try_timeout));
        Self {
            request,
            per_try: per_try.filter(|per_try| !per_try.is_zero() && request.is_none_or(|request| *per_try < request)),
            per_try_idle: policy.and_then(|policy| policy.per_try_idle_timeout),
            upstream_stream: wish.and_then(|wish| wish.upstream_stream),
            hedged: wish.is_some_and(|wish| wish.hedged),
            alt_response: wish.is_some_and(|wish| wish.timeout_alt_response),
            sets_grpc_timeout: false,
        }
    }

    /// Tells the upstream how long the answer is waited for, `elapsed` after the request was complete: in
    /// `x-envoy-expected-rq-timeout-ms`, unless Envoy's headers are suppressed, and for gRPC in `grpc-timeout`.
    pub(super) fn announce(&self, head: &mut RequestHead, elapsed: Duration, suppress: bool) {
        let Some(expected) = self.per_try.filter(|_| !self.hedged).or(self.request) else { return };
        // Zero would mean for ever.
        let left = self.request.map_or(expected, |request| request.saturating_sub(elapsed).max(Duration::from_millis(1)));
        let expected = expected.min(left).as_millis();
        if !suppress {
            head.headers.set(Known::XEnvoyExpectedRqTimeoutMs, itoa::Buffer::new().format(expected).as_bytes());
        }
        if self.sets_grpc_timeout {
            set_grpc_timeout(head, expected);
        }
    }
}

/// What the caller of a gRPC method asks for, less the offset, up to the route's maximum. Zero is for ever, as is no header.
fn route_grpc_timeout(request: &RequestHead, max: Duration, offset: Option<Duration>) -> Duration {
    let mut timeout = asked(request).unwrap_or(Duration::ZERO);
    if let Some(offset) = offset.filter(|offset| *offset < timeout) {
        timeout -= offset;
    }
    if !max.is_zero() && (timeout.is_zero() || timeout > max) { max } else { timeout }
}

/// The limit on a stream's life: the route's or, where it says so, `grpc-timeout` up to its limit; else the listener's.
/// Envoy tells gRPC upstreams of it.
pub(super) fn stream_duration(exchange: &mut Exchange, action: &ForwardRoute) -> Option<Duration> {
    let asked = action.grpc_timeout_header_max.and_then(|max| Some((max, asked(&exchange.request)?)));
    let life = match asked {
        Some((max, asked)) => {
            let capped = if max.is_zero() { asked } else { asked.min(max) };
            capped.saturating_sub(action.grpc_timeout_header_offset.unwrap_or_default())
        }
        None => {
            let config = &exchange.connection.manager.config;
            action.max_stream_duration.or(config.max_stream_duration).filter(|life| !life.is_zero())?
        }
    };
    if exchange.is_grpc() {
        set_grpc_timeout(&mut exchange.request, life.as_millis());
    }
    // No time at all still lets the request out, as in Envoy, whose timer fires a turn later.
    Some(life.max(Duration::from_millis(1)))
}

fn asked(request: &RequestHead) -> Option<Duration> {
    request.headers.get(Known::GrpcTimeout).and_then(parse_grpc_timeout)
}

/// `grpc-timeout`: up to eight digits and a unit. Fractions of a millisecond are rounded up.
fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let number: u64 =
        std::str::from_utf8(digits).ok().filter(|d| d.len() <= 8 && d.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    let milliseconds = match unit {
        b'H' => number * 3_600_000,
        b'M' => number * 60_000,
        b'S' => number * 1000,
        b'm' => number,
        b'u' => number.div_ceil(1000),
        b'n' => number.div_ceil(1_000_000),
        _ => return None,
    };
    Some(Duration::from_millis(milliseconds))
}

/// In milliseconds, or in the next larger unit whose number has no more than eight digits.
fn set_grpc_timeout(head: &mut RequestHead, milliseconds: u128) {
    const MAX: u128 = 99_999_999;
    let (mut number, mut unit) = (milliseconds, b'm');
    for (next, size) in [(b'S', 1000), (b'M', 60), (b'H', 60)] {
        if number > MAX {
            (number, unit) = (number / size, next);
        }
    }
    let mut text = itoa::Buffer::new();
    let mut value = smallvec::SmallVec::<[u8; 16]>::from_slice(text.format(number.min(MAX)).as_bytes());
    value.push(unit);
    head.headers.set(Known::GrpcTimeout, &value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_written_as_by_envoy() {
        for (text, milliseconds) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3000)),
            ("200m", Some(200)),
            ("1001u", Some(2)),
            ("5n", Some(1)),
            ("0m", Some(0)),
            ("xx", None),
            ("m", None),
            ("123456789m", None),
            ("-1S", None),
        ] {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), milliseconds.map(Duration::from_millis), "{text}");
        }
        for (milliseconds, text) in
            [(5000, "5000m"), (99_999_999, "99999999m"), (100_000_000, "100000S"), (u128::MAX, "99999999H")]
        {
            let mut head = RequestHead::new();
            set_grpc_timeout(&mut head, milliseconds);
            assert_eq!(head.headers.get(Known::GrpcTimeout), Some(text.as_bytes()));
        }
    }

    #[test]
    fn the_callers_wish_counts_up_to_the_routes_limit() {
        let mut head = RequestHead::new();
        let (second, none) = (Duration::from_secs(1), Duration::ZERO);
        assert_eq!(route_grpc_timeout(&head, second, None), second, "no wish is for ever");
        assert_eq!(route_grpc_timeout(&head, none, None), none);
        head.headers.push(b"grpc-timeout", b"300m");
        assert_eq!(route_grpc_timeout(&head, second, Some(Duration::from_millis(100))), Duration::from_millis(200));
        assert_eq!(route_grpc_timeout(&head, second, Some(second)), Duration::from_millis(300), "an offset takes not everything");
        assert_eq!(route_grpc_timeout(&head, Duration::from_millis(50), None), Duration::from_millis(50));
    }

    #[test]
    fn the_upstream_hears_what_is_left() {
        let timeouts = Timeouts {
            request: Some(Duration::from_millis(500)),
            per_try: Some(Duration::from_millis(300)),
            ..Timeouts::default()
        };
        let mut head = RequestHead::new();
        for (elapsed, expected) in [(0, "300"), (250, "250"), (600, "1")] {
            timeouts.announce(&mut head, Duration::from_millis(elapsed), false);
            assert_eq!(head.headers.get(Known::XEnvoyExpectedRqTimeoutMs), Some(expected.as_bytes()));
        }
        let mut silent = RequestHead::new();
        timeouts.announce(&mut silent, Duration::ZERO, true);
        assert!(silent.headers.is_empty());
    }

    #[test]
    fn an_attempt_has_less_time_than_the_request() {
        let ms = Duration::from_millis;
        let policy = |per_try| RetryPolicy { per_try_timeout: Some(per_try), ..RetryPolicy::default() };
        // timeout.header_per_try_internal
        let wish = Overrides { per_try_timeout: Some(ms(100)), ..Overrides::default() };
        assert_eq!(Timeouts::new(None, Some(&policy(ms(200))), Some(&wish)).per_try, Some(ms(100)));
        let longer = Timeouts::new(Some(ms(300)), Some(&policy(ms(400))), None);
        assert_eq!((longer.request, longer.per_try), (Some(ms(300)), None));
        let off = Overrides { timeout: Some(Duration::ZERO), ..Overrides::default() };
        assert_eq!(Timeouts::new(Some(ms(300)), None, Some(&off)), Timeouts::default());
    }
}
