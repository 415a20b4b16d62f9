//! What callers may take up before they have proved anything: a rate for each of them, and a memory of credentials.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Callers that are told apart; further ones share one allowance.
const MAX_PEERS: usize = 8192;
/// Credentials that are remembered; the oldest ones go first.
const MAX_SIGNATURES: usize = 65_536;
/// How long STS takes a signature (15 min), and what clocks may differ by.
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(20 * 60);

/// How often one address may ask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Calls a second.
    pub per_second: f64,
    /// Calls at once.
    pub burst: f64,
}

/// A token bucket for each address. Of IPv6 the first 64 bits count.
#[derive(Debug)]
pub(super) struct Rates {
    rate: Rate,
    peers: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, peers: Mutex::default() }
    }

    /// Whether a call of `peer` at `now` is within its rate.
    pub(super) fn admit(&self, peer: IpAddr, now: Instant) -> bool {
        let Rate { per_second, burst } = self.rate;
        let refilled =
            |bucket: &Bucket| (bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * per_second).min(burst);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peer = network(peer);
        if !peers.contains_key(&peer) && peers.len() >= MAX_PEERS {
            peers.retain(|_, bucket| refilled(bucket) < burst);
            if peers.len() >= MAX_PEERS {
                peer = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let bucket = peers.entry(peer).or_insert(Bucket { tokens: burst, at: now });
        let tokens = refilled(bucket);
        let admitted = tokens >= 1.0;
        *bucket = Bucket { tokens: if admitted { tokens - 1.0 } else { tokens }, at: now };
        admitted
    }
}

fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
    }
}

/// Credentials that were shown, for as long as anybody would take them.
#[derive(Debug, Default)]
pub(super) struct Signatures(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    ends: HashMap<String, SystemTime>,
    by_end: BTreeSet<(SystemTime, String)>,
}

impl Signatures {
    /// Remembers a credential; false when it was shown before.
    pub(super) fn first(&self, signature: &str, now: SystemTime) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((end, signature)) = seen.by_end.first().cloned() {
            if end > now && seen.by_end.len() < MAX_SIGNATURES {
                break;
            }
            seen.by_end.remove(&(end, signature.clone()));
            seen.ends.remove(&signature);
        }
        if seen.ends.contains_key(signature) {
            return false;
        }
        let end = now + SIGNATURE_LIFETIME;
        seen.ends.insert(signature.to_owned(), end);
        seen.by_end.insert((end, signature.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_has_its_own_rate() {
        let rates = Rates::new(Rate { per_second: 2.0, burst: 3.0 });
        let start = Instant::now();
        let admitted = |peer: &str, at: u64| rates.admit(ip(peer), start + Duration::from_millis(at));
        assert_eq!([0, 0, 0, 0].map(|at| admitted("10.0.0.1", at)), [true, true, true, false]);
        assert!(admitted("10.0.0.2", 0));
        assert_eq!([400, 500, 500].map(|at| admitted("10.0.0.1", at)), [false, true, false]);
        assert_eq!([0, 0, 0].map(|at| admitted("2001:db8::1", at)), [true, true, true]);
        assert!(!admitted("2001:db8::2", 0), "one network");
        assert!(admitted("2001:db8:0:1::1", 0));
        assert!(!admitted("::ffff:10.0.0.1", 500), "the same address written otherwise");
    }

    #[test]
    fn the_addresses_that_are_told_apart_are_bounded() {
        let rates = Rates::new(Rate { per_second: 1.0, burst: 1.0 });
        let start = Instant::now();
        for number in 0..u32::try_from(MAX_PEERS).unwrap() {
            assert!(rates.admit(IpAddr::V4(number.into()), start));
        }
        assert!(rates.admit(ip("192.0.2.1"), start), "the first of those that share");
        assert!(!rates.admit(ip("192.0.2.2"), start));
        // Who has been away for long enough makes room.
        assert!(rates.admit(ip("192.0.2.2"), start + Duration::from_secs(2)));
    }

    #[test]
    fn a_credential_is_new_once() {
        let signatures = Signatures::default();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert!(signatures.first("a", now) && signatures.first("b", now));
        assert!(!signatures.first("a", now + SIGNATURE_LIFETIME - Duration::from_secs(1)));
        assert!(signatures.first("a", now + SIGNATURE_LIFETIME));
    }
}
