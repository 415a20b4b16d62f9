//! A task of ECS proves who it is: credential, STS and ECS together, against an AWS that really verifies signatures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skiff_agent::aws::caller_identity::{Binding, prove};
use skiff_agent::aws::credentials::{CredentialProvider, Credentials};
use skiff_agent::aws::ecs::{Denied, EcsOptions, EcsVerifier, TaskError};
use skiff_agent::aws::instance::InstanceCertificates;
use skiff_agent::aws::metadata::LaunchType;
use skiff_agent::aws::verifier::{CallerIdentity, StsVerifier, VerifyError};
use skiff_agent::fetch::{Client, TrustedRoots};
use skiff_agent::identity::Clock;
use skiff_agent::onboarding::aws::{AwsError, AwsVerifier, Claim, UNVERIFIED, VerifiedAws};
use skiff_agent::onboarding::credential::{AwsWorkload, Credential, CredentialOrigin};
use skiff_agent::onboarding::identity::{AwsKind, EXTERNAL_ZONE};
use skiff_tests::aws::{ACCOUNT, FakeAws, FakeTask, Session};

const PLANE: &str = "3b241101-e2bb-4255-8caf-4136c566a962";
const TASK: &str = "3a151358f03a4e32bf8cd401c1c74653";
const OTHER_TASK: &str = "00000000f03a4e32bf8cd401c1c74653";

fn client() -> Client {
    Client::new(TrustedRoots::System)
}

fn read(environment: Vec<(String, String)>) -> impl Fn(&str) -> Option<String> {
    move |name| environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
}

async fn start() -> FakeAws {
    let aws = FakeAws::start(SocketAddr::from(([127, 0, 0, 1], 0))).await;
    aws.add_task(FakeTask::new(TASK));
    aws
}

/// What a task with this id shows for this nonce.
async fn credential(aws: &FakeAws, task: &str, nonce: &str) -> (String, Claim) {
    let origin = CredentialOrigin::auto(&read(aws.task_environment(task)), &client(), Clock::system()).await.unwrap();
    match origin.obtain(PLANE, nonce).await.unwrap() {
        Credential::Aws { presigned_url, nonce: signed, workload: AwsWorkload::Ecs { task_arn, cluster } } => {
            assert_eq!(signed, nonce);
            (presigned_url.expose().to_owned(), Claim::Ecs { task_arn, cluster })
        }
        other => panic!("{other:?}"),
    }
}

fn verifier_with(aws: &FakeAws, role_arn: Option<&str>) -> AwsVerifier {
    let environment = read(aws.plane_environment());
    let endpoint = || Some(aws.url().parse().unwrap());
    let credentials = CredentialProvider::from_environment(&environment, &client(), Clock::system()).unwrap();
    let options = EcsOptions { ecs_endpoint: endpoint(), sts_endpoint: endpoint(), role_arn: role_arn.map(str::to_owned) };
    let ecs = EcsVerifier::new(client(), Arc::new(credentials), options, Clock::system());
    AwsVerifier::new(StsVerifier::new(client(), endpoint()), Some(ecs), Clock::system())
}

fn verifier(aws: &FakeAws) -> AwsVerifier {
    verifier_with(aws, None)
}

fn binding(nonce: &str) -> Binding {
    Binding::new(PLANE, nonce).unwrap()
}

/// The task as it is now.
async fn verify(aws: &FakeAws) -> Result<VerifiedAws, AwsError> {
    let (url, claim) = credential(aws, TASK, "nonce").await;
    verifier(aws).verify(&url, &binding("nonce"), &claim).await
}

