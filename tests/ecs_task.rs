//! A task of ECS joins the mesh as the published guide says, with nothing but the environment that ECS gives it; serves; outlives the
//! plane; leaves. Plane and sidecars are real processes; AWS is a fake that verifies signatures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::SocketAddr;

use skiff_tests::apps::{App, Speaks};
use skiff_tests::ecs::{Bookinfo, DETAILS, Member, RATINGS, RATINGS_TOO};
use skiff_tests::http;
use skiff_tests::load::Load;
use skiff_tests::skiff::Skiff;
use skiff_tests::wait::eventually;

const TO_DETAILS: &str = "details.bookinfo:9080";
const TO_RATINGS: &str = "ratings.bookinfo:9080";

/// The applications of both services, on the loopback addresses that the Sidecars name.
struct Apps {
    ratings: App,
    _details: App,
}

fn apps(bookinfo: &Bookinfo) -> Apps {
    let start = |last| App::start(bookinfo.network.at(last, 9080), Speaks::Http);
    Apps { ratings: start(1), _details: start(11) }
}

async fn joined(bookinfo: &Bookinfo, member: Member) -> Skiff {
    let sidecar = bookinfo.join(member, &[]);
    sidecar.ready().await;
    sidecar
}

async fn status(egress: SocketAddr, host: &str) -> u16 {
    http::get(egress, host, "/").await.status
}

/// Both have heard of each other.
async fn meet(bookinfo: &Bookinfo) {
    for (member, host) in [(RATINGS, TO_DETAILS), (DETAILS, TO_RATINGS)] {
        let answers = async || (status(bookinfo.egress(member), host).await == 200).then_some(());
        eventually("they have heard of each other", answers).await;
    }
}

#[tokio::test]
async fn a_task_joins_as_the_guide_says() {
    let bookinfo = Bookinfo::new().await;
    let apps = apps(&bookinfo);
    let (ratings, details) = (joined(&bookinfo, RATINGS).await, joined(&bookinfo, DETAILS).await);
    meet(&bookinfo).await;

    let table = bookinfo.war(&[]).await;
    let name = format!("ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-{}", RATINGS.task.unwrap());
    assert!(table.starts_with("NAME ") && table.contains("AGENT CONNECTED   AGE\n"), "{table}");
    let line = bookinfo.line(RATINGS).await.unwrap();
    assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [name.as_str(), "True"], "{table}");
    assert!(table.contains("details-jwt-example-details "), "{table}");
    let object = bookinfo.war(&["-o", "json"]).await;
    let object: serde_json::Value = serde_json::from_str(&object).unwrap();
    let all = object.as_array().or_else(|| object["items"].as_array()).unwrap();
    assert!(all.iter().any(|war| war["spec"]["identity"]["aws"]["ecs"]["taskId"] == RATINGS.task.unwrap()), "{object}");

    for (sidecar, account) in [(&ratings, "ratings-vm"), (&details, "details")] {
        let certificates = sidecar.page("/certs").await.text();
        assert!(certificates.contains(&format!("spiffe://cluster.local/ns/bookinfo/sa/{account}")), "{certificates}");
    }

    // From the mesh to the task, and from the task to the mesh, as in the guide's smoke tests.
    let answer = http::get_as(bookinfo.egress(DETAILS), TO_RATINGS, "/ratings/0", "to-the-task").await;
    assert_eq!(answer.status, 200);
    let caller = apps.ratings.last_request().header("x-forwarded-client-cert").unwrap().to_owned();
    assert!(caller.contains("URI=spiffe://cluster.local/ns/bookinfo/sa/details"), "{caller}");
    let line = ratings.stdout.line_with("to-the-task").await;
    assert!(line.contains("\"GET /ratings/0 HTTP/") && line.contains("inbound|9080||"), "{line}");
    let answer = http::get_as(bookinfo.egress(RATINGS), TO_DETAILS, "/details/0", "from-the-task").await;
    assert_eq!((answer.status, answer.header("server")), (200, Some("envoy")));
    details.stdout.line_with("from-the-task").await;

    // What proves who it is stays out of the logs.
    for secret in ["X-Amz-Signature", "eyJ", "PRIVATE KEY"] {
        assert_eq!(ratings.stderr.count(secret) + details.stderr.count(secret), 0, "{secret}");
    }
}

