//! Consistent hashing: ring hash (Ketama) and Maglev, point for point as Envoy builds them.
//!
//! The same endpoints and the same hash lead to the same endpoint here and in Envoy, so that a mesh with both kinds of
//! sidecar keeps its sessions and caches. Mirrors
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/load_balancers#ring-hash>.

use xxhash_rust::xxh64::xxh64;

use crate::config::HashConfig;

/// Envoy refuses larger rings.
const MAX_RING: f64 = 8_388_608.0;
/// Envoy refuses larger tables; a prime.
const MAX_TABLE: u64 = 5_000_011;

/// Envoy's hash of a header, cookie, query parameter or address, for [`super::PickContext::hash`].
pub fn hash(value: &[u8]) -> u64 {
    xxh64(value, 0)
}

/// Endpoints on a circle; a hash belongs to the next one.
#[derive(Debug)]
pub(super) struct Ring {
    /// Position and host, by position.
    points: Box<[(u64, u32)]>,
}

impl Ring {
    /// Host keys with their weights, which add up to 1.
    pub(super) fn new(hosts: &[(&str, f64)], config: &HashConfig) -> Self {
        let least = hosts.iter().map(|(_, weight)| *weight).fold(1.0, f64::min);
        #[expect(clippy::cast_precision_loss, reason = "capped to 2^23")]
        let (size, max_size) = ((config.size as f64).min(MAX_RING), (config.max_size as f64).min(MAX_RING));
        // Large enough for the lightest host to get a whole number of points.
        let scale = ((least * size).ceil() / least).min(max_size);
        let mut points = Vec::new();
        let mut key = String::new();
        let (mut placed, mut wanted) = (0.0, 0.0);
        for (host, (name, weight)) in (0_u32..).zip(hosts) {
            wanted += scale * weight;
            let mut copy = 0_u32;
            while placed < wanted {
                key.clear();
                key.push_str(name);
                key.push('_');
                key.push_str(itoa::Buffer::new().format(copy));
                points.push((hash(key.as_bytes()), host));
                copy += 1;
                placed += 1.0;
            }
        }
        points.sort_unstable();
        Self { points: points.into() }
    }

    /// The host of a hash; later attempts go on around the circle.
    pub(super) fn host(&self, hash: u64, attempt: u32) -> Option<usize> {
        let next = self.points.partition_point(|(position, _)| *position < hash);
        let (_, host) = self.points.get((next + attempt as usize) % self.points.len().max(1))?;
        Some(*host as usize)
    }
}

/// A table that each host fills in an order of its own.
#[derive(Debug)]
pub(super) struct Maglev {
    table: Box<[u32]>,
}

impl Maglev {
    /// Host keys with their weights.
    pub(super) fn new(hosts: &[(&str, f64)], config: &HashConfig) -> Self {
        let size = prime_from(config.size.clamp(2, MAX_TABLE));
        let heaviest = hosts.iter().map(|(_, weight)| *weight).fold(0.0, f64::max);
        let mut entries: Vec<Entry> = hosts
            .iter()
            .map(|(name, weight)| Entry {
                slot: xxh64(name.as_bytes(), 0) % size,
                skip: xxh64(name.as_bytes(), 1) % (size - 1) + 1,
                weight: *weight,
                target: 0.0,
            })
            .collect();
        let mut table = vec![None; usize::try_from(size).unwrap_or(0)];
        let mut free = if hosts.is_empty() { 0 } else { table.len() };
        let mut round = 1.0;
        while free > 0 {
            for (host, entry) in (0_u32..).zip(&mut entries) {
                // Lighter hosts sit out rounds.
                if round * entry.weight < entry.target {
                    continue;
                }
                entry.target += heaviest;
                if free > 0 {
                    *entry.next_free(&mut table, size) = Some(host);
                    free -= 1;
                }
            }
            round += 1.0;
        }
        Self { table: table.into_iter().flatten().collect() }
    }

    /// The host of a hash; later attempts look elsewhere.
    pub(super) fn host(&self, hash: u64, attempt: u32) -> Option<usize> {
        let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
        let slot = usize::try_from(hash % (self.table.len() as u64).max(1)).unwrap_or(0);
        self.table.get(slot).map(|host| *host as usize)
    }
}

/// A host while the table is filled.
struct Entry {
    /// The slot it tries next, and how far the one after is: as the size is prime, it comes by every slot.
    slot: u64,
    skip: u64,
    weight: f64,
    target: f64,
}

impl Entry {
    /// The table must have a free slot.
    #[expect(clippy::cast_possible_truncation, reason = "slots are below the length of a vector")]
    fn next_free<'t>(&mut self, table: &'t mut [Option<u32>], size: u64) -> &'t mut Option<u32> {
        while table[self.slot as usize].is_some() {
            self.slot = (self.slot + self.skip) % size;
        }
        &mut table[self.slot as usize]
    }
}

