//! Metrics of a plane.

use metrics::{Counter, Gauge, Histogram};

use crate::metrics::{Buckets, Metrics};

/// Upper bounds of the plane's histograms, for [`Metrics::new`].
pub const HISTOGRAMS: [Buckets; 1] = [("skiff_plane_verification_seconds", &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])];

/// What a plane counts.
pub(super) struct Numbers {
    pub(super) authorizations: Outcomes,
    pub(super) registrations: Counter,
    pub(super) registrations_refused: Counter,
    pub(super) removals: Removals,
    pub(super) session_tokens: Counter,
    pub(super) mesh_tokens: Counter,
    pub(super) documents: Counter,
    pub(super) streams: Gauge,
    pub(super) without_stream: Gauge,
    pub(super) verification: Histogram,
}

/// Authorisations by what came of them.
pub(super) struct Outcomes {
    pub(super) admitted: Counter,
    /// The request is not one.
    pub(super) invalid: Counter,
    /// Too many from one address, or at all.
    pub(super) rate: Counter,
    /// Not ours, not in time, or used.
    pub(super) nonce: Counter,
    /// It does not hold.
    pub(super) credential: Counter,
    /// It was shown before.
    pub(super) replay: Counter,
    pub(super) policy: Counter,
    /// Nobody could say.
    pub(super) unavailable: Counter,
}

/// Registrations that were removed, by why.
pub(super) struct Removals {
    pub(super) unregistered: Counter,
    pub(super) lost: Counter,
    pub(super) stopped: Counter,
    pub(super) group: Counter,
    pub(super) policy: Counter,
}

impl Numbers {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let outcome = |value| {
            let text = "Requests for a session token, by what came of them.";
            metrics.labelled_counter("skiff_plane_authorizations_total", text, "outcome", value)
        };
        let removal = |value| {
            metrics.labelled_counter("skiff_plane_removals_total", "Registrations that were removed, by reason.", "reason", value)
        };
        let token =
            |value| metrics.labelled_counter("skiff_plane_tokens_total", "Tokens that were given out, by kind.", "kind", value);
        Self {
            authorizations: Outcomes {
                admitted: outcome("admitted"),
                invalid: outcome("invalid"),
                rate: outcome("rate"),
                nonce: outcome("nonce"),
                credential: outcome("credential"),
                replay: outcome("replay"),
                policy: outcome("policy"),
                unavailable: outcome("unavailable"),
            },
            registrations: metrics.counter("skiff_plane_registrations_total", "Registrations of workloads that were accepted."),
            registrations_refused: metrics
                .counter("skiff_plane_registrations_refused_total", "Registrations of workloads that were refused."),
            removals: Removals {
                unregistered: removal("unregistered"),
                lost: removal("lost"),
                stopped: removal("stopped"),
                group: removal("group"),
                policy: removal("policy"),
            },
            session_tokens: token("session"),
            mesh_tokens: token("mesh"),
            documents: metrics.counter("skiff_plane_documents_pushed_total", "Configurations that were sent to workloads."),
            streams: metrics.gauge("skiff_plane_streams", "Workloads that hold their stream to this replica."),
            without_stream: metrics.gauge(
                "skiff_plane_workloads_without_stream",
                "Registered workloads that have lost their stream to this replica.",
            ),
            verification: metrics
                .histogram("skiff_plane_verification_seconds", "How long it took to verify a credential, AWS being asked."),
        }
    }
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Numbers")
    }
}
