//! Nonces: what makes a credential good for one authorisation. A nonce carries its time, the replica that made it and a code of the
//! plane's key. Which ones were used only that replica remembers, from its start on: so no other takes it, nor does the same one
//! after a restart. Otherwise a proof could be shown once to each.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::secrets::random;
use crate::identity::Clock;

/// How long a nonce can be used.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// Used nonces that are remembered until their time is over. While there are so many, no other is taken.
const MAX_USED: usize = 131_072;

const TIME_BYTES: usize = 8;
const REPLICA_BYTES: usize = 8;
const RANDOM_BYTES: usize = 16;
const HEAD_BYTES: usize = TIME_BYTES + REPLICA_BYTES + RANDOM_BYTES;
const CODE_BYTES: usize = 16;
const BYTES: usize = HEAD_BYTES + CODE_BYTES;

/// Makes nonces and takes each of them once.
pub(super) struct Nonces {
    key: hmac::Key,
    uid: String,
    /// Another one after each start.
    replica: [u8; REPLICA_BYTES],
    clock: Clock,
    capacity: usize,
    used: Mutex<Used>,
}

/// Why a nonce is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NonceError {
    #[error("the nonce is not one of this plane's")]
    Unknown,
    #[error("the nonce was issued by another replica")]
    AnotherReplica,
    #[error("the nonce has expired")]
    Expired,
    #[error("the nonce was used before")]
    Used,
    #[error("too many authorisations within a minute")]
    Full,
}

#[derive(Default)]
struct Used {
    random: HashSet<[u8; RANDOM_BYTES]>,
    /// By their end.
    by_end: BTreeSet<(u64, [u8; RANDOM_BYTES])>,
}

impl Nonces {
    /// Of one replica, from now on.
    pub(super) fn new(key: hmac::Key, uid: &str, clock: Clock) -> Result<Self, String> {
        Ok(Self { key, uid: uid.to_owned(), replica: random()?, clock, capacity: MAX_USED, used: Mutex::default() })
    }

    /// A new nonce and its end.
    pub(super) fn issue(&self) -> Result<(String, SystemTime), String> {
        let now = self.clock.since_epoch();
        let mut nonce = [0; BYTES];
        let (head, code) = nonce.split_at_mut(HEAD_BYTES);
        head[..TIME_BYTES].copy_from_slice(&u64::try_from(now.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
        head[TIME_BYTES..][..REPLICA_BYTES].copy_from_slice(&self.replica);
        head[TIME_BYTES + REPLICA_BYTES..].copy_from_slice(&random::<RANDOM_BYTES>()?);
        code.copy_from_slice(&self.code(head));
        Ok((URL_SAFE_NO_PAD.encode(nonce), SystemTime::UNIX_EPOCH + now + LIFETIME))
    }

    /// Takes the nonce: the same one is refused from now on.
    pub(super) fn take(&self, text: &str) -> Result<(), NonceError> {
        let mut nonce = [0; BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut nonce).map_err(|_| NonceError::Unknown)?;
        let (head, code) = nonce.split_at(HEAD_BYTES);
        if length != BYTES || aws_lc_rs::constant_time::verify_slices_are_equal(&self.code(head), code).is_err() {
            return Err(NonceError::Unknown);
        }
        let (time, rest) = head.split_at(TIME_BYTES);
        let (replica, random) = rest.split_at(REPLICA_BYTES);
        if replica != self.replica {
            return Err(NonceError::AnotherReplica);
        }
        let time = time.try_into().map_or(0, u64::from_be_bytes);
        let end = time.saturating_add(LIFETIME.as_millis() as u64);
        let now = u64::try_from(self.clock.since_epoch().as_millis()).unwrap_or(u64::MAX);
        // One from the future is of a replica whose clock is ahead: it would have to be remembered for longer than we do.
        if now >= end || time > now.saturating_add(LIFETIME.as_millis() as u64) {
            return Err(NonceError::Expired);
        }
        let random: [u8; RANDOM_BYTES] = random.try_into().map_err(|_| NonceError::Unknown)?;
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(random, end, now, self.capacity)
    }

    fn code(&self, head: &[u8]) -> [u8; CODE_BYTES] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(self.uid.as_bytes());
        context.update(&[0]);
        context.update(head);
        let mut code = [0; CODE_BYTES];
        code.copy_from_slice(&context.sign().as_ref()[..CODE_BYTES]);
        code
    }
}

impl Used {
    fn insert(&mut self, random: [u8; RANDOM_BYTES], end: u64, now: u64, capacity: usize) -> Result<(), NonceError> {
        while let Some(&(end, random)) = self.by_end.first().filter(|(end, _)| *end <= now) {
            self.by_end.remove(&(end, random));
            self.random.remove(&random);
        }
        if self.random.contains(&random) {
            return Err(NonceError::Used);
        }
        if self.random.len() >= capacity {
            return Err(NonceError::Full);
        }
        self.random.insert(random);
        self.by_end.insert((end, random));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn at(seconds: &Arc<AtomicU64>) -> Clock {
        let seconds = seconds.clone();
        Clock::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.load(Ordering::Relaxed)))
    }

