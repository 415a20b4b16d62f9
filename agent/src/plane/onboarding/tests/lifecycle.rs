//! How registrations live and end: renewals, duplicates, leaving, being lost, restarts.

use super::*;
use crate::plane::store::Expected;

#[tokio::test]
async fn tokens_are_renewed_on_the_stream() {
    let settings: fn(&mut OnboardingSettings) = |settings| settings.session_lifetime = Duration::from_secs(4);
    let bed = Bed::new(Change { settings: Some(settings), ..Change::default() }).await;
    let mut agent = bed.agent().await;
    let first = agent.authorize(jwt(bed.token("vm-1"))).await.unwrap();
    let (mut held, _) = agent.register(&first.token, registration("10.0.0.1")).await.unwrap();
    let renewed = held.find(|told| if let Told::SessionToken(token) = told { Some(token.clone()) } else { None }).await;
    let end = |time: Option<prost_types::Timestamp>| SystemTime::try_from(time.unwrap()).unwrap();
    assert!(renewed.token != first.token && end(renewed.expires_at) > end(first.expires_at));
    drop(held);
    agent.register(&renewed.token, registration("10.0.0.1")).await.unwrap();
}

#[tokio::test]
async fn the_mesh_token_is_renewed_before_it_ends_and_the_new_one_outlives_it() {
    let bed = Bed::new(Change { mesh_token_lifetime: Some(Duration::from_secs(6)), ..Change::default() }).await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (mut held, boot) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    let end = |token: &proto::Token| SystemTime::try_from(token.expires_at.unwrap()).unwrap();
    let first = boot.mesh_token.unwrap();
    let renewed = held.find(|told| if let Told::MeshToken(token) = told { Some(token.clone()) } else { None }).await;
    assert!(SystemTime::now() < end(&first), "while the old one counts");
    assert!(end(&renewed) > end(&first) && renewed.token != first.token);
    // The old one ends. Who shows the new one gets a certificate.
    bed.advance(end(&first).duration_since(SystemTime::now()).unwrap().as_secs() + 1);
    assert!(bed.certificate(&first.token).await.is_err());
    bed.certificate(&renewed.token).await.unwrap();
    assert!(bed.count("skiff_plane_tokens_total{kind=\"mesh\"}") >= 2);
}

