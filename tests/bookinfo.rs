//! Bookinfo through two sidecars: answer, both access-log lines and metrics of each request.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use skiff_tests::http;
use skiff_tests::mesh::{DETAILS, DETAILS_V1, Mesh, RATINGS};

#[tokio::test]
async fn ratings_reaches_details_in_mutual_tls() {
    let bookinfo = Mesh::prepare().await.run().await;
    let answer = http::get_as(bookinfo.egress(), DETAILS, "/details/0", "id-200").await;
    assert_eq!((answer.status, answer.header("server")), (200, Some("envoy")));

    let (ratings, details) = bookinfo.lines("id-200").await;
    eprintln!("{ratings:?}\n{details:?}");
    eprintln!("{:#?}", bookinfo.ratings.metrics().await);
    eprintln!("{:#?}", bookinfo.app.last_request());
    panic!();
}
