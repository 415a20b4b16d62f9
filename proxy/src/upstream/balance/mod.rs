//! Load balancing: from the endpoints of a cluster to the one that gets a request.
//!
//! Everything that depends on who is healthy is worked out at publish, as an ejection is rare and a pick is not: first the
//! load of each priority, then (when asked for) of each locality, then the policy's own tables. A pick walks these three
//! steps with plain reads and at most one atomic increment. Mirrors
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/overview>.

mod hash;
mod previous;
mod priority;
mod schedule;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub use hash::hash;
pub use previous::PreviousPriorities;

use self::hash::{Maglev, Ring};
use self::priority::Census;
use self::schedule::Schedule;
use super::{Endpoint, Health};
use crate::config::{self, AssignmentPolicy, LbPolicy, SlowStart};

/// What a request wants of its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickContext<'a> {
    /// For ring hash and Maglev, see [`hash()`]; `None` is a random one.
    pub hash: Option<u64>,
    /// Labels that the endpoint must have (`metadata_match`); empty or `None` is every endpoint.
    pub subset: Option<&'a BTreeMap<String, String>>,
    /// Attempts made before this one. Only the first can be dropped on overload.
    pub attempt: u32,
    /// Endpoints of those attempts, to be avoided.
    pub exclude: &'a [Arc<Endpoint>],
    /// How often another one is looked for when an excluded one comes up (`host_selection_retry_max_attempts`); then it is taken.
    pub exclude_attempts: u32,
    /// Priorities of those attempts, to be left alone.
    pub previous_priorities: Option<&'a PreviousPriorities>,
}

/// Picks among the endpoints of one publication.
#[derive(Debug)]
pub(super) struct Balancer {
    /// Healthy endpoints by priority, then degraded ones; only those that get a share, or would if others were left alone.
    levels: Box<[Level]>,
}

#[derive(Debug)]
struct Level {
    priority: u32,
    /// Share of the requests; those of all levels add up to 100.
    percent: u64,
    /// What it could carry, in percent.
    capacity: u64,
    localities: Localities,
}

/// The endpoints of a priority.
#[derive(Debug)]
enum Localities {
    /// All alike.
    Flat(Hosts),
    /// A locality is chosen first.
    Weighted(Schedule, Box<[Hosts]>),
}

/// Endpoints to choose from with equal right.
#[derive(Debug)]
struct Hosts {
    endpoints: Box<[Arc<Endpoint>]>,
    policy: Policy,
}

/// A [`LbPolicy`], laid out for the endpoints it is used on. Schedules and tables hold their positions.
#[derive(Debug)]
enum Policy {
    RoundRobin(Schedule),
    LeastRequest { choices: u32, schedule: Schedule },
    Random,
    Ring(Ring),
    Maglev(Maglev),
}

/// What a balancer is laid out by, beside its endpoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout<'a> {
    pub(super) config: &'a config::Cluster,
    pub(super) policy: &'a AssignmentPolicy,
    pub(super) now: Instant,
    /// A locality is chosen before an endpoint is.
    pub(super) locality_weighted: bool,
    /// All endpoints of the cluster: a locality counts by the share of its endpoints that is balanced here.
    pub(super) scale_by: Option<&'a [Arc<Endpoint>]>,
}

/// Which endpoints of a priority a level is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    Of(Health),
}

impl Part {
    fn members<'e>(self, endpoints: &[&'e Arc<Endpoint>]) -> impl Iterator<Item = &'e Arc<Endpoint>> {
        endpoints.iter().copied().filter(move |endpoint| match self {
            Self::All => true,
            Self::Of(health) => endpoint.health() == health,
        })
    }
}

