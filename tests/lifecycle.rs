//! A sidecar's life: start, admin page, edits of its configuration, end.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::net::TcpListener;
use std::time::Instant;

use skiff_tests::access_log::AccessLogLine;
use skiff_tests::apps::{App, Speaks};
use skiff_tests::http::{self, Connection};
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS, Running};
use skiff_tests::network::Network;
use skiff_tests::skiff::{Said, command, run};
use skiff_tests::tls;
use skiff_tests::wait::eventually;
use tokio::net::TcpStream;

async fn bookinfo() -> Running {
    Mesh::prepare().await.run().await
}

/// A request that the application holds back.
async fn held(bookinfo: &Running) -> Connection {
    let mut caller = Connection::open(bookinfo.egress()).await.unwrap();
    caller.send(http::get_request(DETAILS, "/hold", "x-request-id: id-held\r\n")).await.unwrap();
    bookinfo.app.arrived("/hold").await;
    caller
}

#[tokio::test]
async fn sigterm_drains_what_is_in_flight_and_takes_nothing_new() {
    let mut bookinfo = bookinfo().await;
    let mut caller = held(&bookinfo).await;
    let door = bookinfo.mesh.ingress(DETAILS_V1, 9080);
    let stream = tls::connect(door, Some(&bookinfo.mesh.identity()), &["istio"]).await.unwrap();
    let mut idle = Connection::over(stream);
    assert_eq!(idle.ask(&http::get_request(DETAILS, "/", "")).await.unwrap().status, 200);
    bookinfo.ratings.terminate().await;
    bookinfo.details.terminate().await;
    // Inbound first: the idle connection is closed, and so is the port.
    assert!(idle.rest().await.unwrap().is_empty());
    let refused = async || TcpStream::connect(door).await.is_err().then_some(());
    eventually("new connections are refused", refused).await;
    let unready = async || (bookinfo.details.page("/healthz/ready").await.status == 503).then_some(());
    eventually("it is not ready any more", unready).await;
    assert!(bookinfo.ratings.is_running() && bookinfo.details.is_running());

    bookinfo.app.release();
    assert_eq!(caller.answer().await.unwrap().status, 200);
    assert!(caller.rest().await.unwrap().is_empty());
    let (ratings, details) = bookinfo.lines("id-held").await;
    for line in [ratings, details] {
        line.assert(&[("response_code", "200"), ("response_flags", "-")]);
    }
    assert_eq!((bookinfo.ratings.exit_code().await, bookinfo.details.exit_code().await), (0, 0));
}

#[tokio::test]
async fn connections_that_carry_nothing_do_not_hold_up_the_end() {
    let mut bookinfo = bookinfo().await;
    let mut unused = Connection::open(bookinfo.egress()).await.unwrap();
    let mut silent = Connection::open(bookinfo.mesh.ingress(RATINGS, 9080)).await.unwrap();
    let mut kept = Connection::open(bookinfo.egress()).await.unwrap();
    assert_eq!(kept.ask(&http::get_request(DETAILS, "/", "")).await.unwrap().status, 200);
    let asked = Instant::now();
    bookinfo.ratings.terminate().await;
    assert_eq!(bookinfo.ratings.exit_code().await, 0);
    assert!(asked.elapsed().as_secs() < 10, "the drain deadline is 30 s");
    for connection in [&mut kept, &mut unused, &mut silent] {
        assert!(connection.rest().await.unwrap().is_empty());
    }
    bookinfo.ratings.stderr.line_with(" drained").await;
}

#[tokio::test]
async fn the_drain_ends_with_its_deadline() {
    let mesh = Mesh::prepare().await;
    let app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    let (ratings, mut details) = (mesh.spawn(RATINGS, &[]), mesh.spawn(DETAILS_V1, &[("SKIFF_DRAIN_DEADLINE", "300ms")]));
    ratings.ready().await;
    details.ready().await;
    let mut caller = Connection::open(mesh.egress(RATINGS, 9080)).await.unwrap();
    caller.send(http::get_request(DETAILS, "/hold", "")).await.unwrap();
    app.arrived("/hold").await;
    details.terminate().await;
    assert_eq!(details.exit_code().await, 0);
    assert_eq!(caller.answer().await.unwrap().status, 503);
    details.stderr.line_with("did not finish before the drain deadline").await;
}

