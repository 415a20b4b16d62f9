use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use super::*;
use crate::fetch::TrustedRoots;
use crate::fetch::fake::{FakeServer, answer};

type Environment<'a> = Vec<(&'a str, String)>;

fn read(environment: &Environment<'_>, name: &str) -> Option<String> {
    environment.iter().find(|(other, _)| *other == name).map(|(_, value)| value.clone())
}

fn container(environment: &Environment<'_>) -> Result<Option<ContainerCredentials>, CredentialError> {
    ContainerCredentials::from_environment(&|name| read(environment, name), &Client::new(TrustedRoots::System))
}

fn role(key: &str, expiration: &str) -> String {
    let body = format!(
        r#"{{"RoleArn":"arn","AccessKeyId":"{key}","SecretAccessKey":"secret","Token":"token","Expiration":"{expiration}"}}"#
    );
    answer(200, &body)
}

/// A clock that the test sets, in seconds since 1970.
fn clock(seconds: &Arc<AtomicU64>) -> Clock {
    let seconds = seconds.clone();
    Clock::new(move || UNIX_EPOCH + Duration::from_secs(seconds.load(Ordering::Relaxed)))
}

#[test]
fn credentials_are_asked_of_this_machine_or_over_https() {
    for (uri, good) in [
        ("http://169.254.170.23/v1/credentials", true),
        ("http://169.254.170.2/v2", true),
        ("http://[fd00:ec2::23]/v1/credentials", true),
        ("http://127.0.0.1:8080/credentials", true),
        ("http://127.9.9.9/credentials?id=1", true),
        ("http://[::1]/", true),
        ("http://localhost:8000/", true),
        ("https://credentials.example/", true),
        ("http://credentials.example/", false),
        ("http://169.254.169.254/", false),
        ("http://10.0.0.1/", false),
        ("http://127.0.0.1.evil.example/", false),
        ("http://localhost.evil.example/", false),
        ("http://localhost@evil.example/", false),
        ("ftp://127.0.0.1/", false),
        ("/v2/credentials", false),
    ] {
        let found = container(&vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.to_owned())]);
        assert_eq!(found.is_ok(), good, "{uri}");
    }
    assert!(container(&vec![]).unwrap().is_none());
    let relative = container(&vec![
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/secret-id".to_owned()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1/".to_owned()),
    ]);
    let shown = format!("{:?}", relative.unwrap().unwrap());
    assert!(shown.contains("http://169.254.170.2") && !shown.contains("secret-id"), "the relative one wins: {shown}");
    assert!(container(&vec![("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "@evil.example/".to_owned())]).is_err());
}

#[tokio::test]
async fn the_token_file_is_read_each_time_and_cannot_add_headers() {
    let server = FakeServer::start(vec![role("first", "2099-01-01T00:00:00Z"), role("second", "2099-01-01T00:00:00Z")]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let container = container(&vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/credentials?id=1", server.url)),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.display().to_string()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "not this one".to_owned()),
    ]);
    let container = container.unwrap().unwrap();
    for token in ["one", "two"] {
        std::fs::write(&file, token).unwrap();
        container.fetch().await.unwrap();
    }
    let heads = server.heads();
    assert!(heads[0].starts_with("GET /credentials?id=1 HTTP/1.1\r\n"), "{}", heads[0]);
    assert!(heads[0].contains("authorization: one\r\n") && heads[1].contains("authorization: two\r\n"), "{heads:?}");
    for token in ["", "three\r\nx-injected: yes", "four\n", "five\r"] {
        std::fs::write(&file, token).unwrap();
        let error = container.fetch().await.unwrap_err();
        assert!(matches!(error, CredentialError::Variable { .. }) && !error.to_string().contains("x-injected"), "{error}");
    }
    assert_eq!(server.heads().len(), 2);
}

#[tokio::test]
async fn credentials_are_renewed_before_they_expire_and_kept_while_they_cannot_be() {
    // Expiring at 1970-01-01T01:00 and T02:00; then a refusal.
    let answers =
        vec![role("first", "1970-01-01T01:00:00Z"), role("second", "1970-01-01T02:00:00Z"), answer(404, ""), answer(404, "")];
    let server = FakeServer::start(answers).await;
    let now = Arc::new(AtomicU64::new(0));
    let environment: Environment<'_> = vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.url.clone())];
    let client = Client::new(TrustedRoots::System);
    let provider = CredentialProvider::from_environment(&|name| read(&environment, name), &client, clock(&now)).unwrap();
    for (seconds, key, asked) in
        [(0, "first", 1), (3_299, "first", 1), (3_301, "second", 2), (6_899, "second", 2), (6_901, "second", 3)]
    {
        now.store(seconds, Ordering::Relaxed);
        let credentials = provider.credentials().await.unwrap();
        assert_eq!((credentials.access_key_id.as_str(), server.heads().len()), (key, asked), "at {seconds}");
    }
    now.store(7_200, Ordering::Relaxed);
    assert!(matches!(provider.credentials().await, Err(CredentialError::Endpoint(_))), "expired credentials are none");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_not_up_yet_is_asked_three_times() {
    let busy = || answer(503, "");
    let server =
        FakeServer::start(vec![busy(), busy(), role("third", "2099-01-01T00:00:00Z"), busy(), busy(), busy(), busy()]).await;
    let container = container(&vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.url.clone())]).unwrap().unwrap();
    assert_eq!(container.fetch().await.unwrap().access_key_id, "third");
    assert!(matches!(container.fetch().await, Err(CredentialError::Endpoint(AskError::Status(_, status))) if status == 503));
    assert_eq!(server.heads().len(), 6);
}

#[tokio::test]
async fn what_are_no_credentials_is_refused_without_being_shown() {
    let bad = [
        r#"{"AccessKeyId":"secret-1","SecretAccessKey":"","Token":"t","Expiration":"2099-01-01T00:00:00Z"}"#,
        r#"{"AccessKeyId":"a","SecretAccessKey":"secret-1\n","Token":"t","Expiration":"2099-01-01T00:00:00Z"}"#,
        r#"{"AccessKeyId":"a","SecretAccessKey":"secret-1","Token":"t","Expiration":"soon"}"#,
        r#"{"AccessKeyId":"a","SecretAccessKey":"secret-1","Token":7,"Expiration":"2099-01-01T00:00:00Z"}"#,
        r#"{"SecretAccessKey":"secret-1"#,
        "",
    ];
    for body in bad {
        let server = FakeServer::start(vec![answer(200, body)]).await;
        let container = container(&vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.url.clone())]).unwrap().unwrap();
        let error = container.fetch().await.unwrap_err();
        assert!(
            matches!(error, CredentialError::Answer { .. }) && !format!("{error} {error:?}").contains("secret-1"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn the_environment_names_the_source() {
    let client = Client::new(TrustedRoots::System);
    let source = |environment: Environment<'_>| {
        CredentialProvider::from_environment(&|name| read(&environment, name), &client, Clock::system())
            .map(|provider| provider.source)
    };
    let set = |name, value: &str| (name, value.to_owned());
    let container = set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x");
    let web = vec![set("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"), set("AWS_ROLE_ARN", "arn"), set("AWS_REGION", "us-east-1")];
    assert!(matches!(source(vec![]), Ok(CredentialSource::Instance(_))));
    assert!(matches!(source(vec![container.clone()]), Ok(CredentialSource::Container(_))));
    assert!(matches!(source([web.clone(), vec![container.clone()]].concat()), Ok(CredentialSource::WebIdentity(_))));
    let keys = vec![set("AWS_ACCESS_KEY_ID", "key"), set("AWS_SECRET_ACCESS_KEY", "secret")];
    assert!(matches!(source([keys.clone(), web.clone(), vec![container]].concat()), Ok(CredentialSource::Static(_))));
    for missing in 1..3 {
        let mut fewer = web.clone();
        fewer.remove(missing);
        assert!(matches!(source(fewer), Err(CredentialError::Variable { .. })));
    }
    assert!(matches!(source(keys[..1].to_vec()), Err(CredentialError::Variable { variable: "AWS_SECRET_ACCESS_KEY", .. })));
}