#[tokio::test]
async fn the_newest_stream_of_a_workload_counts() {
    let bed = Bed::usual().await;
    let (mut agent, mut other) = (bed.agent().await, bed.agent().await);
    let session = bed.session(&mut agent, "vm-1").await;
    let (old, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    let (new, _) = other.register(&session, registration("10.0.0.2")).await.unwrap();
    let status = old.end().await;
    assert_eq!((status.code(), status.message()), (Code::Aborted, "the workload has registered anew"));
    assert_eq!(bed.is_connected("vm-1").await.unwrap().0, ConditionStatus::True);
    assert_eq!(bed.store.entry(&name_of("vm-1")).await.unwrap().unwrap().spec.address, "10.0.0.2");
    // Another replica takes it over: it writes a newer connection.
    let mut taken = bed.registration("vm-1").await.unwrap();
    taken.metadata.annotations.insert("onboarding.skiff/connection".to_owned(), "99".to_owned());
    bed.store.put_registration(taken).await.unwrap();
    assert_eq!(new.end().await.code(), Code::Aborted);
    assert_eq!(bed.is_connected("vm-1").await.unwrap().0, ConditionStatus::True, "what the other replica has noted stays");
}

#[tokio::test]
async fn who_leaves_is_gone_for_others_at_once_and_altogether_after_the_delay() {
    let bed = Bed::usual().await;
    let (mut agent, mut other) = (bed.agent().await, bed.agent().await);
    let session = bed.session(&mut agent, "vm-1").await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    held.healthy("").await;
    let watching = bed.session(&mut other, "vm-2").await;
    let (mut watcher, _) = other.register(&watching, registration("10.0.0.2")).await.unwrap();
    watcher.until_told(&["10.0.0.1"], &[]).await;

    assert_eq!(agent.unregister(&session).await.unwrap(), Duration::from_secs(10));
    assert_eq!(bed.store.entry(&name_of("vm-1")).await.unwrap(), None);
    assert_eq!(bed.is_connected("vm-1").await, Some((ConditionStatus::False, "WorkloadUnregistered".to_owned())));
    assert_eq!(held.end().await.code(), Code::Cancelled);
    watcher.until_told(&[], &["10.0.0.1"]).await;
    bed.advance(10);
    bed.until("the registration goes", async || bed.registration("vm-1").await.is_none()).await;
    let counted = "skiff_plane_removals_total{reason=\"unregistered\"}";
    bed.until("the removal is counted", async || bed.count(counted) == 1).await;
    assert_eq!(agent.unregister(&session).await.unwrap(), Duration::from_secs(10), "leaving twice is no fault");
}

#[tokio::test]
async fn who_comes_back_while_leaving_stays() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    agent.register(&session, registration("10.0.0.1")).await.unwrap();
    agent.unregister(&session).await.unwrap();
    let (_held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    bed.advance(11);
    bed.plane().onboarding().see_off().await;
    assert_eq!(bed.is_connected("vm-1").await.unwrap().0, ConditionStatus::True);
    assert!(bed.store.entry(&name_of("vm-1")).await.unwrap().is_some());
}

#[tokio::test]
async fn who_is_lost_is_first_hidden_and_later_removed() {
    let bed = Bed::usual().await;
    let (mut agent, mut other) = (bed.agent().await, bed.agent().await);
    let session = bed.session(&mut agent, "vm-1").await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    held.healthy("").await;
    let watching = bed.session(&mut other, "vm-2").await;
    let (mut watcher, _) = other.register(&watching, registration("10.0.0.2")).await.unwrap();
    watcher.until_told(&["10.0.0.1"], &[]).await;

    // Nothing is said: the connection breaks.
    drop((held, agent));
    let lost = Some((ConditionStatus::False, "ConnectionLost".to_owned()));
    bed.until("the loss is noted", async || bed.is_connected("vm-1").await == lost).await;
    assert!(bed.store.entry(&name_of("vm-1")).await.unwrap().is_some(), "it may serve");
    assert_eq!(bed.registration("vm-1").await.unwrap().status.active_agent_connection, None);
    bed.advance(9);
    watcher.until_told(&[], &["10.0.0.1"]).await;

    let onboarding = bed.plane().onboarding();
    bed.advance(280);
    onboarding.sweep().await;
    assert!(bed.registration("vm-1").await.is_some(), "not yet");
    bed.advance(30);
    onboarding.sweep().await;
    assert_eq!(bed.registration("vm-1").await, None);
    assert_eq!(bed.store.entry(&name_of("vm-1")).await.unwrap(), None);
    assert!(bed.registration("vm-2").await.is_some(), "who holds its stream stays");
    assert_eq!(bed.count("skiff_plane_removals_total{reason=\"lost\"}"), 1);
}

#[tokio::test]
async fn a_restart_of_the_plane_removes_nobody() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    held.healthy("").await;
    bed.until("its health is noted", async || {
        bed.store.entry(&name_of("vm-1")).await.unwrap().is_some_and(|entry| !entry.status.conditions.is_empty())
    })
    .await;
    let before = bed.registration("vm-1").await.unwrap();
    // The plane says that it goes, so that the agent looks for another replica.
    let ending = tokio::spawn(held.end());
    let bed = bed.restarted(Change::default()).await;
    assert_eq!(ending.await.unwrap().code(), Code::Unavailable);

    let after = bed.registration("vm-1").await.unwrap();
    assert_eq!(after, before, "everything survives");
    // It is shown to others although it has not come back yet, for the start grace.
    let mut other = bed.agent().await;
    let watching = bed.session(&mut other, "vm-2").await;
    let (mut watcher, _) = other.register(&watching, registration("10.0.0.2")).await.unwrap();
    watcher.until_told(&["10.0.0.1"], &[]).await;
    let onboarding = bed.plane().onboarding();
    bed.advance(59);
    onboarding.sweep().await;
    assert!(bed.registration("vm-1").await.is_some());
    // The session of before is good for the same plane.
    let mut agent = bed.agent().await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    bed.advance(600);
    onboarding.sweep().await;
    assert!(bed.registration("vm-1").await.is_some(), "it is back");
    drop(held);
}