#[tokio::test]
async fn a_task_that_is_stopped_leaves_without_an_error() {
    let bookinfo = Bookinfo::new().await;
    let _apps = apps(&bookinfo);
    let (mut ratings, too) = (joined(&bookinfo, RATINGS).await, joined(&bookinfo, RATINGS_TOO).await);
    let _details = joined(&bookinfo, DETAILS).await;
    meet(&bookinfo).await;
    let serves = async || {
        status(bookinfo.egress(DETAILS), TO_RATINGS).await;
        (ratings.stdout.count("inbound|9080||") > 0 && too.stdout.count("inbound|9080||") > 0).then_some(())
    };
    eventually("both serve", serves).await;

    let inbound = Load::start(bookinfo.egress(DETAILS), TO_RATINGS);
    let outbound = Load::start(bookinfo.egress(RATINGS), TO_DETAILS);
    ratings.terminate().await;
    ratings.stderr.line_with("unregistered from the onboarding plane").await;
    let left = async || !bookinfo.line(RATINGS).await.is_some_and(|line| line.contains(" True"));
    assert!(left().await, "it is not connected any more");
    eventually("its registration is gone", async || bookinfo.line(RATINGS).await.is_none().then_some(())).await;
    let refused = async || tokio::net::TcpStream::connect(bookinfo.ingress(RATINGS)).await.is_err().then_some(());
    eventually("it takes no connections any more", refused).await;
    assert!(ratings.is_running(), "its application still needs it");
    outbound.finish().await;
    bookinfo.aws.update_task(RATINGS.task.unwrap(), |task| task.applications[0].1 = "STOPPED".to_owned());
    assert_eq!(ratings.exit_code().await, 0);
    inbound.finish().await;
    ratings.stderr.line_with(" drained").await;
}

#[tokio::test]
async fn a_task_that_is_killed_is_forgotten_within_the_grace() {
    let grace = [("SKIFF_PLANE_DISCONNECT_GRACE", "1s"), ("SKIFF_PLANE_RETENTION", "3s"), ("SKIFF_PLANE_START_GRACE", "1s")];
    let bookinfo = Bookinfo::with(&grace).await;
    let _apps = apps(&bookinfo);
    let (ratings, _details) = (joined(&bookinfo, RATINGS).await, joined(&bookinfo, DETAILS).await);
    meet(&bookinfo).await;
    ratings.kill().await;
    let line = async || bookinfo.line(RATINGS).await.filter(|line| line.contains(" False")).map(drop);
    let unseen = async || {
        let answer = http::get(bookinfo.egress(DETAILS), TO_RATINGS, "/").await;
        (answer.status == 503 && answer.text().contains("no healthy upstream")).then_some(())
    };
    eventually("it is not connected any more", line).await;
    eventually("its entry is gone", unseen).await;
    eventually("its registration is gone", async || bookinfo.line(RATINGS).await.is_none().then_some(())).await;
}

#[tokio::test]
async fn a_task_that_ecs_reports_stopped_is_collected_and_no_other() {
    // Within the test nobody is collected for having been away for too long. A tenth of it is between two looks.
    let settings = [("SKIFF_PLANE_DISCONNECT_GRACE", "1s"), ("SKIFF_PLANE_RETENTION", "50s"), ("SKIFF_PLANE_START_GRACE", "1s")];
    let mut bookinfo = Bookinfo::with(&settings).await;
    let (ratings, too) = (joined(&bookinfo, RATINGS).await, joined(&bookinfo, RATINGS_TOO).await);
    bookinfo.ecs.stop().await;
    // Their sidecars are gone. ECS says nothing: both may be there.
    ratings.kill().await;
    too.kill().await;
    for member in [RATINGS, RATINGS_TOO] {
        let lost = async || bookinfo.line(member).await.filter(|line| line.contains(" False")).map(drop);
        eventually("its stream is lost", lost).await;
    }
    let stopped = bookinfo.aws.calls("DescribeTasks");
    bookinfo.aws.update_task(RATINGS.task.unwrap(), |task| {
        (task.last_status, task.desired_status) = ("STOPPED".to_owned(), "STOPPED".to_owned());
    });
    assert!(bookinfo.line(RATINGS).await.is_some());
    bookinfo.ecs.resume().await;
    eventually("it is collected", async || bookinfo.line(RATINGS).await.is_none().then_some(())).await;
    bookinfo.plane().stderr.line_with("its platform says that it is gone").await;
    let metrics = bookinfo.plane().metrics().await;
    let removals = |reason| metrics.sum("skiff_plane_removals_total", &[("reason", reason)]);
    assert_eq!((removals("stopped"), removals("lost")), (1.0, 0.0));
    // The other one was asked about as well, and runs.
    eventually("ECS is asked again", async || (bookinfo.aws.calls("DescribeTasks") >= stopped + 2).then_some(())).await;
    assert!(bookinfo.line(RATINGS_TOO).await.unwrap().contains(" False"));
}

