//! Whether a request is traced: decided once, on the first hop, and written into x-request-id, where later hops read it.
//!
//! Envoy's UUIDs have the version digit for it: `4` is not traced, `9` was drawn, `a` was asked for by a service, `b` by a client.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-request-id>

use crate::config::{Fraction, Tracing};
use crate::http::head::{Known, RequestHead};

/// Where the version digit of a UUID is.
const DIGIT: usize = 14;
const UUID_LENGTH: usize = 36;

const NOT_TRACED: u8 = b'4';
const SAMPLED: u8 = b'9';
const FORCED: u8 = b'a';
const CLIENT: u8 = b'b';

/// Decides, and writes the decision into x-request-id where that is wanted.
pub(super) fn decide(config: &Tracing, head: &mut RequestHead) -> bool {
    if !config.use_request_id {
        return true;
    }
    let Some(id) = head.headers.get(Known::XRequestId) else { return false };
    let Some(drawn) = number(id) else { return false };
    let before = reason(id);
    let mut now = before.unwrap_or_else(|| {
        if has(head, b"x-client-trace-id") && config.client_sampling.draw() {
            CLIENT
        } else if has(head, b"x-envoy-force-trace") {
            FORCED
        } else if below(drawn, config.random_sampling, 10_000) {
            SAMPLED
        } else {
            NOT_TRACED
        }
    });
    if !below(drawn, config.overall_sampling, 100) {
        now = NOT_TRACED;
    }
    if config.pack_trace_reason && before.unwrap_or(NOT_TRACED) != now {
        write(head, now);
    }
    now != NOT_TRACED
}

fn has(head: &RequestHead, wanted: &[u8]) -> bool {
    head.headers.iter().any(|(name, _)| name == wanted)
}

/// The number that the first eight digits of an id are, so that every hop with the same share decides the same.
fn number(id: &[u8]) -> Option<u32> {
    let digits = id.get(..8).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().map(|number| number % 10_000)
}

/// Envoy counts in as many steps as a share of this kind has.
fn below(drawn: u32, share: Fraction, steps: u32) -> bool {
    u64::from(drawn % steps) < u64::from(share.millionths()) * u64::from(steps) / 1_000_000
}

/// Why an id says that the request is traced.
fn reason(id: &[u8]) -> Option<u8> {
    let digit = id.get(DIGIT).filter(|_| id.len() == UUID_LENGTH)?;
    matches!(*digit, SAMPLED | FORCED | CLIENT).then_some(*digit)
}

fn write(head: &mut RequestHead, reason: u8) {
    let Some(id) = head.headers.get(Known::XRequestId).and_then(|id| <[u8; UUID_LENGTH]>::try_from(id).ok()) else { return };
    let mut id = id;
    id[DIGIT] = reason;
    head.headers.set(Known::XRequestId, &id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ExportService, OpenTelemetry, TracingProvider};

    fn config(random: f64) -> Tracing {
        let provider = TracingProvider::OpenTelemetry(OpenTelemetry {
            service: ExportService::grpc("c", "c"),
            service_name: String::new(),
            resource_attributes: Vec::new(),
            detect_environment: false,
        });
        Tracing { random_sampling: Fraction::from_percent(random).unwrap(), ..Tracing::new(provider) }
    }

    fn decided(config: &Tracing, id: &str, header: Option<&str>) -> (bool, char) {
        let mut head = RequestHead::new();
        head.headers.push_known(Known::XRequestId, id.as_bytes());
        header.map(|name| head.headers.push(name.as_bytes(), b"1"));
        let traced = decide(config, &mut head);
        (traced, char::from(head.headers.get(Known::XRequestId).unwrap()[DIGIT]))
    }

    /// 0x270e is 9998.
    const HIGH: &str = "0000270e-0000-4000-8000-000000000000";
    const LOW: &str = "00000000-0000-4000-8000-000000000000";

    #[test]
    fn the_share_is_taken_of_the_id_and_told_to_the_next_hop() {
        assert_eq!(decided(&config(0.01), LOW, None), (true, '9'));
        assert_eq!(decided(&config(0.0), LOW, None), (false, '4'));
        assert_eq!(decided(&config(99.98), HIGH, None), (false, '4'));
        assert_eq!(decided(&config(99.99), HIGH, None), (true, '9'));
        // The next hop draws nothing: it has 0 %, and the id says what the first one decided.
        assert_eq!(decided(&config(0.0), "0000270e-0000-9000-8000-000000000000", None), (true, '9'));
        let unpacked = Tracing { pack_trace_reason: false, ..config(100.0) };
        assert_eq!(decided(&unpacked, LOW, None), (true, '4'));
    }

    #[test]
    fn clients_and_services_may_ask_for_it() {
        assert_eq!(decided(&config(0.0), HIGH, Some("x-client-trace-id")), (true, 'b'));
        assert_eq!(decided(&config(0.0), HIGH, Some("x-envoy-force-trace")), (true, 'a'));
        let none = Tracing { client_sampling: Fraction::NONE, ..config(0.0) };
        assert_eq!(decided(&none, HIGH, Some("x-client-trace-id")), (false, '4'));
        let overall = Tracing { overall_sampling: Fraction::NONE, ..config(100.0) };
        assert_eq!(decided(&overall, "00000000-0000-a000-8000-000000000000", None), (false, '4'));
    }

    #[test]
    fn an_id_that_is_no_uuid_is_left_alone() {
        assert_eq!(decided(&config(100.0), "nonsense-nonsense", None), (false, 'n'));
        assert_eq!(decided(&config(100.0), "00000000-longer-than-eight", None), (true, 'r'));
        let any = Tracing { use_request_id: false, ..config(0.0) };
        assert_eq!(decided(&any, HIGH, None), (true, '4'));
    }
}
