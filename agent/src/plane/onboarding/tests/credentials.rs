//! Discovery and authorisation: what is believed, and what is not.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::aws::caller_identity::{Binding, prove};
use crate::aws::credentials::Credentials;
use crate::aws::instance::InstanceCertificates;
use crate::aws::verifier::StsVerifier;
use crate::plane::limits::Rate;

#[tokio::test]
async fn a_token_of_a_known_issuer_lets_in_whom_a_policy_names() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let discovered = agent.0.discover(proto::DiscoverRequest::default()).await.unwrap().into_inner();
    assert_eq!((&discovered.plane_uid, discovered.nonce.len()), (&bed.uid, 64));
    let authorized = agent.authorize(jwt(bed.token("vm-1"))).await.unwrap();
    let expires: SystemTime = authorized.expires_at.unwrap().try_into().unwrap();
    let left = expires.duration_since(SystemTime::now()).unwrap();
    assert!((3590..=3600).contains(&left.as_secs()), "{left:?}");
    assert_eq!(bed.count("skiff_plane_authorizations_total{outcome=\"admitted\"}"), 1);
    assert_eq!(bed.count("skiff_plane_tokens_total{kind=\"session\"}"), 1);
}

#[tokio::test]
async fn everybody_else_is_refused_and_told_little() {
    let bed = Bed::usual().await;
    let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let foreign = Bed { key: other, ..Bed::usual().await };
    let foreign = { foreign.token_with(&json!({"aud": bed.uid})) };
    let mut agent = bed.agent().await;
    let told = "the credential does not hold; the plane's audit log says why";
    for (what, token) in [
        ("garbage", "garbage".to_owned()),
        ("another key", foreign),
        ("another audience", bed.token_with(&json!({"aud": "another-plane"}))),
        ("an unknown issuer", bed.token_with(&json!({"iss": "https://other.example"}))),
        ("an end", bed.token_with(&json!({"exp": 1_600_000_000}))),
        ("no subject", bed.token_with(&json!({"sub": null}))),
    ] {
        let status = agent.authorize(jwt(token)).await.expect_err(what);
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, told), "{what}");
    }
    for (what, group, attributes) in
        [("policy", "ratings", json!({"team": "details"})), ("group", "details", json!({"team": "ratings"}))]
    {
        let credential = Some(jwt(bed.token_with(&json!({"attributes": attributes}))));
        let status = agent.authorize_for(group, credential).await.expect_err(what);
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "Not authorized by OnboardingPolicy"), "{what}");
    }
    for (group, credential) in [("ratings", None), ("Ratings!", Some(jwt(bed.token("vm")))), ("", Some(jwt(bed.token("vm"))))] {
        assert_eq!(codes(&agent.authorize_for(group, credential).await), Some(Code::InvalidArgument), "{group:?}");
    }
    for (outcome, count) in [("credential", 6), ("policy", 2), ("invalid", 3), ("admitted", 0)] {
        assert_eq!(bed.count(&format!("skiff_plane_authorizations_total{{outcome=\"{outcome}\"}}")), count, "{outcome}");
    }
}

/// Says who has signed, as STS does, whatever it is asked.
async fn sts(task: &str) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let body = json!({"GetCallerIdentityResponse": {
        "GetCallerIdentityResult": {
            "Account": "123456789012",
            "Arn": format!("arn:aws:sts::123456789012:assumed-role/task/{task}"),
            "UserId": format!("AROAEXAMPLE:{task}"),
        },
        "ResponseMetadata": {"RequestId": "a"},
    }})
    .to_string();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.unwrap();
        }
    });
    (address, serving)
}

const TASK: &str = "3a151358f03a4e32bf8cd401c1c74653";

fn proof(bed: &Bed, nonce: &str) -> Credential {
    let credentials = Credentials {
        access_key_id: "ASIAEXAMPLEEXAMPLE12".to_owned(),
        secret_access_key: "secret".to_owned(),
        session_token: Some("token".to_owned()),
        expires: None,
    };
    let binding = Binding::new(&bed.uid, nonce).unwrap();
    let now = SystemTime::now() + Duration::from_secs(bed.ahead.load(Ordering::Relaxed));
    let url = prove(&credentials, &"us-east-1".parse().unwrap(), &binding, now);
    let task_arn = format!("arn:aws:ecs:us-east-1:123456789012:task/bookinfo/{TASK}");
    let task = proto::EcsTask { task_arn, cluster: "bookinfo".to_owned() };
    Credential::Aws(proto::AwsCredential {
        presigned_url: url.expose().to_owned(),
        nonce: nonce.to_owned(),
        workload: Some(proto::aws_credential::Workload::Ecs(task)),
    })
}