impl Balancer {
    pub(super) fn new<'e>(layout: &Layout<'_>, endpoints: impl IntoIterator<Item = &'e Arc<Endpoint>>) -> Self {
        let mut by_priority = BTreeMap::<u32, Vec<&Arc<Endpoint>>>::new();
        for endpoint in endpoints {
            by_priority.entry(endpoint.priority()).or_default().push(endpoint);
        }
        let policy = layout.policy;
        let census: Vec<Census> = by_priority.values().map(|all| census(all, policy.weighted_priority_health)).collect();
        let loads = priority::loads(&census, policy.overprovisioning_percent.into(), layout.config.panic_threshold);
        let level = |priority, (percent, capacity), endpoints: &Vec<&Arc<Endpoint>>, part| {
            let refused = part == Part::All && layout.config.fail_traffic_on_panic;
            let endpoints = if refused { &[][..] } else { endpoints };
            let localities = || Localities::new(layout, endpoints, part);
            (percent > 0 || capacity > 0).then(|| Level { priority, percent, capacity, localities: localities() })
        };
        let healthy = by_priority.iter().zip(&loads).filter_map(|((priority, endpoints), load)| {
            let part = if load.panic { Part::All } else { Part::Of(Health::Healthy) };
            level(*priority, (load.healthy, load.healthy_capacity), endpoints, part)
        });
        let degraded = by_priority.iter().zip(&loads).filter_map(|((priority, endpoints), load)| {
            let part = if load.panic { Part::All } else { Part::Of(Health::Degraded) };
            level(*priority, (load.degraded, load.degraded_capacity), endpoints, part)
        });
        Self { levels: healthy.chain(degraded).collect() }
    }

    /// One endpoint, whatever its health.
    pub(super) fn single(layout: &Layout<'_>, endpoint: &Arc<Endpoint>) -> Self {
        let localities = Localities::new(layout, &[endpoint], Part::All);
        Self { levels: [Level { priority: endpoint.priority(), percent: 100, capacity: 100, localities }].into() }
    }

    /// `None` when no endpoint is usable.
    pub(super) fn pick(&self, context: &PickContext<'_>) -> Option<Arc<Endpoint>> {
        let retries = if context.exclude.is_empty() { 0 } else { context.exclude_attempts };
        for attempt in 0..retries {
            let endpoint = self.choose(context, attempt)?;
            if context.exclude.iter().all(|excluded| excluded.id() != endpoint.id()) {
                return Some(Arc::clone(endpoint));
            }
        }
        self.choose(context, retries).map(Arc::clone)
    }

    fn choose(&self, context: &PickContext<'_>, attempt: u32) -> Option<&Arc<Endpoint>> {
        let hash = context.hash;
        let level = match &*self.levels {
            [] => return None,
            [only] => only,
            levels => {
                let point = hash.unwrap_or_else(|| fastrand::u64(..)) % 100;
                match context.previous_priorities.and_then(|previous| previous.shares(levels)) {
                    None => at(point, levels, levels.iter().map(|level| level.percent))?,
                    Some(shares) => at(point, levels, shares)?,
                }
            }
        };
        match &level.localities {
            Localities::Flat(hosts) => hosts.choose(hash, attempt),
            Localities::Weighted(schedule, localities) => localities[schedule.next()].choose(hash, attempt),
        }
    }
}

