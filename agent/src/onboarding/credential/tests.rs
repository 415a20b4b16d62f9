use super::*;
use crate::fetch::TrustedRoots;

async fn auto(environment: &[(&str, &str)]) -> Result<CredentialOrigin, ObtainError> {
    let read = |name: &str| environment.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    CredentialOrigin::auto(&read, &Client::new(TrustedRoots::System), Clock::system()).await
}

#[tokio::test]
async fn the_platform_is_found_out() {
    let no_instance = ("AWS_EC2_METADATA_DISABLED", "true");
    let task = ("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/x");
    let role = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/x");
    assert_eq!(auto(&[task, role]).await.unwrap().name(), "aws-ecs");
    assert!(matches!(auto(&[task]).await, Err(ObtainError::NoTaskRole)));
    // Who names a token wants it to be used, on ECS as well.
    assert_eq!(auto(&[task, role, (JWT_FILE_VARIABLE, "/token")]).await.unwrap().name(), "jwt");
    let (asked, region) = ((AWS_TOKEN_VARIABLE, "true"), ("AWS_REGION", "us-east-1"));
    assert_eq!(auto(&[task, role, region, asked]).await.unwrap().name(), "aws-web-identity");
    assert_eq!(auto(&[task, role, (AWS_TOKEN_VARIABLE, "false")]).await.unwrap().name(), "aws-ecs");
    let error = auto(&[task, role, asked]).await.unwrap_err().to_string();
    assert_eq!(error, "AWS_REGION: not set to a known region");
    let error = auto(&[task, role, region, (AWS_TOKEN_VARIABLE, "yes")]).await.unwrap_err().to_string();
    assert_eq!(error, "ONBOARDING_AWS_WEB_IDENTITY: \"yes\": expected true or false");
    let origin = auto(&[no_instance, (JWT_VARIABLE, "a.b.c")]).await.unwrap();
    assert!(!format!("{origin:?}").contains("a.b.c"));
    assert_eq!(origin.obtain("uid", "nonce").await.unwrap(), Credential::Jwt(Token::new("a.b.c")));
    let error = auto(&[no_instance]).await.unwrap_err().to_string();
    assert!(error.contains("ECS_CONTAINER_METADATA_URI_V4") && error.contains(JWT_FILE_VARIABLE), "{error}");
}