/// The least prime that is no less than `n`.
fn prime_from(n: u64) -> u64 {
    let is_prime = |n: &u64| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (n.max(2)..).find(is_prime).unwrap_or(MAX_TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: HashConfig = HashConfig { size: 1024, max_size: 8_388_608 };
    const TABLE: HashConfig = HashConfig { size: 65_537, max_size: 65_537 };

    fn equal(names: &[String]) -> Vec<(&str, f64)> {
        names.iter().map(|name| (name.as_str(), 1.0 / names.len() as f64)).collect()
    }

    fn names(count: u8) -> Vec<String> {
        (0..count).map(|i| format!("10.0.0.{i}:80")).collect()
    }

    /// Hashes that lead elsewhere when the last of ten hosts leaves, of 10,000, split by whether that host had them.
    fn moved(with: impl Fn(u64) -> usize, without: impl Fn(u64) -> usize) -> (usize, usize) {
        let hashes = (0..10_000_u64).map(|i| hash(&i.to_le_bytes()));
        let moved: Vec<_> = hashes.map(|h| (with(h), without(h))).filter(|(with, without)| with != without).collect();
        let orphans = moved.iter().filter(|(with, _)| *with == 9).count();
        (orphans, moved.len() - orphans)
    }

    #[test]
    fn the_ring_agrees_with_envoy() {
        // Golden scenario resilience.hash_stable: `x-user: u1` over these three went to the last one.
        let hosts = [("127.0.0.1:29080", 1.0 / 3.0), ("127.0.0.1:29081", 1.0 / 3.0), ("127.0.0.1:29092", 1.0 / 3.0)];
        assert_eq!(Ring::new(&hosts, &RING).host(hash(b"u1"), 0), Some(2));
    }

    #[test]
    fn a_ring_only_moves_what_the_lost_host_had() {
        let names = names(10);
        let (ten, nine) = (Ring::new(&equal(&names), &RING), Ring::new(&equal(&names[..9]), &RING));
        let (orphans, others) = moved(|h| ten.host(h, 0).unwrap(), |h| nine.host(h, 0).unwrap());
        assert!((700..1_400).contains(&orphans), "{orphans}");
        // The other hosts have a few points more on the smaller ring.
        assert!(others < 800, "{others}");
    }

    #[test]
    fn a_ring_follows_the_weights_within_its_limits() {
        let ring = Ring::new(&[("a", 0.25), ("b", 0.75)], &RING);
        assert_eq!(ring.points.len(), 1024);
        assert_eq!(ring.points.iter().filter(|(_, host)| *host == 0).count(), 256);
        let capped = Ring::new(&[("a", 0.001), ("b", 0.999)], &HashConfig { size: 1024, max_size: 1024 });
        assert_eq!(capped.points.len(), 1024);
        assert_ne!(ring.host(7, 0), None);
        assert_eq!(Ring::new(&[], &RING).host(7, 0), None);
    }

    #[test]
    fn a_maglev_table_is_even_and_only_moves_what_it_must() {
        let names = names(10);
        let (ten, nine) = (Maglev::new(&equal(&names), &TABLE), Maglev::new(&equal(&names[..9]), &TABLE));
        for host in 0..10 {
            let slots = ten.table.iter().filter(|slot| **slot == host).count();
            assert!((6_553..=6_554).contains(&slots), "{slots}");
        }
        let (orphans, others) = moved(|h| ten.host(h, 0).unwrap(), |h| nine.host(h, 0).unwrap());
        assert!((850..1_150).contains(&orphans), "{orphans}");
        assert!(others < 500, "{others}");
    }

    #[test]
    fn a_maglev_table_follows_the_weights_and_repairs_its_size() {
        let maglev = Maglev::new(&[("a", 0.25), ("b", 0.75)], &HashConfig { size: 1000, max_size: 1000 });
        assert_eq!(maglev.table.len(), 1009);
        let light = maglev.table.iter().filter(|slot| **slot == 0).count();
        assert!((250..=255).contains(&light), "{light}");
        assert_eq!(Maglev::new(&[], &TABLE).host(7, 0), None);
    }

    #[test]
    fn another_attempt_can_lead_elsewhere() {
        let names = names(10);
        let (ring, maglev) = (Ring::new(&equal(&names), &RING), Maglev::new(&equal(&names), &TABLE));
        let h = hash(b"session");
        assert!((1..10).any(|attempt| ring.host(h, attempt) != ring.host(h, 0)));
        assert!((1..10).any(|attempt| maglev.host(h, attempt) != maglev.host(h, 0)));
    }
}