impl Localities {
    fn new(layout: &Layout<'_>, endpoints: &[&Arc<Endpoint>], part: Part) -> Self {
        let flat = || Self::Flat(Hosts::new(layout, part.members(endpoints).map(|endpoint| (endpoint, 1.0)).collect()));
        // In panic nobody knows what a locality can carry, so everyone counts alike.
        if part == Part::All || !layout.locality_weighted {
            return flat();
        }
        let localities: Vec<(f64, &[&Arc<Endpoint>])> = endpoints
            .chunk_by(|a, b| Arc::ptr_eq(a.group(), b.group()))
            .map(|endpoints| (locality_weight(layout, endpoints, part), endpoints))
            .filter(|(weight, _)| *weight > 0.0)
            .collect();
        if localities.is_empty() {
            return flat();
        }
        if matches!(layout.config.lb_policy, LbPolicy::RingHash(_) | LbPolicy::Maglev(_)) {
            // One ring over all, or a hash would not stay with its endpoint: the locality's weight is handed to its endpoints.
            let members = localities.iter().flat_map(|(weight, endpoints)| {
                let total: f64 = part.members(endpoints).map(|endpoint| f64::from(endpoint.weight())).sum();
                part.members(endpoints).map(move |endpoint| (endpoint, weight / total))
            });
            return Self::Flat(Hosts::new(layout, members.collect()));
        }
        let weights: Vec<f64> = localities.iter().map(|(weight, _)| *weight).collect();
        let hosts = localities
            .iter()
            .map(|(_, endpoints)| Hosts::new(layout, part.members(endpoints).map(|endpoint| (endpoint, 1.0)).collect()));
        Self::Weighted(Schedule::new(&weights), hosts.collect())
    }
}

impl Hosts {
    /// Endpoints, each with a factor for its weight.
    fn new(layout: &Layout<'_>, members: Vec<(&Arc<Endpoint>, f64)>) -> Self {
        let (config, now) = (layout.config, layout.now);
        let weights: Vec<f64> = members
            .iter()
            .map(|(endpoint, factor)| {
                f64::from(endpoint.weight()) * factor * slow_start_factor(slow_start(&config.lb_policy), endpoint, now)
            })
            .collect();
        let endpoints: Box<[_]> = members.into_iter().map(|(endpoint, _)| Arc::clone(endpoint)).collect();
        let keys = || {
            let total: f64 = weights.iter().sum();
            let by_hostname = config.use_hostname_for_hashing;
            let keys = endpoints.iter().zip(&weights).map(|(endpoint, weight)| (endpoint.hash_key(by_hostname), weight / total));
            keys.collect::<Vec<_>>()
        };
        let policy = match &config.lb_policy {
            _ if endpoints.is_empty() => Policy::Random,
            LbPolicy::RoundRobin(_) => Policy::RoundRobin(Schedule::new(&weights)),
            LbPolicy::LeastRequest(least) => {
                Policy::LeastRequest { choices: least.choice_count.get(), schedule: Schedule::new(&weights) }
            }
            LbPolicy::Random => Policy::Random,
            LbPolicy::RingHash(ring) => Policy::Ring(Ring::new(&keys(), ring)),
            LbPolicy::Maglev(table) => Policy::Maglev(Maglev::new(&keys(), table)),
        };
        Self { endpoints, policy }
    }

    fn choose(&self, hash: Option<u64>, attempt: u32) -> Option<&Arc<Endpoint>> {
        let any_hash = || hash.unwrap_or_else(|| fastrand::u64(..));
        let chosen = match &self.policy {
            _ if self.endpoints.len() < 2 => 0,
            Policy::RoundRobin(schedule) => schedule.next(),
            Policy::LeastRequest { choices, schedule } => return Some(self.least_request(*choices, schedule)),
            Policy::Random => fastrand::usize(..self.endpoints.len()),
            Policy::Ring(ring) => ring.host(any_hash(), attempt)?,
            Policy::Maglev(table) => table.host(any_hash(), attempt)?,
        };
        self.endpoints.get(chosen)
    }

    /// The one with the fewest requests in flight of a few drawn by weight; on a tie the one drawn first.
    ///
    /// Envoy's weighted form divides the weight by the requests in flight in a queue under one owner. Drawing by weight and
    /// comparing has the same two effects, proportion at rest and relief under load, without a lock.
    fn least_request(&self, choices: u32, schedule: &Schedule) -> &Arc<Endpoint> {
        let count = self.endpoints.len();
        let first = schedule.random();
        // With as many draws as endpoints, looking at each is better than drawing some twice.
        let each = schedule.is_uniform() && choices as usize >= count;
        let draws = if each { count - 1 } else { choices.saturating_sub(1) as usize };
        let mut best = &self.endpoints[first];
        let mut fewest = best.active_requests();
        for draw in 1..=draws {
            if fewest == 0 {
                break;
            }
            let candidate = &self.endpoints[if each { (first + draw) % count } else { schedule.random() }];
            let active = candidate.active_requests();
            if active < fewest {
                (best, fewest) = (candidate, active);
            }
        }
        best
    }
}

