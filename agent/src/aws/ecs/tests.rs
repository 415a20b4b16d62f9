//! What ECS says, read; that every rule is asked for is in tests/aws.rs.

use super::*;

fn caller() -> CallerIdentity {
    CallerIdentity {
        partition: "aws".to_owned(),
        account: "123456789012".to_owned(),
        role: "task-role".to_owned(),
        session: "3a151358f03a4e32bf8cd401c1c74653".to_owned(),
        region: "us-east-1".parse().unwrap(),
    }
}

fn task(json: &str) -> Task {
    serde_json::from_str(json).unwrap()
}

/// As ECS answers, with most of what is not needed left out.
const DESCRIBED: &str = r#"{
  "taskArn": "arn:aws:ecs:us-east-1:123456789012:task/bookinfo/3a151358f03a4e32bf8cd401c1c74653",
  "clusterArn": "arn:aws:ecs:us-east-1:123456789012:cluster/bookinfo", "cpu": "256", "version": 4,
  "attachments": [
    {"id": "1", "type": "ElasticNetworkInterface", "status": "ATTACHED", "details": [
      {"name": "subnetId", "value": "subnet-1"}, {"name": "networkInterfaceId", "value": "eni-1"},
      {"name": "privateDnsName", "value": "ip-10-0-0-1.ec2.internal"}, {"name": "privateIPv4Address", "value": "10.0.0.1"}]},
    {"id": "2", "type": "ElasticNetworkInterface", "status": "DELETED", "details": [{"name": "privateIPv4Address", "value": "10.0.0.2"}]},
    {"id": "3", "type": "Service Connect", "status": "ATTACHED", "details": [{"name": "privateIPv4Address", "value": "10.0.0.3"}]}
  ],
  "containers": [
    {"name": "agent", "networkInterfaces": [{"attachmentId": "1", "privateIpv4Address": "10.0.0.1", "ipv6Address": "2001:db8::1"}]},
    {"name": "ratings", "networkInterfaces": [{"attachmentId": "1", "privateIpv4Address": "10.0.0.1", "ipv6Address": "2001:db8::1"}]}
  ]}"#;

#[test]
fn the_answer_is_about_the_task_that_was_asked_for() {
    assert!(task(DESCRIBED).is(&caller(), "bookinfo"));
    assert!(!task(DESCRIBED).is(&caller(), "other"));
    for (from, to) in [
        ("task/bookinfo/3a15", "task/bookinfo/3a16"),
        ("task/bookinfo/", "task/other/"),
        ("cluster/bookinfo", "cluster/other"),
        ("123456789012:task", "210987654321:task"),
        ("us-east-1:123456789012:task", "us-west-2:123456789012:task"),
        ("\"taskArn\"", "\"x\""),
        ("\"clusterArn\"", "\"x\""),
    ] {
        assert_ne!(DESCRIBED.replace(from, to), DESCRIBED);
        assert!(!task(&DESCRIBED.replace(from, to)).is(&caller(), "bookinfo"), "{to}");
    }
}

#[test]
fn addresses_are_those_of_interfaces_that_are_there() {
    let ours: IpAddr = "10.0.0.1".parse().unwrap();
    assert_eq!(task(DESCRIBED).addresses(), [ours, "2001:db8::1".parse().unwrap()]);
    let verified = VerifiedTask {
        identity: AwsIdentity {
            partition: "aws".to_owned(),
            account: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            zone: "us-east-1a".to_owned(),
            kind: AwsKind::Ecs(EcsIdentity {
                task_id: "3a15".to_owned(),
                cluster: "bookinfo".to_owned(),
                iam_role: IamRole { name: "task-role".to_owned() },
            }),
        },
        launch_type: LaunchType::Fargate,
        addresses: vec![ours],
    };
    let other: IpAddr = "10.0.0.3".parse().unwrap();
    assert_eq!(verified.check_addresses(&[ours]), Ok(()));
    assert_eq!(verified.check_addresses(&[ours, other]), Err(Denied::Address(other)));
    let host = VerifiedTask { launch_type: LaunchType::External, addresses: Vec::new(), ..verified };
    assert_eq!(host.check_addresses(&[other]), Ok(()), "ECS knows no address of a task in host mode");
}