#[tokio::test]
async fn a_second_sigterm_ends_it_at_once() {
    let mut bookinfo = bookinfo().await;
    let _caller = held(&bookinfo).await;
    bookinfo.details.terminate().await;
    bookinfo.details.stderr.line_with("asked to stop").await;
    let asked = Instant::now();
    bookinfo.details.terminate().await;
    assert_eq!(bookinfo.details.exit_code().await, 0);
    assert!(asked.elapsed().as_secs() < 10, "the drain deadline is 30 s");
    bookinfo.details.stderr.line_with("asked twice to stop").await;
}

#[tokio::test]
async fn every_admin_page_answers_and_none_shows_a_key() {
    let bookinfo = bookinfo().await;
    assert_eq!(http::get(bookinfo.egress(), DETAILS, "/").await.status, 200);
    for (path, says) in [
        ("/healthz/ready", "LIVE"),
        ("/ready", "LIVE"),
        ("/config_dump", "outbound|9080||details.bookinfo.svc.cluster.local"),
        ("/config_dump?resource=secrets", "ROOTCA"),
        ("/clusters", "outbound|9080||details.bookinfo.svc.cluster.local::"),
        ("/listeners", "::"),
        ("/certs", "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"),
        ("/stats", "server.state: 0"),
        ("/stats/prometheus", "istio_requests_total{"),
        ("/logging", "active loggers"),
        ("/server_info", "LIVE"),
        ("/help", "/quitquitquit"),
    ] {
        let answer = bookinfo.ratings.page(path).await;
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.text();
        assert!(text.contains(says), "{path}: {text}");
        assert!(!text.contains("PRIVATE KEY"), "{path}");
    }
    for path in ["/config_dump", "/certs", "/server_info", "/clusters?format=json", "/listeners?format=json"] {
        serde_json::from_slice::<serde_json::Value>(&bookinfo.ratings.page(path).await.body).unwrap();
    }
    assert_eq!(bookinfo.ratings.page("/nothing").await.status, 404);
    for path in ["/drain", "/quitquitquit", "/logging?level=debug"] {
        assert_eq!(bookinfo.ratings.page(path).await.status, 405, "{path} is no GET");
    }
    assert_eq!(bookinfo.ratings.post("/logging?level=debug").await.status, 200);
    assert!(bookinfo.ratings.page("/logging").await.text().contains("debug"));
}

#[tokio::test]
async fn drain_on_the_admin_page_closes_the_listeners_and_quitquitquit_ends_it() {
    let mut bookinfo = bookinfo().await;
    assert_eq!(bookinfo.details.post("/drain").await.status, 200);
    let refused = async || TcpStream::connect(bookinfo.mesh.ingress(DETAILS_V1, 9080)).await.is_err().then_some(());
    eventually("new connections are refused", refused).await;
    assert!(bookinfo.details.is_running());
    assert_eq!(bookinfo.details.page("/ready").await.status, 503);
    assert_eq!(bookinfo.details.post("/quitquitquit").await.status, 200);
    assert_eq!(bookinfo.details.exit_code().await, 0);
}

#[tokio::test]
async fn health_says_yes_or_no_with_its_exit_code() {
    let mut bookinfo = bookinfo().await;
    let admin = bookinfo.details.admin.to_string();
    let health = async || run(command(&["health", "--admin-address", &admin])).await;
    assert_eq!(health().await.code, 0);
    assert_eq!(bookinfo.details.post("/drain").await.status, 200);
    let draining = health().await;
    assert_eq!((draining.code, draining.stderr.lines().count()), (1, 1));
    bookinfo.details.terminate().await;
    bookinfo.details.exit_code().await;
    let gone = health().await;
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains(&admin), "{}", gone.stderr);
}

