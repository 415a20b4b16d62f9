//! Registrations: what comes of a good one, and why others are refused.

use super::*;
use crate::plane::objects::{HEALTH_CHECKS_ENABLED, ObjectMeta, WorkloadEntry, WorkloadEntrySpec};
use crate::plane::store::Expected;

#[tokio::test]
async fn a_workload_gets_its_objects_and_what_its_sidecar_needs() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let (mut held, boot) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    assert_eq!((boot.namespace.as_str(), boot.name.as_str()), ("bookinfo", "ratings-jwt-a-vm-1"));
    assert_eq!((boot.service_account.as_str(), boot.network.as_str()), ("bookinfo-ratings", "vms"));
    assert_eq!((boot.ca_address.as_str(), boot.control_plane_san.as_str()), ("", "istiod.istio-system.svc"));
    assert_eq!(boot.labels.get("app").map(String::as_str), Some("ratings"));
    assert_eq!(boot.root_certificates, bed.plane().root_pem());
    let proxy_config: serde_json::Value = serde_json::from_str(&boot.proxy_config).unwrap();
    assert_eq!(proxy_config["readinessProbe"]["httpGet"]["port"], 9080);
    let token = boot.mesh_token.unwrap();
    assert!(token.token.split('.').count() == 3 && token.expires_at.is_some());

    let registration = bed.registration("vm-1").await.unwrap();
    let entry = bed.store.entry(&name_of("vm-1")).await.unwrap().unwrap();
    assert_eq!(registration.spec.registration.host.addresses[0].ip.to_string(), "10.0.0.1");
    assert_eq!(registration.metadata.owner_references[0].kind, "WorkloadGroup");
    assert!(entry.metadata.is_owned_by(&registration.owner_reference().unwrap()));
    assert_eq!(entry.metadata.annotations.get(HEALTH_CHECKS_ENABLED).map(String::as_str), Some("true"));
    assert_eq!((entry.spec.address.as_str(), entry.spec.service_account.as_str()), ("10.0.0.1", "bookinfo-ratings"));
    assert_eq!(bed.is_connected("vm-1").await, Some((ConditionStatus::True, "ConnectionEstablished".to_owned())));
    assert_eq!(registration.status.active_agent_connection.unwrap().connected_to, "plane-0");
    assert_eq!(registration.status.observed_generation, registration.metadata.generation);

    // Others hear of it once it is healthy, and no longer when it is not. Policies are nobody's business.
    held.until_told(&["ratings.bookinfo.svc.cluster.local", "kind: WorkloadGroup"], &["OnboardingPolicy", "10.0.0.1"]).await;
    held.healthy("").await;
    held.until_told(&["10.0.0.1", "ratings-jwt-a-vm-1"], &["ownerReferences"]).await;
    held.healthy("no answer").await;
    held.until_told(&[], &["10.0.0.1"]).await;

    // Its token is good for a certificate of the plane's authority.
    bed.certificate(&token.token).await.unwrap();
}

