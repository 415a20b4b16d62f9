//! Many workloads at one plane.

use super::*;
use crate::plane::limits::Rate;

/// Workloads, and connections that they share: what is measured is the plane, not the file descriptors of a test.
const WORKLOADS: usize = 5000;
const CONNECTIONS: usize = 200;

#[tokio::test]
async fn five_thousand_workloads_hold_their_streams() {
    let settings: fn(&mut OnboardingSettings) = |settings| {
        settings.limits.rate = Rate { per_second: 1e6, burst: 1e6 };
        // The clients of this test say nothing, and it may be slow.
        settings.heartbeat_interval = Duration::from_secs(600);
    };
    let bed = Bed::new(Change { settings: Some(settings), ..Change::default() }).await;
    let onboarding = bed.plane().onboarding();
    let mut tasks = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let mut agent = bed.agent().await;
        let tokens: Vec<_> = (0..WORKLOADS / CONNECTIONS).map(|number| bed.token(&format!("vm-{connection}-{number}"))).collect();
        tasks.spawn(async move {
            let mut all = Vec::new();
            for (number, token) in tokens.into_iter().enumerate() {
                let session = agent.authorize(jwt(token)).await.unwrap().token;
                let address = format!("10.{}.{}.{}", connection / 250, connection % 250, number + 1);
                let (held, _) = agent.register(&session, registration(&address)).await.unwrap();
                all.push(held);
            }
            (agent, all)
        });
    }
    let mut all = Vec::new();
    while let Some(held) = tasks.join_next().await {
        all.push(held.unwrap());
    }
    assert_eq!(onboarding.streams.counts(), (WORKLOADS, 0));
    assert_eq!(bed.store.entries(Some("bookinfo")).await.unwrap().len(), WORKLOADS);
    assert_eq!(bed.count("skiff_plane_registrations_total"), WORKLOADS as u64);
    // All of them are lost at once, and nobody is removed for it.
    drop(all);
    bed.until("all losses are noted", async || onboarding.streams.counts() == (0, WORKLOADS)).await;
    onboarding.sweep().await;
    assert_eq!(bed.store.registrations(None).await.unwrap().len(), WORKLOADS);
}