/// Runs bare `skiff` on a configuration that it must refuse; its one line.
async fn refuses(config: &std::path::Path) -> String {
    let network = Network::claim();
    let mut skiff = command(&[]);
    skiff.env("SKIFF_CONFIG", config).env("SKIFF_ADMIN_ADDRESS", network.at(1, 15000).to_string());
    let Said { code, stdout, stderr } = run(skiff).await;
    let last = stderr.lines().last().unwrap_or_default().to_owned();
    assert_eq!((code, stdout.as_str()), (78, ""), "{stderr}");
    assert!(last.starts_with("skiff: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    last
}

#[tokio::test]
async fn without_anything_to_run_from_it_names_the_quickstart() {
    let folder = tempfile::tempdir().unwrap();
    let mut bare = command(&[]);
    let Said { code, stderr, .. } = run({
        bare.current_dir(&folder);
        bare
    })
    .await;
    assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
    assert!(stderr.contains("skiff quickstart"), "{stderr}");
    let line = refuses(&folder.path().join("missing")).await;
    assert!(line.contains("missing") && line.contains("skiff quickstart"), "{line}");
    let line = refuses(folder.path()).await;
    assert!(line.contains("no .yaml, .yml or .json file in it"), "{line}");
}

#[tokio::test]
async fn a_mistake_in_the_yaml_is_told_with_file_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.yaml");
    let yaml = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a}\nspec:\n  egress:\n  - port: {number: 70000, protocol: HTTP}\n    hosts: [\"./*\"]\n";
    fs::write(&file, yaml).unwrap();
    let line = refuses(folder.path()).await;
    assert!(line.contains("sidecar.yaml:6: spec.egress[0].port.number: "), "{line}");
    fs::write(&file, "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a\n").unwrap();
    let line = refuses(folder.path()).await;
    assert!(line.contains("sidecar.yaml:"), "{line}");
    fs::write(&file, yaml.replace("egress", "egres").replace("70000", "80")).unwrap();
    let line = refuses(folder.path()).await;
    assert!(line.contains("sidecar.yaml:5: ") && line.contains("egres"), "{line}");
}

#[tokio::test]
async fn a_wrong_command_line_is_one_line_and_64() {
    for arguments in [&["--no-such-flag"][..], &["fly"], &["--workers", "many"], &["--drain-deadline", "soon"]] {
        let Said { code, stdout, stderr } = run(command(arguments)).await;
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (64, "", 1), "{arguments:?}: {stderr}");
    }
}

#[tokio::test]
async fn an_admin_address_in_use_is_named() {
    let mesh = Mesh::prepare().await;
    let admin = mesh.network.at(31, 15000);
    let _taken = TcpListener::bind(admin).unwrap();
    let mut details = mesh.spawn(DETAILS_V1, &[]);
    assert_eq!(details.exit_code().await, 69);
    let line = details.stderr.line_with("skiff: ").await;
    assert!(line.contains(&admin.to_string()) && line.contains("SKIFF_ADMIN_ADDRESS"), "{line}");
}

#[tokio::test]
async fn a_missing_token_is_named_until_it_is_there() {
    let mesh = Mesh::prepare().await;
    let token = mesh.document("").join("../later.token");
    let details = mesh.spawn(DETAILS_V1, &[("SKIFF_TOKEN_FILE", token.to_str().unwrap())]);
    let why = async || {
        let answer = http::try_get(details.admin, "admin", "/ready").await.ok()?;
        (answer.status == 503 && answer.text().contains("later.token")).then_some(())
    };
    eventually("the readiness page names the file", why).await;
    fs::copy(mesh.document("").join("../details.token"), &token).unwrap();
    details.ready().await;
}

#[tokio::test]
async fn a_bad_edit_keeps_the_last_good_configuration_and_says_so() {
    let bookinfo = bookinfo().await;
    let text = fs::read_to_string(bookinfo.mesh.document("services.yaml")).unwrap();
    bookinfo.mesh.edit("services.yaml", "resolution: STATIC", "resolution: SOMEHOW");
    let line = bookinfo.ratings.stderr.line_with("configuration refused, the last good one stays").await;
    assert!(line.contains("services.yaml:7: spec.resolution: "), "{line}");
    assert_eq!(http::get(bookinfo.egress(), DETAILS, "/").await.status, 200);
    assert!(bookinfo.ratings.is_ready().await);
    let metrics = bookinfo.ratings.metrics().await;
    assert_eq!(metrics.sum("skiff_config_last_reload_successful", &[]), 0.0);
    assert!(metrics.sum("skiff_config_reload_failures_total", &[]) >= 1.0);

    fs::write(bookinfo.mesh.document("services.yaml"), text).unwrap();
    let mended = async || {
        let metrics = bookinfo.ratings.metrics().await;
        (metrics.sum("skiff_config_last_reload_successful", &[]) > 0.0).then_some(())
    };
    eventually("the configuration is mended", mended).await;
}