#[tokio::test]
async fn who_does_not_come_back_after_a_restart_goes_after_a_full_period() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    let bed = bed.restarted(Change::default()).await;
    drop((held, agent));
    let onboarding = bed.plane().onboarding();
    assert_eq!(bed.is_connected("vm-1").await.unwrap().0, ConditionStatus::True, "nobody has noted that it was lost");
    bed.advance(61);
    onboarding.sweep().await;
    assert_eq!(bed.is_connected("vm-1").await.unwrap().0, ConditionStatus::False);
    for (seconds, there) in [(229, true), (11, false)] {
        bed.advance(seconds);
        onboarding.sweep().await;
        assert_eq!(bed.registration("vm-1").await.is_some(), there, "{seconds}");
    }
}

#[tokio::test]
async fn silence_is_a_loss() {
    let settings: fn(&mut OnboardingSettings) = |settings| settings.heartbeat_interval = Duration::from_millis(100);
    let bed = Bed::new(Change { settings: Some(settings), ..Change::default() }).await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (_held, boot) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    assert_eq!(Duration::try_from(boot.heartbeat_interval.unwrap()).unwrap(), Duration::from_millis(100));
    let lost = Some((ConditionStatus::False, "ConnectionLost".to_owned()));
    bed.until("silence is noted", async || bed.is_connected("vm-1").await == lost).await;
}

#[tokio::test]
async fn who_is_no_longer_admitted_has_to_go() {
    let bed = Bed::usual().await;
    let store = bed.store.clone();
    let following = tokio::spawn(async move { store.follow().await.map(|never| match never {}) });
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    rewrite(bed.folder.path(), "values: [ratings]", "values: [details]");
    let status = held.end().await;
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "Not authorized by OnboardingPolicy"));
    bed.until("its objects go", async || bed.registration("vm-1").await.is_none()).await;
    let counted = "skiff_plane_removals_total{reason=\"policy\"}";
    bed.until("the removal is counted", async || bed.count(counted) == 1).await;
    // Its session is good for an hour, and for nothing.
    assert_eq!(codes(&agent.register(&session, registration("10.0.0.1")).await), Some(Code::PermissionDenied));
    following.abort();
}

#[tokio::test]
async fn a_registration_that_somebody_removes_ends_the_stream_and_can_be_made_again() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    bed.store.delete_registration(&name_of("vm-1"), &Expected::any()).await.unwrap();
    let status = held.end().await;
    assert_eq!((status.code(), status.message()), (Code::Aborted, "the registration was removed"));
    agent.register(&session, registration("10.0.0.1")).await.unwrap();
    assert!(bed.registration("vm-1").await.is_some());
}

#[tokio::test]
async fn registrations_go_with_their_group() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (held, _) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    drop((held, agent));
    bed.until("the loss is noted", async || bed.is_connected("vm-1").await.unwrap().0 == ConditionStatus::False).await;
    rewrite(
        bed.folder.path(),
        "kind: WorkloadGroup\nmetadata: {name: ratings,",
        "kind: WorkloadGroup\nmetadata: {name: reviews,",
    );
    let store = bed.store.clone();
    let following = tokio::spawn(async move { store.follow().await.map(|never| match never {}) });
    let group = ObjectKey::new("bookinfo", "ratings");
    bed.until("the group is gone", async || bed.store.workload_group(&group).await.unwrap().is_none()).await;
    bed.plane().onboarding().sweep().await;
    assert_eq!(bed.registration("vm-1").await, None);
    following.abort();
}
