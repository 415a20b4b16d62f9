//! The API server is killed, restarted and frozen under load.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{Instant, sleep};

use super::super::cache::Health;
use super::kit::{PATIENCE, control};
use super::*;

/// Writers of their own registration each, which count what was answered.
async fn writer(store: &KubernetesStore, ns: &str, name: &str, acknowledged: &AtomicUsize, end: &watch::Receiver<bool>) -> usize {
    let key = ObjectKey::new(ns, name);
    store.delete_registration(&key, &Expected::any()).await.unwrap();
    let mut object = store.put_registration(registration(store, ns, name).await).await.unwrap();
    let mut count = 0;
    while !*end.borrow() {
        let mut next = object.clone();
        next.metadata.annotations.insert("count".to_owned(), (count + 1).to_string());
        match store.put_registration(next).await {
            Ok(stored) => {
                object = stored;
                count += 1;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // Nobody else writes here: this would be a write that was done and not told.
            Err(error @ (StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Exists(_))) => panic!("{name}: {error}"),
            Err(StoreError::Unavailable(_)) => object = store.registration(&key).await.unwrap().expect("known while it is away"),
            Err(error) => panic!("{name}: {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
    let known = store.registration(&key).await.unwrap().unwrap();
    assert_eq!(known.metadata.annotations["count"], count.to_string(), "{name}: what was answered is what is there");
    count
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server that it may kill: tests/kubernetes/run.sh"]
async fn an_api_server_that_is_killed_under_load_costs_time_and_nothing_else() {
    let (server, ns) = (server().await, "skiff-outage");
    namespace(&server, ns).await;
    apply(&server, &group(ns)).await.unwrap();
    let store = replica(ns, "a").await;
    let (acknowledged, (stop, end)) = (AtomicUsize::new(0), watch::channel(false));
    let names: Vec<_> = (0..8).map(|number| format!("writer-{number}")).collect();
    let writers = futures_util::future::join_all(names.iter().map(|name| writer(&store, ns, name, &acknowledged, &end)));
    let outage = async {
        until(async || acknowledged.load(Ordering::Relaxed) > 100).await;
        // Shorter than a write waits: nobody notices.
        control("kill").await;
        until(async || matches!(store.policies.of(ns).unwrap().health(), Health::Lost(..))).await;
        control("start").await;
        let before = acknowledged.load(Ordering::Relaxed);
        until(async || acknowledged.load(Ordering::Relaxed) > before + 100).await;
        // Longer: writes fail within their time, reading goes on.
        control("kill").await;
        let key = ObjectKey::new(ns, "during");
        let started = Instant::now();
        let refused = store.put_registration(registration(&store, ns, "during").await).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
        assert!(store.workload_group(&ObjectKey::new(ns, "ratings")).await.unwrap().is_some());
        assert_eq!(store.registrations(Some(ns)).await.unwrap().len(), names.len());
        assert!(matches!(store.mesh_token(ns, "ratings").await, Err(StoreError::Unavailable(_))));
        control("start").await;
        let before = acknowledged.load(Ordering::Relaxed);
        until(async || acknowledged.load(Ordering::Relaxed) > before + 100).await;
        stop.send_replace(true);
        assert_eq!(store.registration(&key).await.unwrap(), None);
    };
    let (counts, ()) = tokio::join!(writers, outage);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");

    // The watches are back: what others write is heard.
    let foreign = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": {"name": "later", "namespace": ns}, "spec": {"template": {}},
    });
    delete(&server, &place(&foreign), "later").await;
    apply(&server, &foreign.to_string()).await.unwrap();
    until(async || store.workload_group(&ObjectKey::new(ns, "later")).await.unwrap().is_some()).await;
    for name in &names {
        assert!(store.delete_registration(&ObjectKey::new(ns, name), &Expected::any()).await.unwrap());
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes API server that it may freeze: tests/kubernetes/run.sh"]
async fn an_api_server_that_says_nothing_is_not_waited_for() {
    let (server, ns) = (server().await, "skiff-frozen");
    namespace(&server, ns).await;
    apply(&server, &group(ns)).await.unwrap();
    let store = replica(ns, "a").await;
    control("freeze").await;
    let started = Instant::now();
    let refused = store.mesh_token(ns, "ratings").await;
    let taken = started.elapsed();
    control("thaw").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(taken < PATIENCE, "{taken:?}");
    until(async || store.mesh_token(ns, "ratings").await.is_ok()).await;
}