#[tokio::test]
async fn huge_and_nested_documents_harm_nothing_that_is_served() {
    let bookinfo = bookinfo().await;
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", format!("*a{}, ", level - 1).repeat(10)));
    }
    for (name, text, says) in [
        ("huge.yaml", "# huge\n".repeat(1 << 21), "expected at most 8388608"),
        ("nested.yaml", format!("spec: {}", "[".repeat(100_000)), "nested.yaml:1: "),
        ("deep.yaml", format!("spec: {}x{}", "{a: ".repeat(1000), "}".repeat(1000)), "deep.yaml:1: "),
        ("bomb.yaml", bomb, "bomb.yaml:"),
    ] {
        bookinfo.mesh.write(name, &text);
        let line = bookinfo.ratings.stderr.line_with(says).await;
        assert!(line.contains("configuration refused, the last good one stays"), "{name}: {line}");
        assert!(line.len() < 1000, "{name}: {line}");
        assert_eq!(http::get(bookinfo.egress(), DETAILS, "/").await.status, 200, "{name}");
        fs::remove_file(bookinfo.mesh.document(name)).unwrap();
    }
    assert!(bookinfo.ratings.is_ready().await);
    assert!(bookinfo.ratings.metrics().await.sum("skiff_config_reload_failures_total", &[]) >= 4.0);
}

#[tokio::test]
async fn a_folder_that_is_emptied_is_no_wish_to_serve_nothing() {
    let bookinfo = bookinfo().await;
    for entry in fs::read_dir(bookinfo.mesh.document("")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    bookinfo.ratings.stderr.line_with("no .yaml, .yml or .json file in it").await;
    bookinfo.details.stderr.line_with("no .yaml, .yml or .json file in it").await;
    assert_eq!(http::get(bookinfo.egress(), DETAILS, "/").await.status, 200);
}

#[tokio::test]
async fn a_good_edit_is_applied_without_a_dropped_connection() {
    let bookinfo = bookinfo().await;
    let mut kept = Connection::open(bookinfo.egress()).await.unwrap();
    let mut caller = held(&bookinfo).await;
    assert_eq!(kept.ask(&http::get_request("shop.example", "/", "")).await.unwrap().status, 502);
    bookinfo.mesh.write("shop.yaml", SHOP);
    // On the connection that was there before the edit.
    let routed = async || {
        let answer = kept.ask(&http::get_request("shop.example", "/", "")).await.unwrap();
        assert!(matches!(answer.status, 200 | 502), "{}", answer.status);
        (answer.status == 200).then_some(())
    };
    eventually("the new service is known", routed).await;
    bookinfo.app.release();
    assert_eq!(caller.answer().await.unwrap().status, 200);
}

/// The application of details under another name, in plaintext.
const SHOP: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop, namespace: bookinfo}
spec:
  hosts: [shop.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 9080, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: 127.0.0.31}]
";

/// Closed at once, the connection would lose a request that is on its way. The time for that is short, hence several tries.
#[tokio::test]
async fn an_edit_leaves_time_for_a_request_on_its_way() {
    let bookinfo = bookinfo().await;
    let plaintext = bookinfo.mesh.ingress(DETAILS_V1, 9080);
    bookinfo.mesh.edit("security.yaml", "STRICT", "PERMISSIVE");
    let taken = async || http::try_get(plaintext, DETAILS, "/").await.ok().filter(|answer| answer.status == 200).map(drop);
    eventually("plaintext is taken", taken).await;
    let mut path = 0;
    let told = async || {
        path += 1;
        let mut idle = Connection::open(plaintext).await.unwrap();
        assert_eq!(idle.ask(&http::get_request(DETAILS, "/", "")).await.unwrap().status, 200);
        bookinfo.mesh.write("denied.yaml", &denying(path));
        let path = format!("/denied{path}");
        let denied = async || (http::get(plaintext, DETAILS, &path).await.status == 403).then_some(());
        eventually("the edit is applied", denied).await;
        let answer = idle.ask(&http::get_request(DETAILS, "/", "")).await.ok()?;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        Some(())
    };
    eventually("the old connection is answered", told).await;
}