async fn nonce(agent: &mut Agent) -> String {
    agent.0.discover(proto::DiscoverRequest::default()).await.unwrap().into_inner().nonce
}

#[tokio::test]
async fn a_proof_of_an_aws_role_counts_once_and_within_a_minute() {
    let (address, _sts) = sts(TASK).await;
    let client = Client::new(TrustedRoots::System);
    let sts = StsVerifier::new(client, Some(address.parse().unwrap()));
    let aws = Some(AwsVerifier::new(sts, None, Clock::system()));
    let bed = Bed::new(Change { aws, ..Change::default() }).await;
    let mut agent = bed.agent().await;
    let first = nonce(&mut agent).await;
    let credential = proof(&bed, &first);
    let Credential::Aws(mut replayed) = credential.clone() else { panic!("not AWS") };
    let session = agent.authorize(credential.clone()).await.unwrap().token;
    let status = agent.authorize(credential).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the nonce was used before"));

    // The URL of one nonce does not hold with another: the plane's own is what STS is told was signed. Here a stand-in takes it,
    // and the plane remembers the signature.
    replayed.nonce = nonce(&mut agent).await;
    let status = agent.authorize(Credential::Aws(replayed)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the credential was used before"));
    assert_eq!(bed.count("skiff_plane_authorizations_total{outcome=\"replay\"}"), 1);
    assert_eq!(bed.count("skiff_plane_authorizations_total{outcome=\"admitted\"}"), 1);

    let late = nonce(&mut agent).await;
    let credential = proof(&bed, &late);
    bed.advance(61);
    let status = agent.authorize(credential).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the nonce has expired"));
    let status = agent.authorize(proof(&bed, "bm9uY2U")).await.unwrap_err();
    assert_eq!(status.message(), "the nonce is not one of this plane's");
    assert_eq!(bed.count("skiff_plane_authorizations_total{outcome=\"nonce\"}"), 3);

    // Of a task that AWS was not asked about, nothing but account and role counts.
    let (_held, boot) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    assert!(boot.name.starts_with("ratings-aws-aws-123456789012-") && boot.name.contains(TASK), "{}", boot.name);
    assert_eq!(boot.locality, "");
}

#[tokio::test]
async fn a_proof_is_good_at_the_replica_that_made_its_nonce_alone() {
    let (address, _sts) = sts(TASK).await;
    let aws = || {
        let sts = StsVerifier::new(Client::new(TrustedRoots::System), Some(address.parse().unwrap()));
        Change { aws: Some(AwsVerifier::new(sts, None, Clock::system())), ..Change::default() }
    };
    let one = Bed::new(aws()).await;
    // Another replica: the same id and keys, a memory of its own.
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("config")).unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    std::fs::write(folder.path().join("config/plane.yaml"), CONFIG).unwrap();
    let secrets = "state/plane.pem";
    std::fs::copy(one.folder.path().join(secrets), folder.path().join(secrets)).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let two = Bed::start(folder, key, Arc::default(), aws()).await;
    assert_eq!(one.uid, two.uid);

    let (mut agent, mut thief) = (one.agent().await, two.agent().await);
    let credential = proof(&one, &nonce(&mut agent).await);
    agent.authorize(credential.clone()).await.unwrap();
    let replayed = thief.authorize(credential.clone()).await.unwrap_err();
    let expected = (Code::FailedPrecondition, "the nonce was issued by another replica");
    assert_eq!((replayed.code(), replayed.message()), expected);
    assert_eq!(two.count("skiff_plane_authorizations_total{outcome=\"admitted\"}"), 0);
    assert_eq!(two.count("skiff_plane_authorizations_total{outcome=\"nonce\"}"), 1);
    // What was used is forgotten with a restart; so is what could be used.
    let again = one.restarted(aws()).await;
    let replayed = again.agent().await.authorize(credential).await.unwrap_err();
    assert_eq!((replayed.code(), replayed.message()), expected);
    assert_eq!(again.count("skiff_plane_authorizations_total{outcome=\"admitted\"}"), 0);
}

