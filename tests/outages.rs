//! What an onboarding plane needs is killed while workloads serve and others try to join: the plane itself, STS, ECS. No request of who
//! serves fails, nothing that was registered is lost, nobody is let in who cannot be judged, and who waits is in once it is back.
//! Plane and sidecars are real processes; AWS is a fake that verifies signatures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeSet;

use skiff_tests::apps::{App, Speaks};
use skiff_tests::aws::{FakeTask, Outlet};
use skiff_tests::ecs::{Bookinfo, DETAILS, Member, RATINGS, RATINGS_TOO};
use skiff_tests::http;
use skiff_tests::load::Load;
use skiff_tests::skiff::Skiff;
use skiff_tests::wait::eventually;

const TO_DETAILS: &str = "details.bookinfo:9080";
const TO_RATINGS: &str = "ratings.bookinfo:9080";
/// A task of a cluster that no policy names.
const STRANGER: Member = Member { group: "ratings", own: 23, out: 5, task: Some("5c151358f03a4e32bf8cd401c1c74655") };

/// Workloads that call each other without a pause, a plane whose policy names a cluster, and a task in another one.
struct World {
    bookinfo: Bookinfo,
    ratings: Skiff,
    details: Skiff,
    loads: [Load; 2],
    /// Names and uids of what is registered.
    registered: BTreeSet<(String, String)>,
    _apps: [App; 2],
}

impl World {
    async fn new() -> Self {
        let bookinfo = Bookinfo::new().await;
        let start = |last| App::start(bookinfo.network.at(last, 9080), Speaks::Http);
        let apps = [start(1), start(11)];
        let address = Some(bookinfo.network.ip(STRANGER.own).into());
        let cluster = "other".to_owned();
        bookinfo.aws.add_task(FakeTask { address, cluster, ..FakeTask::new(STRANGER.task.unwrap()) });
        let (ratings, details) = (bookinfo.join(RATINGS, &[]), bookinfo.join(DETAILS, &[]));
        for sidecar in [&ratings, &details] {
            sidecar.ready().await;
        }
        for (member, host) in [(RATINGS, TO_DETAILS), (DETAILS, TO_RATINGS)] {
            let answers = async || (http::get(bookinfo.egress(member), host, "/").await.status == 200).then_some(());
            eventually("they have heard of each other", answers).await;
        }
        bookinfo.edit("policies.yaml", "ecs: {}", "ecs: {clusters: [bookinfo]}");
        bookinfo.plane().stderr.line_with("configuration of the plane applied").await;
        let loads = [Load::start(bookinfo.egress(DETAILS), TO_RATINGS), Load::start(bookinfo.egress(RATINGS), TO_DETAILS)];
        let registered = registered(&bookinfo).await;
        assert_eq!(registered.len(), 2);
        Self { bookinfo, ratings, details, loads, registered, _apps: apps }
    }

    /// The one who is welcome and the one who is not, both told that nobody can say now.
    async fn comers(&self) -> [Skiff; 2] {
        let comers = [RATINGS_TOO, STRANGER].map(|member| self.bookinfo.join(member, &[]));
        for comer in &comers {
            let line = comer.stderr.nth_line_with("not onboarded yet", 2).await;
            assert!(!line.contains("PermissionDenied"), "{line}");
        }
        comers
    }

    /// Everything is as it was, and the one who is welcome has come.
    async fn well_again(self, [welcome, stranger]: [Skiff; 2]) {
        let Self { bookinfo, ratings, details, loads, registered: before, _apps } = self;
        welcome.ready().await;
        stranger.stderr.line_with("code = PermissionDenied desc = Not authorized by OnboardingPolicy").await;
        assert!(!stranger.is_ready().await);
        let connected = async || bookinfo.line(RATINGS_TOO).await.filter(|line| line.contains(" True")).map(drop);
        eventually("the one who is welcome is connected", connected).await;
        for load in loads {
            load.finish().await;
        }
        let after = registered(&bookinfo).await;
        let new: Vec<_> = after.difference(&before).map(|(name, _)| name.as_str()).collect();
        assert!(after.is_superset(&before), "lost: {before:?}, now {after:?}");
        assert!(new.len() == 1 && new[0].starts_with("ratings-too-"), "{new:?}");
        for sidecar in [&ratings, &details] {
            assert_eq!(sidecar.metrics().await.sum("skiff_drained_connections_total", &[]), 0.0, "nothing of it drains");
        }
    }
}

/// Names and uids.
async fn registered(bookinfo: &Bookinfo) -> BTreeSet<(String, String)> {
    let all: serde_json::Value = serde_json::from_str(&bookinfo.war(&["-o", "json"]).await).unwrap();
    let text = |object: &serde_json::Value, field: &str| object["metadata"][field].as_str().unwrap().to_owned();
    all.as_array().unwrap().iter().map(|one| (text(one, "name"), text(one, "uid"))).collect()
}

#[tokio::test]
async fn a_plane_that_is_killed_while_others_join() {
    let mut world = World::new().await;
    let proofs = world.bookinfo.aws.calls("GetCallerIdentity");
    world.bookinfo.kill_plane().await;
    let comers = world.comers().await;
    assert_eq!(world.bookinfo.aws.calls("GetCallerIdentity"), proofs);
    world.bookinfo.start_plane().await;
    for sidecar in [&world.ratings, &world.details] {
        sidecar.stderr.nth_line_with("registered with the onboarding plane", 2).await;
    }
    world.well_again(comers).await;
}

/// Nobody new is let in while it is away, but who was in before stays, even if the plane is killed as well.
async fn without(outlet: fn(&mut Bookinfo) -> &mut Outlet) {
    let mut world = World::new().await;
    outlet(&mut world.bookinfo).stop().await;
    let comers = world.comers().await;
    for comer in &comers {
        let line = comer.stderr.line_with("not onboarded yet").await;
        assert!(line.contains("code = Unavailable"), "{line}");
    }
    assert_eq!(registered(&world.bookinfo).await, world.registered, "nobody is admitted who cannot be judged");
    let metrics = world.bookinfo.plane().metrics().await;
    let outcome = |outcome| metrics.sum("skiff_plane_authorizations_total", &[("outcome", outcome)]);
    assert!(outcome("unavailable") >= 2.0 && outcome("admitted") == 2.0, "{metrics:?}");
    world.bookinfo.kill_plane().await;
    world.bookinfo.start_plane().await;
    for sidecar in [&world.ratings, &world.details] {
        sidecar.stderr.nth_line_with("registered with the onboarding plane", 2).await;
    }
    assert_eq!(registered(&world.bookinfo).await, world.registered);
    outlet(&mut world.bookinfo).resume().await;
    world.well_again(comers).await;
}

#[tokio::test]
async fn an_sts_that_is_killed_while_others_join() {
    without(|bookinfo| &mut bookinfo.sts).await;
}

#[tokio::test]
async fn an_ecs_that_is_killed_while_others_join() {
    without(|bookinfo| &mut bookinfo.ecs).await;
}