#[tokio::test]
async fn a_plane_that_is_killed_and_comes_back_costs_no_request() {
    let mut bookinfo = Bookinfo::new().await;
    let _apps = apps(&bookinfo);
    let (mut ratings, mut details) = (joined(&bookinfo, RATINGS).await, joined(&bookinfo, DETAILS).await);
    meet(&bookinfo).await;
    let proofs = bookinfo.aws.calls("GetCallerIdentity");
    let loads = [Load::start(bookinfo.egress(DETAILS), TO_RATINGS), Load::start(bookinfo.egress(RATINGS), TO_DETAILS)];
    bookinfo.kill_plane().await;
    for sidecar in [&ratings, &details] {
        sidecar.stderr.line_with("no registration with the onboarding plane; what serves stays").await;
        assert!(sidecar.is_ready().await);
    }
    bookinfo.start_plane().await;
    for sidecar in [&ratings, &details] {
        sidecar.stderr.nth_line_with("registered with the onboarding plane", 2).await;
    }
    let connected = async || bookinfo.line(RATINGS).await.filter(|line| line.contains(" True")).map(drop);
    eventually("it is connected again", connected).await;
    for load in loads {
        load.finish().await;
    }
    assert!(ratings.is_running() && details.is_running());
    assert_eq!(bookinfo.aws.calls("GetCallerIdentity"), proofs, "its session is as good as before");
    assert_eq!(ratings.metrics().await.sum("skiff_drained_connections_total", &[]), 0.0, "nothing changed, nothing drains");
}

#[tokio::test]
async fn an_sts_that_does_not_answer_is_asked_again() {
    let bookinfo = Bookinfo::new().await;
    let nothing = (503, Vec::new(), "busy".to_owned());
    bookinfo.aws.update(|state| state.instead.insert("GetCallerIdentity".to_owned(), nothing));
    let ratings = bookinfo.join(RATINGS, &[]);
    let line = ratings.stderr.line_with("not onboarded yet").await;
    assert!(line.contains("code = Unavailable") && line.contains("retry_in="), "{line}");
    ratings.stderr.nth_line_with("not onboarded yet", 2).await;
    bookinfo.aws.update(|state| state.instead.clear());
    ratings.ready().await;
    assert!(bookinfo.line(RATINGS).await.unwrap().contains(" True"));
}

#[tokio::test]
async fn who_is_not_authorized_is_told_so_until_a_policy_says_otherwise() {
    let bookinfo = Bookinfo::new().await;
    bookinfo.edit("policies.yaml", "ecs: {}", "ecs: {iamRoleNames: [another]}");
    let denies = async || {
        let ratings = bookinfo.join(RATINGS, &[]);
        // The folder is watched; a sidecar that comes before the edit is seen is let in.
        let ready = eventually("an answer", async || {
            let denied = ratings.stderr.count("desc = Not authorized by OnboardingPolicy") > 0;
            (denied || ratings.is_ready().await).then_some(denied)
        });
        ready.await.then_some(ratings)
    };
    let ratings = eventually("the policy is in force", denies).await;
    let line = ratings.stderr.line_with("not onboarded yet").await;
    assert!(line.contains("code = PermissionDenied desc = Not authorized by OnboardingPolicy"), "{line}");
    assert!(!bookinfo.line(RATINGS).await.is_some_and(|line| line.contains(" True")));
    bookinfo.edit("policies.yaml", "another", "another, bookinfoECSTaskRole");
    ratings.ready().await;
    assert!(bookinfo.line(RATINGS).await.unwrap().contains(" True"));
}

#[tokio::test]
async fn tokens_are_renewed_on_the_stream() {
    let bookinfo = Bookinfo::with(&[("SKIFF_PLANE_TOKEN_LIFETIME", "3s")]).await;
    let ratings = joined(&bookinfo, RATINGS).await;
    ratings.stderr.nth_line_with("onboarding token renewed", 2).await;
    assert_eq!(ratings.stderr.count("registered with the onboarding plane"), 1, "its stream lives on");
    assert_eq!(bookinfo.aws.calls("GetCallerIdentity"), 1);
}