#[tokio::test]
async fn only_a_session_token_in_force_registers() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let other = Bed::usual().await;
    let foreign = other.session(&mut other.agent().await, "vm-1").await;
    let mut tampered: Vec<_> = session.split('.').map(str::to_owned).collect();
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(&tampered[1]).unwrap()).unwrap();
    tampered[1] = URL_SAFE_NO_PAD.encode(claims.replace("vm-1", "vm-2"));
    for (what, token) in [
        ("tampered", tampered.join(".")),
        ("another plane's", foreign),
        ("a platform's", bed.token("vm-1")),
        ("a mesh token", bed.plane().issue_token("bookinfo", "bookinfo-ratings").unwrap().expose().to_owned()),
        ("garbage", "garbage".to_owned()),
    ] {
        assert_eq!(codes(&agent.register(&token, registration("10.0.0.1")).await), Some(Code::Unauthenticated), "{what}");
        assert_eq!(codes(&agent.unregister(&token).await), Some(Code::Unauthenticated), "{what}");
    }
    let bare = agent.0.unregister(proto::UnregisterRequest {}).await.unwrap_err();
    assert_eq!(bare.code(), Code::Unauthenticated);
    bed.advance(3601);
    let status = agent.register(&session, registration("10.0.0.1")).await.err().unwrap();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the session token does not hold"));
    assert!(bed.store.registrations(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_registration_that_is_none_is_refused() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    for (what, message) in [
        ("no registration", Say::Heartbeat(proto::Heartbeat {})),
        ("a link-local address", Say::Registration(registration("169.254.169.254"))),
        ("no address", Say::Registration(proto::Registration { addresses: Vec::new(), ..registration("10.0.0.1") })),
    ] {
        let held = agent.open(&session).await.unwrap();
        held.say(message).await;
        assert_eq!(held.end().await.code(), Code::InvalidArgument, "{what}");
    }
    let mut reserved = registration("10.0.0.1");
    reserved.labels.insert("security.istio.io/tlsMode".to_owned(), "disabled".to_owned());
    let status = agent.register(&session, reserved).await.err().unwrap();
    assert!(status.message().contains("security.istio.io/tlsMode"), "{status}");
    assert!(bed.store.registrations(None).await.unwrap().is_empty());
    assert_eq!(bed.count("skiff_plane_registrations_refused_total"), 4);
}

#[tokio::test]
async fn a_stream_on_which_nothing_is_said_ends() {
    let settings: fn(&mut OnboardingSettings) = |settings| settings.limits.message_timeout = Duration::from_millis(100);
    let bed = Bed::new(Change { settings: Some(settings), ..Change::default() }).await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    let held = agent.open(&session).await.unwrap();
    assert_eq!(held.end().await.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn what_belongs_to_somebody_else_is_not_taken_over() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let session = bed.session(&mut agent, "vm-1").await;
    // Somebody's own entry of that name.
    let spec = WorkloadEntrySpec { address: "10.9.9.9".to_owned(), ..WorkloadEntrySpec::default() };
    bed.store.put_entry(WorkloadEntry::new(ObjectMeta::new(&name_of("vm-1")), spec)).await.unwrap();
    assert_eq!(codes(&agent.register(&session, registration("10.0.0.1")).await), Some(Code::AlreadyExists));
    bed.store.delete_entry(&name_of("vm-1"), &Expected::any()).await.unwrap();
    agent.register(&session, registration("10.0.0.1")).await.unwrap();
    // Another identity with the same name.
    let mut taken = bed.registration("vm-1").await.unwrap();
    let crate::onboarding::identity::WorkloadIdentity::Jwt(identity) = &mut taken.spec.identity else { panic!("not JWT") };
    identity.issuer = "https://other.example".to_owned();
    bed.store.put_registration(taken).await.unwrap();
    assert_eq!(codes(&agent.register(&session, registration("10.0.0.1")).await), Some(Code::AlreadyExists));
    assert_eq!(codes(&agent.unregister(&session).await), Some(Code::AlreadyExists));
}

#[tokio::test]
async fn as_many_streams_as_there_are_places() {
    let settings: fn(&mut OnboardingSettings) = |settings| settings.limits.streams = 1;
    let bed = Bed::new(Change { settings: Some(settings), ..Change::default() }).await;
    let mut agent = bed.agent().await;
    let (one, two) = (bed.session(&mut agent, "vm-1").await, bed.session(&mut agent, "vm-2").await);
    let (held, _) = agent.register(&one, registration("10.0.0.1")).await.unwrap();
    assert_eq!(codes(&agent.register(&two, registration("10.0.0.2")).await), Some(Code::ResourceExhausted));
    drop(held);
    bed.until("a place is free", async || agent.clone().register(&two, registration("10.0.0.2")).await.is_ok()).await;
}

#[tokio::test]
async fn a_plane_behind_a_gateway_speaks_plaintext() {
    let bed = Bed::new(Change { transport: Some(crate::plane::Transport::Plaintext), ..Change::default() }).await;
    let connector = ControlPlaneConnector::new(bed.plane().address().to_string(), Security::Plaintext);
    let mut agent = Agent(OnboardingServiceClient::new(connector.connect(None).await.unwrap()));
    assert_eq!(agent.0.discover(proto::DiscoverRequest::default()).await.unwrap().into_inner().plane_uid, bed.uid);
}