async fn denied(aws: &FakeAws) -> Denied {
    match verify(aws).await {
        Err(AwsError::Task(TaskError::Denied(denied))) => denied,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_task_is_who_it_says_it_is() {
    let aws = start().await;
    let verified = verify(&aws).await.unwrap();
    assert!(verified.located);
    let identity = serde_json::to_value(&verified.identity).unwrap();
    let expected = serde_json::json!({
        "partition": "aws", "account": ACCOUNT, "region": "us-east-1", "zone": "us-east-1a",
        "ecs": { "taskId": TASK, "cluster": "bookinfo", "iamRole": { "name": "bookinfoECSTaskRole" } },
    });
    assert_eq!(identity, expected);
    let task = verified.task.unwrap();
    assert_eq!(task.launch_type, LaunchType::Fargate);
    assert_eq!(task.check_addresses(&["127.0.0.1".parse().unwrap()]), Ok(()));
    let elsewhere: IpAddr = "10.9.9.9".parse().unwrap();
    assert_eq!(task.check_addresses(&[elsewhere]), Err(Denied::Address(elsewhere)));
    let addresses = CredentialOrigin::auto(&read(aws.task_environment(TASK)), &client(), Clock::system()).await.unwrap();
    assert_eq!(addresses.addresses().await.unwrap()[0].ip, "127.0.0.1".parse::<IpAddr>().unwrap());
}

#[tokio::test]
async fn a_proof_is_good_for_one_plane_and_one_nonce() {
    let aws = start().await;
    let (url, claim) = credential(&aws, TASK, "nonce").await;
    let verifier = verifier(&aws);
    let signature = verifier.verify(&url, &binding("nonce"), &claim).await.unwrap().signature;
    // The same proof again is for who gave out the nonce to notice; it can.
    assert_eq!(verifier.verify(&url, &binding("nonce"), &claim).await.unwrap().signature, signature);
    let elsewhere = Binding::new("another-plane", "nonce").unwrap();
    for other in [binding("another nonce".replace(' ', "-").as_str()), elsewhere] {
        let refused = verifier.verify(&url, &other, &claim).await.unwrap_err();
        assert!(!refused.is_retryable(), "{refused}");
        assert!(
            matches!(&refused, AwsError::Proof(VerifyError::Denied { status: 403, code }) if code == "SignatureDoesNotMatch"),
            "{refused:?}"
        );
        assert!(!format!("{refused:?} {refused}").contains("secret"), "AWS's message repeats what was signed");
    }
}

#[tokio::test]
async fn nobody_is_asked_about_a_proof_that_breaks_a_rule() {
    let aws = start().await;
    let (url, claim) = credential(&aws, TASK, "nonce").await;
    for bad in [
        url.replace("sts.us-east-1.amazonaws.com", "sts.x.s3.amazonaws.com"),
        url.replace("https://", "http://"),
        url.replace("GetCallerIdentity", "AssumeRole"),
        format!("{url}&Action=AssumeRole"),
        url.replace("host%3Bx-onboarding-nonce%3B", "host%3B"),
    ] {
        let error = verifier(&aws).verify(&bad, &binding("nonce"), &claim).await.unwrap_err();
        assert!(matches!(error, AwsError::Proof(VerifyError::Proof(_))), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("IQoJb3"), "{error:?}");
    }
    assert_eq!(aws.calls("GetCallerIdentity") + aws.calls("AssumeRole"), 0);
    // Changed where only STS can see it.
    let forged = url.replace("X-Amz-Signature=", "X-Amz-Signature=0");
    let forged = &forged[..forged.len() - 1];
    let error = verifier(&aws).verify(forged, &binding("nonce"), &claim).await.unwrap_err();
    assert!(matches!(error, AwsError::Proof(VerifyError::Denied { .. })), "{error:?}");
    assert_eq!(aws.calls("GetCallerIdentity"), 1);
}

#[tokio::test]
async fn what_sts_answers_is_not_believed_blindly() {
    let aws = start().await;
    let (url, claim) = credential(&aws, TASK, "nonce").await;
    let identity = |arn: &str| {
        let result = serde_json::json!({ "Account": ACCOUNT, "Arn": arn, "UserId": format!("AROA:{TASK}") });
        serde_json::json!({ "GetCallerIdentityResponse": { "GetCallerIdentityResult": result } }).to_string()
    };
    let role = identity(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/bookinfoECSTaskRole/{TASK}"));
    let elsewhere = vec![("location".to_owned(), format!("{}/elsewhere", aws.url()))];
    let throttled = r#"{"Error":{"Code":"Throttling","Message":"Rate exceeded"}}"#.to_owned();
    for (what, status, headers, body, retryable) in [
        ("a redirect", 302, elsewhere, role.clone(), true),
        ("throttling", 400, vec![], throttled, true),
        ("a fault", 500, vec![], role.clone(), true),
        ("too much", 200, vec![], format!("{}{role}", " ".repeat(100_000)), true),
        ("no JSON", 200, vec![], "<GetCallerIdentityResponse/>".to_owned(), true),
        ("a user", 200, vec![], identity(&format!("arn:aws:iam::{ACCOUNT}:user/{TASK}")), false),
        ("no permission", 403, vec![], r#"{"Error":{"Code":"ExpiredToken"}}"#.to_owned(), false),
    ] {
        aws.update(|state| state.instead.insert("GetCallerIdentity".to_owned(), (status, headers, body)));
        let error = verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap_err();
        assert_eq!(error.is_retryable(), retryable, "{what}: {error}");
    }
    assert_eq!(aws.calls(""), 0, "nobody has followed the redirect");
}

#[tokio::test]
async fn a_session_that_somebody_else_has_named_after_a_task_is_no_task() {
    let aws = start().await;
    let now = SystemTime::now();
    let sign = |session: &Session| {
        let credentials = Credentials {
            access_key_id: session.access_key_id.clone(),
            secret_access_key: session.secret.clone(),
            session_token: session.token.clone(),
            expires: None,
        };
        prove(&credentials, &"us-east-1".parse().unwrap(), &binding("nonce"), now).expose().to_owned()
    };
    let (_, claim) = credential(&aws, TASK, "nonce").await;
    // A role of the same account that anybody may assume, in a session called like the task.
    let somebody = Session::of("deploy", TASK);
    aws.add_session(somebody.clone());
    let error = verifier(&aws).verify(&sign(&somebody), &binding("nonce"), &claim).await.unwrap_err();
    let expected = matches!(&error, AwsError::Task(TaskError::Denied(Denied::OtherRole { task, .. })) if task.ends_with("/bookinfoECSTaskRole"));
    assert!(expected, "{error:?}");
    // The right role in a session that is no task, or none that runs.
    let (none, other) = (Session::of("bookinfoECSTaskRole", "admin"), Session::of("bookinfoECSTaskRole", OTHER_TASK));
    aws.add_session(none.clone());
    aws.add_session(other.clone());
    let error = verifier(&aws).verify(&sign(&none), &binding("nonce"), &claim).await.unwrap_err();
    assert!(matches!(error, AwsError::OtherTask { .. }), "{error:?}");
    let claim = Claim::Ecs {
        task_arn: format!("arn:aws:ecs:us-east-1:{ACCOUNT}:task/bookinfo/{OTHER_TASK}"),
        cluster: "bookinfo".to_owned(),
    };
    let error = verifier(&aws).verify(&sign(&other), &binding("nonce"), &claim).await.unwrap_err();
    assert!(matches!(error, AwsError::Task(TaskError::Denied(Denied::NoTask(_)))), "{error:?}");
}

#[tokio::test]
async fn a_claim_is_about_the_task_of_the_proof() {
    let aws = start().await;
    aws.add_task(FakeTask { cluster: "other".to_owned(), ..FakeTask::new(OTHER_TASK) });
    let (url, _) = credential(&aws, TASK, "nonce").await;
    let arn =
        |region: &str, account: &str, cluster: &str, id: &str| format!("arn:aws:ecs:{region}:{account}:task/{cluster}/{id}");
    for (task_arn, cluster) in [
        (arn("us-east-1", ACCOUNT, "other", OTHER_TASK), "other"),
        (arn("us-west-2", ACCOUNT, "bookinfo", TASK), "bookinfo"),
        (arn("us-east-1", "210987654321", "bookinfo", TASK), "bookinfo"),
        (arn("us-east-1", ACCOUNT, "bookinfo", TASK), "other"),
        ("arn".to_owned(), "bookinfo"),
    ] {
        let claim = Claim::Ecs { task_arn: task_arn.clone(), cluster: cluster.to_owned() };
        let error = verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap_err();
        assert!(matches!(error, AwsError::OtherTask { .. }), "{task_arn} {cluster}: {error:?}");
    }
    // In another cluster than it says, so that ECS does not find it there.
    let claim = Claim::Ecs { task_arn: arn("us-east-1", ACCOUNT, "other", TASK), cluster: "other".to_owned() };
    let error = verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap_err();
    assert!(matches!(error, AwsError::Task(TaskError::Denied(Denied::NoTask(_)))), "{error:?}");
    // Not even with a cluster's name that would be another request.
    let claim = Claim::Ecs { task_arn: arn("us-east-1", ACCOUNT, "bookinfo", TASK), cluster: "book\"info".to_owned() };
    verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap_err();
}

#[tokio::test]
async fn ecs_says_whether_a_task_lives() {
    let aws = start().await;
    // PENDING: while containers that depend on a healthy sidecar wait for it.
    for status in ["PENDING", "ACTIVATING", "RUNNING"] {
        aws.update_task(TASK, |task| task.last_status = status.to_owned());
        verify(&aws).await.unwrap();
    }
    for status in ["PROVISIONING", "DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED", ""] {
        aws.update_task(TASK, |task| task.last_status = status.to_owned());
        assert!(matches!(denied(&aws).await, Denied::Status { .. }), "{status}");
    }
    aws.update_task(TASK, |task| {
        task.last_status = "RUNNING".to_owned();
        task.desired_status = "STOPPED".to_owned();
    });
    assert!(matches!(denied(&aws).await, Denied::Status { .. }));
}

#[tokio::test]
async fn ecs_says_role_zone_and_launch_type() {
    let aws = start().await;
    let mut task = FakeTask::new(OTHER_TASK);
    task.overridden_role_arn = Some(format!("arn:aws:iam::{ACCOUNT}:role/overridden"));
    aws.add_task(task);
    let (url, claim) = credential(&aws, OTHER_TASK, "nonce").await;
    let verified = verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap();
    assert!(matches!(&verified.identity.kind, AwsKind::Ecs(ecs) if ecs.iam_role.name == "overridden"));

    aws.update_task(TASK, |task| (task.launch_type, task.zone) = ("EXTERNAL".to_owned(), None));
    assert_eq!(verify(&aws).await.unwrap().identity.zone, EXTERNAL_ZONE);
    aws.update_task(TASK, |task| task.launch_type = "FARGATE".to_owned());
    assert_eq!(denied(&aws).await, Denied::NoZone);
    aws.update_task(TASK, |task| (task.launch_type, task.zone) = ("MOON".to_owned(), Some("us-east-1a".to_owned())));
    assert_eq!(denied(&aws).await, Denied::LaunchType("MOON".to_owned()));
    let (url, claim) = credential(&aws, TASK, "nonce").await;
    // A role of the same name in another account.
    aws.update_task(TASK, |task| {
        task.launch_type = "FARGATE".to_owned();
        task.role_arn = Some("arn:aws:iam::210987654321:role/bookinfoECSTaskRole".to_owned());
    });
    let error = verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap_err();
    assert!(matches!(error, AwsError::Task(TaskError::Denied(Denied::OtherRole { .. }))), "{error:?}");
    aws.update_task(TASK, |task| task.role_arn = None);
    let error = verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap_err();
    assert!(matches!(error, AwsError::Task(TaskError::Denied(Denied::NoRole))), "{error:?}");
}

#[tokio::test]
async fn ecs_is_asked_about_tasks_alone_and_answers_for_the_one() {
    let aws = start().await;
    let identity = verify(&aws).await.unwrap().identity;
    let verifier = verifier(&aws);
    let ecs = verifier.ecs().unwrap();
    let caller = |session: &str| CallerIdentity {
        partition: "aws".to_owned(),
        account: ACCOUNT.to_owned(),
        role: "bookinfoECSTaskRole".to_owned(),
        session: session.to_owned(),
        region: "us-east-1".parse().unwrap(),
    };
    let before = aws.calls("DescribeTasks");
    for session in ["admin", "", "3a151358f03a4e32bf8cd401c1c7465*"] {
        let error = ecs.verify(&caller(session), "bookinfo").await.unwrap_err();
        assert!(matches!(error, TaskError::Denied(Denied::Session)), "{session:?}: {error:?}");
    }
    let mut elsewhere = identity.clone();
    let AwsKind::Ecs(task) = &mut elsewhere.kind else { panic!("a task") };
    task.cluster = "book\"info".to_owned();
    assert!(matches!(ecs.is_gone(&elsewhere).await, Err(TaskError::Denied(Denied::Cluster(_)))));
    assert_eq!(aws.calls("DescribeTasks"), before);
    // An answer about another task, which has the same role.
    let other = serde_json::json!({ "tasks": [{
        "taskArn": format!("arn:aws:ecs:us-east-1:{ACCOUNT}:task/bookinfo/{OTHER_TASK}"),
        "clusterArn": format!("arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/bookinfo"),
        "lastStatus": "RUNNING", "desiredStatus": "RUNNING", "launchType": "FARGATE", "availabilityZone": "us-east-1c",
        "overrides": { "taskRoleArn": format!("arn:aws:iam::{ACCOUNT}:role/bookinfoECSTaskRole") },
    }] });
    aws.update(|state| state.instead.insert("DescribeTasks".to_owned(), (200, Vec::new(), other.to_string())));
    let error = ecs.verify(&caller(TASK), "bookinfo").await.unwrap_err();
    assert!(matches!(error, TaskError::Denied(Denied::OtherTask)), "{error:?}");
    ecs.verify(&caller(OTHER_TASK), "bookinfo").await.unwrap();
}

#[tokio::test]
async fn ecs_is_asked_in_our_name_and_says_when_it_cannot_be() {
    let aws = start().await;
    let (url, claim) = credential(&aws, TASK, "nonce").await;
    let assumed = verifier_with(&aws, Some("arn:{partition}:iam::{account}:role/onboarding"));
    for _ in 0..2 {
        assumed.verify(&url, &binding("nonce"), &claim).await.unwrap();
    }
    assert_eq!((aws.calls("AssumeRole"), aws.calls("DescribeTasks"), aws.calls("DescribeTaskDefinition")), (1, 2, 1));
    for (status, code, retryable) in
        [(400, "ThrottlingException", true), (400, "AccessDeniedException", false), (503, "ServiceUnavailable", true)]
    {
        let body = format!(r#"{{"__type":"{code}","message":"no"}}"#);
        aws.update(|state| state.instead.insert("DescribeTasks".to_owned(), (status, Vec::new(), body)));
        let error = assumed.verify(&url, &binding("nonce"), &claim).await.unwrap_err();
        assert!(matches!(error, AwsError::Task(TaskError::Ecs(_))), "{error:?}");
        assert_eq!(error.is_retryable(), retryable, "{error}");
    }
}

#[tokio::test]
async fn a_task_that_has_ended_is_gone() {
    let aws = start().await;
    let identity = verify(&aws).await.unwrap().identity;
    let verifier = verifier(&aws);
    let ecs = verifier.ecs().unwrap();
    assert!(!ecs.is_gone(&identity).await.unwrap());
    aws.update_task(TASK, |task| task.last_status = "STOPPED".to_owned());
    assert!(ecs.is_gone(&identity).await.unwrap());
    aws.update(|state| state.tasks.clear());
    assert!(ecs.is_gone(&identity).await.unwrap(), "ECS forgets tasks an hour after they have stopped");
    aws.update(|state| state.instead.insert("DescribeTasks".to_owned(), (500, Vec::new(), String::new())));
    assert!(ecs.is_gone(&identity).await.is_err(), "not known is not gone");
}

#[tokio::test]
async fn without_ecs_nothing_is_said_about_where_a_task_is() {
    let aws = start().await;
    let (url, claim) = credential(&aws, TASK, "nonce").await;
    let endpoint = Some(aws.url().parse().unwrap());
    let verifier = AwsVerifier::new(StsVerifier::new(client(), endpoint), None, Clock::system());
    let verified = verifier.verify(&url, &binding("nonce"), &claim).await.unwrap();
    assert!(!verified.located);
    assert_eq!((verified.identity.zone.as_str(), verified.task), (UNVERIFIED, None));
    assert_eq!(aws.calls("DescribeTasks"), 0);
}

const INSTANCE: &str = "i-0123456789abcdef0";

/// What the instance shows for the nonce `nonce`.
async fn instance_credential(aws: &FakeAws) -> (String, Claim) {
    aws.add_session(Session::of("vm", INSTANCE));
    let environment = read(vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), aws.url())]);
    let origin = CredentialOrigin::auto(&environment, &client(), Clock::system()).await.unwrap();
    assert_eq!(origin.addresses().await.unwrap()[0].ip, "10.0.0.7".parse::<IpAddr>().unwrap());
    match origin.obtain(PLANE, "nonce").await.unwrap() {
        Credential::Aws { presigned_url, workload: AwsWorkload::Ec2 { document, signature }, .. } => {
            (presigned_url.expose().to_owned(), Claim::Ec2 { document, signature })
        }
        other => panic!("{other:?}"),
    }
}

fn verifier_of_instances(aws: &FakeAws) -> AwsVerifier {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/testdata/aws/instance/certificates");
    verifier(aws).with_certificates(Some(InstanceCertificates::read(folder.as_ref()).unwrap()))
}

#[tokio::test]
async fn an_instance_is_who_it_says_it_is_and_where_aws_has_signed_that_it_is() {
    let aws = start().await;
    let (url, claim) = instance_credential(&aws).await;
    let verified = verifier(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap();
    assert!(!verified.located && verified.identity.zone == UNVERIFIED, "nobody has said where it is");
    assert!(matches!(&verified.identity.kind, AwsKind::Ec2(ec2) if ec2.instance_id == INSTANCE && ec2.iam_role.name == "vm"));
    let located = verifier_of_instances(&aws).verify(&url, &binding("nonce"), &claim).await.unwrap();
    assert!(located.located);
    assert_eq!((located.identity.region.as_str(), located.identity.zone.as_str()), ("us-east-1", "us-east-1b"));
    assert_eq!(located.instance.unwrap().private_ip, "10.0.0.7".parse::<IpAddr>().unwrap());
    // Without a document it is where it may be; with one that is not AWS's it is nobody.
    let Claim::Ec2 { document, signature } = claim else { panic!("an instance") };
    let without = Claim::Ec2 { document: Vec::new(), signature: String::new() };
    assert!(!verifier_of_instances(&aws).verify(&url, &binding("nonce"), &without).await.unwrap().located);
    let elsewhere = String::from_utf8(document).unwrap().replace("us-east-1b", "us-east-1a").into_bytes();
    let forged = Claim::Ec2 { document: elsewhere, signature };
    let error = verifier_of_instances(&aws).verify(&url, &binding("nonce"), &forged).await.unwrap_err();
    assert!(matches!(error, AwsError::Document(_)) && !error.is_retryable(), "{error:?}");
    // A task is no instance.
    let (url, _) = credential(&aws, TASK, "nonce").await;
    let error = verifier(&aws).verify(&url, &binding("nonce"), &without).await.unwrap_err();
    assert!(matches!(error, AwsError::Instance), "{error:?}");
}

#[tokio::test]
async fn the_identity_document_of_another_instance_is_of_no_use() {
    let aws = start().await;
    let (_, stolen) = instance_credential(&aws).await;
    let prove_as = |session: &Session, region: &str| {
        let credentials = Credentials {
            access_key_id: session.access_key_id.clone(),
            secret_access_key: session.secret.clone(),
            session_token: session.token.clone(),
            expires: None,
        };
        prove(&credentials, &region.parse().unwrap(), &binding("nonce"), SystemTime::now()).expose().to_owned()
    };
    let thief = Session::of("vm", "thief");
    // Another instance; the same in another account; a proof of another region's STS than that of the document.
    let of = |account: &str, session: &str| {
        let arn = format!("arn:aws:sts::{account}:assumed-role/vm/{session}");
        let result = serde_json::json!({ "Account": account, "Arn": arn, "UserId": format!("AROA:{session}") });
        serde_json::json!({ "GetCallerIdentityResponse": { "GetCallerIdentityResult": result } }).to_string()
    };
    for (region, answer) in [
        ("us-east-1", of(ACCOUNT, "i-00000000000000bad")),
        ("us-east-1", of("210987654321", INSTANCE)),
        ("us-west-2", of(ACCOUNT, INSTANCE)),
    ] {
        aws.update(|state| state.instead.insert("GetCallerIdentity".to_owned(), (200, Vec::new(), answer)));
        let error = verifier_of_instances(&aws).verify(&prove_as(&thief, region), &binding("nonce"), &stolen).await.unwrap_err();
        assert!(matches!(error, AwsError::OtherInstance { .. }), "{region}: {error:?}");
    }
}

#[tokio::test]
async fn an_old_proof_is_not_asked_about() {
    let aws = start().await;
    let session = Session::of("bookinfoECSTaskRole", TASK);
    let credentials = Credentials {
        access_key_id: session.access_key_id,
        secret_access_key: session.secret,
        session_token: session.token,
        expires: None,
    };
    let (_, claim) = credential(&aws, TASK, "nonce").await;
    let at = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    // STS would take it: it looks at the first quarter of an hour alone.
    let url = prove(&credentials, &"us-east-1".parse().unwrap(), &binding("nonce"), at(14 * 60));
    let error = verifier(&aws).verify(url.expose(), &binding("nonce"), &claim).await.unwrap_err();
    assert!(matches!(error, AwsError::Proof(VerifyError::Proof(_))), "{error:?}");
    let url = prove(&credentials, &"us-east-1".parse().unwrap(), &binding("nonce"), at(30));
    verifier(&aws).verify(url.expose(), &binding("nonce"), &claim).await.unwrap();
}

#[tokio::test]
async fn aws_makes_a_token_about_a_role_for_one_plane() {
    let aws = start().await;
    let mut environment = aws.task_environment(TASK);
    environment
        .extend([("ONBOARDING_AWS_WEB_IDENTITY".to_owned(), "true".to_owned()), ("AWS_ENDPOINT_URL_STS".to_owned(), aws.url())]);
    let origin = CredentialOrigin::auto(&read(environment), &client(), Clock::system()).await.unwrap();
    let Credential::Jwt(token) = origin.obtain(PLANE, "nonce").await.unwrap() else { panic!("a token") };
    let expected = format!("arn:aws:sts::{ACCOUNT}:assumed-role/bookinfoECSTaskRole/{TASK}-for-{PLANE}");
    assert_eq!(token.expose(), expected);
    assert!(!format!("{origin:?}").contains("secret"), "{origin:?}");
    let disabled = r#"{"Error":{"Code":"OutboundWebIdentityFederationDisabled","Message":"secret"}}"#.to_owned();
    aws.update(|state| state.instead.insert("GetWebIdentityToken".to_owned(), (403, Vec::new(), disabled)));
    let error = origin.obtain(PLANE, "nonce").await.unwrap_err().to_string();
    assert!(error.starts_with("STS answered 403 OutboundWebIdentityFederationDisabled") && !error.contains("secret"), "{error}");
    aws.update(|state| state.instead.insert("GetWebIdentityToken".to_owned(), (200, Vec::new(), "{}".to_owned())));
    origin.obtain(PLANE, "nonce").await.unwrap_err();
}
