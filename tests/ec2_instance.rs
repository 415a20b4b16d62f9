//! An instance of EC2 joins through a real plane that knows where it is by AWS's signature.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use skiff_tests::aws::Session;
use skiff_tests::ecs::{Bookinfo, Member, RATINGS};
use skiff_tests::skiff::{command, run};

const CERTIFICATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/testdata/aws/instance/certificates");
const INSTANCE: &str = "i-0123456789abcdef0";
/// Of its document.
const ADDRESS: &str = "10.0.0.7";
/// What only a plane admits that has verified the document.
const RULE: &str = "zones: [us-east-1b]\n        ec2: {iamRoleNames: [vm]}";
const GROUP: &str = "{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {name: a, namespace: b}, \
    spec: {template: {serviceAccount: c}}}";

#[tokio::test]
async fn an_instance_joins_where_aws_has_signed_that_it_is() {
    let bookinfo = Bookinfo::with(&[("SKIFF_PLANE_AWS_INSTANCE_CERTS", CERTIFICATES)]).await;
    bookinfo.edit("policies.yaml", "ecs: {}", RULE);
    bookinfo.aws.add_session(Session::of("vm", INSTANCE));
    let member = Member { task: None, ..RATINGS };
    let url = bookinfo.aws.url();
    // No token: what is left is the instance's metadata service.
    let of_instance = [("ONBOARDING_JWT", ""), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*url)];
    // Others cannot be sent to an address that the instance does not have.
    let astray = bookinfo.join(member, &[&of_instance[..], &[("SKIFF_ADVERTISED_ADDRESS", "10.0.0.8")]].concat());
    let line = astray.stderr.line_with("AWS says that the workload has no network interface with it").await;
    assert!(line.contains("code = InvalidArgument"), "{line}");
    astray.kill().await;

    let instance = bookinfo.join(member, &[&of_instance[..], &[("SKIFF_ADVERTISED_ADDRESS", ADDRESS)]].concat());
    instance.ready().await;
    let registrations = bookinfo.war(&[]).await;
    let name = format!("ratings-aws-aws-123456789012-us-east-1b-ec2-{INSTANCE}");
    assert!(registrations.lines().any(|line| line.starts_with(&format!("{name} ")) && line.contains(" True")), "{registrations}");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_told_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut plane = command(&["plane", "--aws-describe-tasks", "off", "--listen", "127.0.0.1:0"]);
    std::fs::write(folder.path().join("group.yaml"), GROUP).unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    plane
        .env("SKIFF_PLANE_STATE", folder.path().join("state"))
        .env("SKIFF_PLANE_CONFIG", folder.path().join("group.yaml"))
        .env("SKIFF_PLANE_AWS_INSTANCE_CERTS", folder.path().join("empty"));
    let said = run(plane).await;
    assert!(
        said.code == 78 && said.stderr.contains("SKIFF_PLANE_AWS_INSTANCE_CERTS: ") && said.stderr.contains("<region>.pem"),
        "{said:?}"
    );
}
