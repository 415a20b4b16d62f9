use super::*;

/// As Fargate answers, with what is not needed left out.
const FARGATE: &str = r#"{
  "Cluster": "arn:aws:ecs:us-west-2:111122223333:cluster/default",
  "TaskARN": "arn:aws:ecs:us-west-2:111122223333:task/default/e9028f8d5d8e4f258373e7b93ce9a3c3",
  "Family": "curltest", "ServiceName": "", "Revision": "3", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
  "Limits": {"CPU": 0.25, "Memory": 512}, "PullStartedAt": "2020-10-08T20:47:16.053330955Z",
  "AvailabilityZone": "us-west-2a", "LaunchType": "FARGATE", "ClockDrift": {"ClockErrorBound": 0.5, "ClockSynchronizationStatus": "SYNCHRONIZED"},
  "Containers": [
    {"DockerId": "own", "Name": "onboarding-agent", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING", "Type": "NORMAL", "Snapshotter": "overlayfs",
     "Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": ["192.0.2.3"], "IPv6Addresses": ["2001:db8::3"], "AttachmentIndex": 0, "MACAddress": "0a"}]},
    {"DockerId": "app", "Name": "ratings", "DesiredStatus": "STOPPED", "KnownStatus": "RUNNING", "Type": "NORMAL", "Networks": null}
  ]}"#;

#[test]
fn a_task_of_fargate() {
    let task = TaskMetadata::parse(FARGATE.as_bytes()).unwrap();
    assert_eq!(task.cluster, "default");
    assert_eq!(task.arn.task_id, "e9028f8d5d8e4f258373e7b93ce9a3c3");
    assert_eq!((task.arn.region.name(), task.arn.account.as_str()), ("us-west-2", "111122223333"));
    assert_eq!((task.zone.as_deref(), task.service.as_deref()), (Some("us-west-2a"), None));
    assert_eq!(task.launch_type, Some(LaunchType::Fargate));
    let own = &task.containers[0];
    assert_eq!(own.addresses(), ["192.0.2.3", "2001:db8::3"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(own.network_mode(), Some("awsvpc"));
}

#[test]
fn a_task_of_an_instance_outside_of_aws() {
    // A cluster by its name, no zone, an ARN of before 2019, host mode, the pause container first.
    let external = r#"{
      "Cluster": "Lab_1", "TaskARN": "arn:aws:ecs:eu-west-1:111122223333:task/1dc5c17a-422b-4dc4-b493-371970c6c4d6",
      "Family": "f", "Revision": "1", "ServiceName": "ratings", "LaunchType": "EXTERNAL", "VPCID": "",
      "Containers": [
        {"DockerId": "pause", "Name": "~internal~ecs~pause", "Type": "CNI_PAUSE", "KnownStatus": "RESOURCES_PROVISIONED"},
        {"DockerId": "app", "Name": "ratings", "Type": "NORMAL", "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING"},
        {"DockerId": "own", "Name": "agent", "Type": "NORMAL", "KnownStatus": "RUNNING", "Networks": [{"NetworkMode": "host", "IPv4Addresses": [""]}]}
      ]}"#;
    let task = TaskMetadata::parse(external.as_bytes()).unwrap();
    assert_eq!((task.cluster.as_str(), task.arn.cluster.as_deref()), ("Lab_1", None));
    assert_eq!(
        (task.zone.as_deref(), task.service.as_deref(), task.launch_type),
        (None, Some("ratings"), Some(LaunchType::External))
    );
    let own = &task.containers[2];
    assert_eq!((own.addresses(), own.network_mode()), (Vec::new(), Some("host")));
    let applications: Vec<_> = task.applications(own).map(|container| container.name.as_str()).collect();
    assert_eq!(applications, ["ratings"], "neither the pause container nor our own");
}

#[test]
fn an_application_has_stopped_when_ecs_means_it_to() {
    let container = |known: &str, desired: &str| {
        let json = format!(r#"{{"DockerId":"a","Type":"NORMAL","KnownStatus":"{known}","DesiredStatus":"{desired}"}}"#);
        ContainerMetadata::parse(json.as_bytes()).unwrap()
    };
    assert!(container("STOPPED", "STOPPED").is_stopped());
    // About to be started again (restartPolicy); told to stop, but still at work.
    assert!(!container("STOPPED", "RUNNING").is_stopped());
    assert!(!container("RUNNING", "STOPPED").is_stopped());
    assert!(!ContainerMetadata::parse(br#"{"DockerId":"a"}"#).unwrap().is_stopped());
}

#[test]
fn what_says_no_task_is_refused() {
    for (from, to) in [
        ("task/default/", "task/other/"),
        (":task/", ":service/"),
        ("\"TaskARN\"", "\"Task\""),
        ("cluster/default", "cluster/a/b"),
        ("us-west-2:111122223333:task", "us-west-2:1:task"),
    ] {
        assert!(TaskMetadata::parse(FARGATE.replace(from, to).as_bytes()).is_err(), "{to}");
    }
    let error = TaskMetadata::parse(b"{\"Cluster\": secret").unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}