fn denying(path: u32) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: denied, namespace: bookinfo}}\n\
         spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [/denied{path}]}}}}]}}]}}\n"
    )
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_retried_while_the_others_serve() {
    let mesh = Mesh::prepare().await;
    let taken = TcpListener::bind(mesh.egress(RATINGS, 9090)).unwrap();
    let _app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    let (ratings, details) = (mesh.spawn(RATINGS, &[]), mesh.spawn(DETAILS_V1, &[]));
    details.ready().await;
    let address = mesh.egress(RATINGS, 9090).to_string();
    let why = async || {
        let answer = http::try_get(ratings.admin, "admin", "/ready").await.ok()?;
        (answer.status == 503 && answer.text().contains(&address)).then(|| answer.text())
    };
    let why = eventually("the reason", why).await;
    assert!(why.contains("in use"), "{why}");
    let served = async || (http::try_get(mesh.egress(RATINGS, 9080), DETAILS, "/").await.ok()?.status == 200).then_some(());
    eventually("the other port serves", served).await;
    drop(taken);
    ratings.ready().await;
    assert_eq!(http::get(mesh.egress(RATINGS, 9090), "nobody.example", "/").await.status, 502);
}

#[tokio::test]
async fn an_ingress_is_moved_by_making_the_new_before_breaking_the_old() {
    let bookinfo = bookinfo().await;
    let port = "number: 9080, protocol: HTTP, name: http}, bind: 127.0.0.2,";
    bookinfo.mesh.edit("sidecars.yaml", port, "number: 9081, protocol: HTTP, name: http}, bind: 127.0.0.2,");
    let moved =
        async || http::try_get(bookinfo.mesh.egress(RATINGS, 9081), "nobody.example", "/").await.ok().map(|answer| answer.status);
    assert_eq!(eventually("the new port serves", moved).await, 502);
    let gone = async || http::try_get(bookinfo.egress(), DETAILS, "/").await.is_err().then_some(());
    eventually("the old port is closed", gone).await;
}

#[tokio::test]
async fn several_workers_share_the_connections() {
    let mesh = Mesh::prepare().await;
    let _app = App::start(mesh.app(DETAILS_V1), Speaks::Http);
    let workers = [("SKIFF_WORKERS", "3")];
    let (ratings, details) = (mesh.spawn(RATINGS, &workers), mesh.spawn(DETAILS_V1, &workers));
    ratings.ready().await;
    details.ready().await;
    let mut callers = Vec::new();
    for _ in 0..6 {
        callers.push(Connection::open(mesh.egress(RATINGS, 9080)).await.unwrap());
    }
    for (number, caller) in callers.iter_mut().enumerate() {
        let request = http::get_request(DETAILS, "/", &format!("x-request-id: id-worker-{number}.\r\n"));
        assert_eq!(caller.ask(&request).await.unwrap().status, 200);
    }
    // A worker keeps a pool of its own: its two callers share one upstream connection, three workers have three.
    let mut upstream = std::collections::BTreeSet::new();
    for number in 0..callers.len() {
        let line = AccessLogLine::parse(&ratings.stdout.line_with(&format!("id-worker-{number}.")).await);
        upstream.insert(line.get("upstream_local_address").to_owned());
    }
    assert_eq!(upstream.len(), 3);
    assert_eq!(ratings.metrics().await.sum("istio_requests_total", &[("response_code", "200")]), 6.0);
}

#[tokio::test]
async fn check_reads_a_configuration_without_running_it() {
    let mesh = Mesh::prepare().await;
    let folder = mesh.document("");
    let check = async || run(command(&["check", folder.to_str().unwrap()])).await;
    let said = check().await;
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{}", said.stdout);
    mesh.edit("security.yaml", "STRICT", "SOMETIMES");
    let said = check().await;
    assert_eq!(said.code, 78);
    assert!(said.stdout.contains("security.yaml:5: spec.mtls.mode: "), "{}", said.stdout);
}
