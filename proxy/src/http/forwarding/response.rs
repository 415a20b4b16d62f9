//! Responses on their way downstream.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Forwarding;
use crate::config::ServerHeaderTransformation;
use crate::http::head::{Known, RequestHead, ResponseHead};

/// Sets x-envoy-upstream-service-time. Envoy's router does so before the route's header mutations apply; upgrade answers and
/// answers that ended before their request carry none.
pub fn set_upstream_service_time(head: &mut ResponseHead, elapsed: Duration) {
    let mut buffer = itoa::Buffer::new();
    head.headers
        .set(Known::XEnvoyUpstreamServiceTime, buffer.format(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)).as_bytes());
}

/// What a request asked of its response.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// An upgrade.
    pub upgrade: bool,
    /// Its id (`x-envoy-force-trace` of an internal caller).
    pub request_id: bool,
}

/// Makes a response head, local or from an upstream, ready for the downstream codec: what belongs to the upstream hop goes,
/// `date` and `server` come. `request` is the head as it went upstream; `None` when there was none.
pub fn prepare_response(head: &mut ResponseHead, request: Option<&RequestHead>, asked: Asked, forwarding: &Forwarding) {
    let keeps_upgrade = asked.upgrade && is_upgrade(head);
    let (mut has_date, mut has_server) = (false, false);
    head.headers.retain(|id, _, _| match id {
        Known::Connection | Known::Upgrade => keeps_upgrade,
        Known::TransferEncoding | Known::KeepAlive | Known::ProxyConnection => false,
        Known::Date => {
            has_date = true;
            true
        }
        Known::Server => {
            has_server = true;
            true
        }
        _ => true,
    });
    if !has_date {
        head.headers.push_known(Known::Date, &now());
    }
    match forwarding.server_header {
        ServerHeaderTransformation::Overwrite if has_server => head.headers.set(Known::Server, &forwarding.server_name),
        ServerHeaderTransformation::Overwrite | ServerHeaderTransformation::AppendIfAbsent if !has_server => {
            head.headers.push_known(Known::Server, &forwarding.server_name);
        }
        _ => {}
    }
    if (forwarding.always_set_request_id_in_response || asked.request_id)
        && let Some(id) = request.and_then(|request| request.headers.get(Known::XRequestId))
    {
        head.headers.set(Known::XRequestId, id);
    }
}

fn is_upgrade(head: &ResponseHead) -> bool {
    let tokens = head.headers.get_all(Known::Connection).flat_map(|value| value.split(|b| *b == b','));
    head.headers.contains(Known::Upgrade) && tokens.map(<[u8]>::trim_ascii).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// The date of now (IMF-fixdate), written anew once a second on each thread.
fn now() -> [u8; 29] {
    thread_local! {
        static LAST: Cell<(u64, [u8; 29])> = const { Cell::new((u64::MAX, [0; 29])) };
    }
    let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (last, date) = LAST.get();
    if last == second {
        return date;
    }
    let date = imf_fixdate(second);
    LAST.set((second, date));
    date
}

fn imf_fixdate(second: u64) -> [u8; 29] {
    let date = i64::try_from(second).ok().and_then(|second| time::OffsetDateTime::from_unix_timestamp(second).ok());
    let date = date.unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (weekday, month) = (date.weekday().to_string(), date.month().to_string());
    let text = format!(
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
        &weekday[..3],
        date.day(),
        &month[..3],
        date.year(),
        date.hour(),
        date.minute(),
        date.second()
    );
    text.as_bytes().try_into().unwrap_or(*b"Thu, 01 Jan 1970 00:00:00 GMT")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_imf_fixdates() {
        assert_eq!(&super::imf_fixdate(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(super::imf_fixdate(u64::MAX).len(), 29);
        assert!(super::now().ends_with(b" GMT"));
    }
}