/// The level whose share `point` lies in.
fn at(mut point: u64, levels: &[Level], shares: impl IntoIterator<Item = u64>) -> Option<&Level> {
    let mut levels = levels.iter().zip(shares);
    let hit = levels.find(|(_, share)| {
        let hit = point < *share;
        point = point.saturating_sub(*share);
        hit
    });
    hit.map(|(level, _)| level)
}

/// Whether the endpoint is still new, so that its weight changes with time.
pub(super) fn is_in_slow_start(policy: &LbPolicy, endpoint: &Endpoint, now: Instant) -> bool {
    slow_start(policy).is_some_and(|slow| now.saturating_duration_since(endpoint.fresh_since()) < slow.window)
}

/// How new endpoints are warmed up, if they are.
pub(super) fn slow_start(policy: &LbPolicy) -> Option<&SlowStart> {
    match policy {
        LbPolicy::RoundRobin(slow_start) => slow_start.as_ref(),
        LbPolicy::LeastRequest(least_request) => least_request.slow_start.as_ref(),
        LbPolicy::Random | LbPolicy::RingHash(_) | LbPolicy::Maglev(_) => None,
    }
}

/// Envoy's [formula](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start).
fn slow_start_factor(slow_start: Option<&SlowStart>, endpoint: &Endpoint, now: Instant) -> f64 {
    let Some(slow_start) = slow_start else { return 1.0 };
    let age = now.saturating_duration_since(endpoint.fresh_since());
    if age >= slow_start.window {
        return 1.0;
    }
    let time = age.as_secs_f64().max(1.0) / slow_start.window.as_secs_f64();
    let aggression = if slow_start.aggression > 0.0 { slow_start.aggression } else { 1.0 };
    // A weight of nothing would never get a turn again.
    let least = (f64::from(slow_start.min_weight.millionths()) / 1_000_000.0).max(0.001);
    time.powf(1.0 / aggression).clamp(least, 1.0)
}

/// The locality's weight, less when too few of its endpoints are usable. Without a weight it gets nothing as long as another
/// has one, as in Envoy.
#[expect(clippy::cast_precision_loss, reason = "numbers of endpoints")]
fn locality_weight(layout: &Layout<'_>, endpoints: &[&Arc<Endpoint>], part: Part) -> f64 {
    let Some(first) = endpoints.first() else { return 0.0 };
    let total = census(endpoints, false).total;
    let members = part.members(endpoints).count() as u64;
    let percent = u64::from(layout.policy.overprovisioning_percent);
    let available = (percent * members) as f64 / (100 * total.max(1)) as f64;
    let scale = layout.scale_by.map_or(1.0, |all| {
        let locality = all.iter().filter(|endpoint| Arc::ptr_eq(endpoint.group(), first.group())).count();
        endpoints.len() as f64 / locality.max(1) as f64
    });
    f64::from(first.group().weight) * scale * available.min(1.0)
}

fn census(endpoints: &[&Arc<Endpoint>], weighted: bool) -> Census {
    let mut census = Census::default();
    for endpoint in endpoints {
        let share = if weighted { endpoint.weight().into() } else { 1 };
        census.hosts += 1;
        census.total += if endpoint.is_excluded() { 0 } else { share };
        match endpoint.health() {
            Health::Healthy => census.healthy += share,
            Health::Degraded => census.degraded += share,
            Health::Unhealthy => {}
        }
    }
    census
}