#[tokio::test]
async fn an_instance_has_the_address_and_the_place_that_aws_has_signed() {
    let (address, _sts) = sts("i-0123456789abcdef0").await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/aws/instance");
    let certificates = InstanceCertificates::read(&Path::new(folder).join("certificates")).unwrap();
    let sts = StsVerifier::new(Client::new(TrustedRoots::System), Some(address.parse().unwrap()));
    let aws = AwsVerifier::new(sts, None, Clock::system()).with_certificates(Some(certificates));
    let bed = Bed::usual().await;
    rewrite(bed.folder.path(), "ecs: {iamRoleNames: [task]}", "zones: [us-east-1b], ec2: {iamRoleNames: [task]}");
    let bed = bed.restarted(Change { aws: Some(aws), ..Change::default() }).await;
    let mut agent = bed.agent().await;
    let Credential::Aws(mut credential) = proof(&bed, &nonce(&mut agent).await) else { panic!("not AWS") };
    let read = |name: &str| std::fs::read(Path::new(folder).join(name)).unwrap();
    let instance = proto::Ec2Instance { document: read("document"), signature: String::from_utf8(read("rsa2048")).unwrap() };
    credential.workload = Some(proto::aws_credential::Workload::Ec2(instance));
    let session = agent.authorize(Credential::Aws(credential)).await.unwrap().token;
    // Where nobody else's requests would go.
    let status = agent.register(&session, registration("10.0.0.8")).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let (_held, boot) = agent.register(&session, registration("10.0.0.7")).await.unwrap();
    assert_eq!(boot.locality, "us-east-1/us-east-1b");
    assert_eq!(boot.name, "ratings-aws-aws-123456789012-us-east-1b-ec2-i-0123456789abcdef0");
}

#[tokio::test]
async fn a_proof_is_not_believed_where_aws_is_not() {
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let nonce = nonce(&mut agent).await;
    let status = agent.authorize(proof(&bed, &nonce)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_told_to_wait() {
    let settings: fn(&mut OnboardingSettings) = |settings| settings.limits.rate = Rate { per_second: 0.001, burst: 2.0 };
    let bed = Bed::new(Change { settings: Some(settings), ..Change::default() }).await;
    let mut agent = bed.agent().await;
    for _ in 0..2 {
        agent.authorize(jwt(bed.token("vm"))).await.unwrap();
    }
    assert_eq!(codes(&agent.authorize(jwt(bed.token("vm"))).await), Some(Code::ResourceExhausted));
    // What costs nothing is not counted: who is told to wait has not used up anything for its next try.
    agent.0.discover(proto::DiscoverRequest::default()).await.unwrap();
    assert_eq!(bed.count("skiff_plane_authorizations_total{outcome=\"rate\"}"), 1);
}

#[tokio::test]
async fn no_credential_is_ever_logged() {
    let (log, _guard) = crate::plane::tests::Log::capture();
    let bed = Bed::usual().await;
    let mut agent = bed.agent().await;
    let (good, bad) = (bed.token("vm"), bed.token_with(&json!({"aud": "another"})));
    let session = agent.authorize(jwt(good.clone())).await.unwrap().token;
    agent.authorize(jwt(bad.clone())).await.unwrap_err();
    let nonce = nonce(&mut agent).await;
    let Credential::Aws(credential) = proof(&bed, &nonce) else { panic!("not AWS") };
    agent.authorize(Credential::Aws(credential.clone())).await.unwrap_err();
    let (_held, boot) = agent.register(&session, registration("10.0.0.1")).await.unwrap();
    let secrets = [good, bad, session, credential.presigned_url, boot.mesh_token.unwrap().token];
    let text = log.text();
    for secret in &secrets {
        assert!(!text.contains(secret.as_str()) && !text.contains(secret.rsplit('.').next().unwrap()), "a secret was logged");
    }
    let audit = log.audit();
    let lines = |event: &str, decision: &str| {
        let (event, decision) = (format!("event=\"{event}\""), format!("decision=\"{decision}\""));
        audit.iter().filter(|line| line.contains(&event) && line.contains(&decision)).count()
    };
    assert_eq!(
        (lines("authorize", "admitted"), lines("authorize", "denied"), lines("register", "registered")),
        (1, 2, 1),
        "{audit:?}"
    );
    let admitted = audit.iter().find(|line| line.contains("admitted")).unwrap();
    assert!(admitted.contains("holders spec.allow[0]") && admitted.contains("jwt \"vm\""), "{admitted}");
}