    fn nonces(key: &[u8], uid: &str, seconds: &Arc<AtomicU64>) -> Nonces {
        Nonces::new(hmac::Key::new(hmac::HMAC_SHA256, key), uid, at(seconds)).unwrap()
    }

    #[test]
    fn a_nonce_is_taken_once_and_within_a_minute() {
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let ours = nonces(b"key", "plane", &now);
        let (nonce, end) = ours.issue().unwrap();
        assert_eq!(end, SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_060));
        assert_eq!(ours.take(&nonce), Ok(()));
        assert_eq!(ours.take(&nonce), Err(NonceError::Used));
        let (late, _) = ours.issue().unwrap();
        now.fetch_add(59, Ordering::Relaxed);
        assert_eq!(ours.take(&nonce), Err(NonceError::Used));
        now.fetch_add(1, Ordering::Relaxed);
        assert_eq!(ours.take(&late), Err(NonceError::Expired));
        // A used one stays refused when its memory is gone.
        assert_eq!(ours.take(&nonce), Err(NonceError::Expired));
        now.fetch_sub(300, Ordering::Relaxed);
        assert_eq!(ours.take(&late), Err(NonceError::Expired), "from the future");
    }

    #[test]
    fn a_nonce_is_good_at_the_replica_that_made_it_alone() {
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let (one, two) = (nonces(b"key", "plane", &now), nonces(b"key", "plane", &now));
        let (nonce, _) = one.issue().unwrap();
        // Whoever has seen a proof could show it to the replica that has not, or to the same one after it has forgotten.
        assert_eq!(two.take(&nonce), Err(NonceError::AnotherReplica));
        assert_eq!(one.take(&nonce), Ok(()));
        assert_eq!(two.take(&nonce), Err(NonceError::AnotherReplica));
        assert_eq!(nonces(b"key", "plane", &now).take(&nonce), Err(NonceError::AnotherReplica), "after a restart");
        // It cannot be written anew for another: the code is about the replica too.
        let mut bytes = URL_SAFE_NO_PAD.decode(one.issue().unwrap().0).unwrap();
        bytes[TIME_BYTES..][..REPLICA_BYTES].copy_from_slice(&two.replica);
        assert_eq!(two.take(&URL_SAFE_NO_PAD.encode(bytes)), Err(NonceError::Unknown));
    }

    #[test]
    fn nobody_else_makes_nonces() {
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let ours = nonces(b"key", "plane", &now);
        let (nonce, _) = ours.issue().unwrap();
        // The replica is no secret: whoever has seen a nonce knows it.
        let forged = |key: &[u8], uid: &str| Nonces { replica: ours.replica, ..nonces(key, uid, &now) }.issue().unwrap().0;
        let foreign = [forged(b"other", "plane"), forged(b"key", "other")];
        for text in foreign.iter().map(String::as_str).chain(["", "a", &nonce[1..], &format!("{nonce}A"), &"A".repeat(64)]) {
            assert_eq!(ours.take(text), Err(NonceError::Unknown), "{text}");
        }
        for place in 0..BYTES {
            let mut bytes = URL_SAFE_NO_PAD.decode(&nonce).unwrap();
            bytes[place] ^= 1;
            assert_eq!(ours.take(&URL_SAFE_NO_PAD.encode(bytes)), Err(NonceError::Unknown), "byte {place}");
        }
        assert_eq!(ours.take(&nonce), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let ours = Nonces { capacity: 2, ..nonces(b"key", "plane", &now) };
        for expected in [Ok(()), Ok(()), Err(NonceError::Full)] {
            assert_eq!(ours.take(&ours.issue().unwrap().0), expected);
        }
        now.fetch_add(60, Ordering::Relaxed);
        assert_eq!(ours.take(&ours.issue().unwrap().0), Ok(()));
    }
}
