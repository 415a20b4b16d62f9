use std::os::unix::fs::PermissionsExt;

use super::*;

/// A plugin that is a shell script.
fn script(text: &str) -> (tempfile::TempDir, Plugin) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let env = vec![("MORE".to_owned(), "of this".to_owned())];
    let args = vec!["first".to_owned()];
    (folder, Plugin { name: "test".to_owned(), path: Some(path), env, args, timeout: TIMEOUT })
}

#[tokio::test]
async fn it_is_asked_as_tetrate_asks() {
    let (folder, plugin) = script(
        r#"cd "$(dirname "$0")"; cat > question
echo "$1 $MORE $PLUGIN_NAME $RPC_SERVICE_NAME $RPC_METHOD_NAME" > environment
echo '{"credential":{"@type":"type.googleapis.com/some.package.JwtCredential","token":"a.b.c"},"expiresAt":"2099-01-01T00:00:00Z"}'"#,
    );
    let credential = plugin.get_credential("uid").await.unwrap();
    assert_eq!(credential.token.expose(), "a.b.c");
    assert!(credential.expires.is_some());
    assert!(!format!("{credential:?}").contains("a.b.c"));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("question"), r#"{"audience":"uid"}"#);
    let service = "tetrateio.api.onboarding.private.component.agent.plugin.credential.v1alpha1.CredentialPlugin";
    assert_eq!(read("environment"), format!("first of this test {service} GetCredential\n"));

    let (_folder, plugin) = script(
        r#"cat > /dev/null; echo '{"host":{"addresses":[{"ip":"10.0.0.1","type":"VPC"},{"ip":"2001:db8::1","type":"INTERNET"}]}}'"#,
    );
    let addresses = plugin.get_host_info().await.unwrap();
    assert_eq!(addresses.iter().map(|address| address.kind).collect::<Vec<_>>(), [AddressKind::Vpc, AddressKind::Internet]);
}

#[tokio::test]
async fn a_failure_is_a_status() {
    let (_folder, plugin) = script(r#"echo '{"code":12,"message":"what?","details":[]}'; exit 1"#);
    let error = plugin.get_credential("uid").await.unwrap_err();
    assert!(error.is_unimplemented() && !error.is_retryable(), "{error}");
    let (_folder, plugin) = script(r#"echo '{"code":14,"message":"later"}'; exit 7"#);
    let error = plugin.get_host_info().await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("later"), "{error}");
    let (_folder, plugin) = script("echo nonsense; echo diagnostics >&2; exit 3");
    assert!(matches!(plugin.get_credential("uid").await, Err(PluginError::Status { code: 2, .. })));
}

#[tokio::test]
async fn an_answer_that_is_none_is_refused() {
    for text in [
        "",
        "echo '{}'",
        r#"echo '{"credential":{"@type":"x.Other","token":"secret"}}'"#,
        r#"echo '{"credential":{"@type":"x.JwtCredential","token":" "}}'"#,
        r#"echo '{"credential":{"@type":"x.JwtCredential","token":"secret"},"expiresAt":"soon"}'"#,
        "head -c 2000000 /dev/zero",
        r#"echo '{"credential":"secret"'"#,
    ] {
        let (_folder, plugin) = script(text);
        let error = plugin.get_credential("uid").await.unwrap_err();
        assert!(matches!(error, PluginError::Answer { .. }) && !error.to_string().contains("secret"), "{text}: {error}");
    }
    let (_folder, plugin) = script(r#"echo '{"host":{"addresses":[]}}'"#);
    assert!(matches!(plugin.get_host_info().await, Err(PluginError::Answer { .. })));
    let missing = Plugin { path: None, name: "no-such".to_owned(), ..plugin };
    let error = missing.get_credential("uid").await.unwrap_err().to_string();
    assert!(error.contains("onboarding-agent-no-such-plugin"), "{error}");
}

#[tokio::test]
async fn it_has_its_time() {
    let (_folder, mut plugin) = script("exec sleep 600");
    plugin.timeout = Duration::from_millis(50);
    let error = plugin.get_credential("uid").await.unwrap_err();
    assert!(matches!(error, PluginError::TimedOut(..)) && error.is_retryable(), "{error}");
}
