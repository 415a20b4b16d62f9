//! The same against a living istiod, where the environment names one (`skiff_tests::living`).

use skiff_tests::apps::{App, Speaks};
use skiff_tests::http;
use skiff_tests::living::{Living, Namespace};
use skiff_tests::network::Network;
use skiff_tests::skiff::Skiff;
use skiff_tests::wait::eventually;

/// Both sidecars in a namespace of their own.
struct Joined {
    namespace: Namespace,
    ratings: Skiff,
    details: Skiff,
    app: App,
}

impl Joined {
    async fn with(variables: &[(&str, &str)]) -> Option<Self> {
        let namespace = Living::given()?.namespace().await?;
        let app = App::start(namespace.app(), Speaks::Http);
        let (ratings, details) = (namespace.ratings(variables), namespace.details());
        ratings.ready().await;
        details.ready().await;
        let joined = Self { namespace, ratings, details, app };
        joined.answers(200).await;
        Some(joined)
    }

    async fn status(&self) -> u16 {
        http::get(self.namespace.egress(), &self.namespace.host(), "/").await.status
    }

    async fn answers(&self, status: u16) {
        eventually(&format!("the answer is {status}"), async || (self.status().await == status).then_some(())).await;
    }

    async fn assert_accepted(&self) {
        for sidecar in [&self.ratings, &self.details] {
            assert_eq!(sidecar.metrics().await.sum("skiff_xds_responses_rejected_total", &[]), 0.0, "{:?}", sidecar.stderr.all());
        }
    }
}

#[tokio::test]
async fn it_joins_with_the_token_that_is_given() {
    let Some(living) = Living::given() else { return };
    let Some(token) = living.token_file() else { return };
    let network = Network::claim();
    let sidecar = living.sidecar(&network, 21, "skiff-test", &token, &[]);
    sidecar.stderr.line_with("connected to the control plane").await;
    eventually("clusters are accepted", async || {
        (sidecar.metrics().await.sum("skiff_xds_responses_accepted_total", &[("type", "CDS")]) > 0.0).then_some(())
    })
    .await;
    assert_eq!(sidecar.metrics().await.sum("skiff_xds_responses_rejected_total", &[]), 0.0, "{:?}", sidecar.stderr.all());
}

#[tokio::test]
async fn it_joins_on_both_protocols_and_carries_traffic_in_mutual_tls() {
    for delta in ["true", "false"] {
        let Some(joined) = Joined::with(&[("ISTIO_DELTA_XDS", delta)]).await else { return };
        assert_eq!(http::get_as(joined.namespace.egress(), &joined.namespace.host(), "/", "living").await.status, 200);
        let xfcc = joined.app.last_request().header("x-forwarded-client-cert").unwrap().to_owned();
        assert!(xfcc.contains(&format!("URI=spiffe://cluster.local/ns/{}/sa/ratings", joined.namespace.name)), "{xfcc}");
        let line = joined.ratings.stdout.line_with("living").await;
        assert!(line.contains(&format!("outbound|9080||details.{}.svc.cluster.local", joined.namespace.name)), "{line}");
        joined.details.stdout.line_with("living").await;
        joined.assert_accepted().await;
    }
}

#[tokio::test]
async fn every_kind_of_change_arrives() {
    let Some(joined) = Joined::with(&[]).await else { return };
    let namespace = &joined.namespace;
    let policy = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: none, namespace: {ns}}, spec: \
                  {selector: {matchLabels: {app: details}}}}";
    namespace.apply(policy).await;
    joined.answers(403).await;
    namespace.delete("authorizationpolicy", "none").await;
    joined.answers(200).await;
    let direct = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: details, namespace: {ns}}, spec: \
                  {hosts: [details.{ns}.svc.cluster.local], http: [{directResponse: {status: 418}}]}}";
    namespace.apply(direct).await;
    joined.answers(418).await;
    namespace.delete("virtualservice", "details").await;
    joined.answers(200).await;
    namespace.delete("workloadentry", "details-v1").await;
    joined.answers(503).await;
    let entry = "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: details-v1, namespace: {ns}, labels: \
                 {app: details}}, spec: {address: 127.0.0.31, labels: {app: details}, serviceAccount: details}}";
    namespace.apply(entry).await;
    joined.answers(200).await;
    joined.assert_accepted().await;
}

#[tokio::test]
async fn it_registers_itself_and_is_forgotten() {
    let Some(joined) = Joined::with(&[("ISTIO_META_AUTO_REGISTER_GROUP", "ratings")]).await else { return };
    let address = joined.namespace.network.ip(21).to_string();
    let registered = async || {
        let entries = joined.namespace.objects("workloadentries").await;
        entries.iter().any(|entry| entry["spec"]["address"] == address.as_str())
    };
    eventually("an entry", async || registered().await.then_some(())).await;
    joined.assert_accepted().await;
    let Joined { namespace, ratings, .. } = joined;
    drop(ratings);
    // The grace period is 10 s.
    eventually("no entry", async || {
        let entries = namespace.objects("workloadentries").await;
        entries.iter().all(|entry| entry["spec"]["address"] != address.as_str()).then_some(())
    })
    .await;
}
