//! The published YAML as it stands, and what is wrong with others.

use std::path::PathBuf;

use super::*;

const ANY_TASK: &str = "\
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata:
  name: allow-any-aws-ecs-task-from-given-accounts
  namespace: bookinfo
spec:
  allow:
  - workloads:
    - aws:
        accounts:
        - '123456789012'
        - '234567890123'
        ecs: {}
    onboardTo:
    - workloadGroupSelector: {}
";

const NARROW: &str = "\
apiVersion: authorization.onboarding.tetrate.io/v1alpha1
kind: OnboardingPolicy
metadata:
  name: allow-narrow-subset-of-aws-ecs-tasks
spec:
  allow:
  - workloads:
    - aws:
        partitions:
        - aws
        accounts:
        - '123456789012'
        regions:
        - us-east-2
        zones:
        - us-east-2b
        ecs:
          clusters:
          - bookinfo
          iamRoleNames:
          - bookinfoECSTaskRole
    - jwt:
        issuer: https://a.example
        subjects: [vm-1]
        attributes: [{name: region, values: [a, b]}]
    onboardTo:
    - workloadGroupSelector:
        matchLabels:
          app: ratings
        matchExpressions:
        - {key: tier, operator: NotIn, values: [test]}
";

const GROUP: &str = "\
apiVersion: networking.istio.io/v1alpha3
kind: WorkloadGroup
metadata:
  name: ratings
  namespace: bookinfo
  labels:
    app: ratings
spec:
  template:
    labels:
      app: ratings
      class: vm
    serviceAccount: ratings-vm
    network:        virtual-machines
  probe:
    periodSeconds: 5
    httpGet: {path: /health, port: 9080}
";

const REGISTRATION: &str = "\
apiVersion: runtime.onboarding.tetrate.io/v1alpha1
kind: WorkloadAutoRegistration
metadata:
  name: ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-3a151358f03a4e32bf8cd401c1c74653
  namespace: bookinfo
  generation: 1
  creationTimestamp: '2026-11-29T15:49:32Z'
spec:
  identity:
    aws:
      partition: aws
      account: '123456789012'
      region: us-east-1
      zone: us-east-1a
      ecs:
        taskId: 3a151358f03a4e32bf8cd401c1c74653
        cluster: bookinfo
        iamRole: {name: bookinfoECSTaskRole}
  registration:
    agent: {version: 0.1.0}
    sidecar: {istio: {version: 1.28.0}}
    host: {addresses: [{ip: 10.0.0.1, type: VPC}]}
    workload: {labels: {version: v5}}
    settings: {connectedOver: VPC}
status:
  observedGeneration: 1
  conditions:
  - type: AgentConnected
    status: 'True'
    reason: ConnectionEstablished
    lastTransitionTime: '2026-11-29T15:49:33Z'
  activeAgentConnection: {connectedTo: onboarding-plane-0}
";

fn parse(text: &str) -> Result<Objects, String> {
    read(&[(PathBuf::from("a.yaml"), text.to_owned())], "default")
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_published_yaml_is_read_and_written_as_it_stands() {
    let text = [ANY_TASK, NARROW, GROUP, REGISTRATION].join("---\n");
    let objects = parse(&text).unwrap();
    assert_eq!((objects.policies.len(), objects.groups.len(), objects.registrations.len()), (2, 1, 1));
    assert_eq!(objects.policies[1].metadata.namespace, "default");
    let group = &objects.groups[0];
    assert_eq!((group.spec.service_account(), group.spec.template.network.as_str()), ("ratings-vm", "virtual-machines"));
    assert_eq!(group.spec.probe.as_ref().unwrap().as_json()["httpGet"]["port"], 9080);
    let status = &objects.registrations[0].status;
    assert_eq!(status.agent_connected().unwrap().reason, "ConnectionEstablished");

    // JSON is YAML: what is written is what was read, in names and values.
    let written = [
        serde_json::to_string(&objects.policies[0]).unwrap(),
        serde_json::to_string(&objects.policies[1]).unwrap(),
        serde_json::to_string(group).unwrap(),
        serde_json::to_string(&objects.registrations[0]).unwrap(),
    ];
    assert_eq!(parse(&written.join("\n---\n")).unwrap(), objects);
    for name in ["taskId", "iamRole", "connectedTo", "lastTransitionTime", "observedGeneration"] {
        assert!(written[3].contains(name), "{name}: {}", written[3]);
    }
    let policy: serde_json::Value = serde_json::from_str(&written[1]).unwrap();
    assert_eq!(policy["spec"]["allow"][0]["workloads"][0]["aws"]["ecs"]["iamRoleNames"][0], "bookinfoECSTaskRole");
    let any: serde_json::Value = serde_json::from_str(&written[0]).unwrap();
    assert_eq!(any["spec"]["allow"][0]["workloads"][0]["aws"]["ecs"], serde_json::json!({}));
    assert_eq!(any["spec"]["allow"][0]["onboardTo"][0]["workloadGroupSelector"], serde_json::json!({}));
}

#[test]
fn a_fault_is_named_with_file_line_and_field() {
    for (text, from, to, expected) in [
        (ANY_TASK, "ecs: {}", "ecs: {cluster: [a]}", "a.yaml:13: spec.allow[0].workloads[0].aws.ecs.cluster: unknown field"),
        (ANY_TASK, "        ecs: {}\n", "", "expected exactly one of ec2, ecs"),
        (ANY_TASK, "ecs: {}", "ecs:", "expected exactly one of ec2, ecs"),
        (ANY_TASK, "ecs: {}", "ecs: {}\n        ec2: {}", "expected exactly one of ec2, ecs"),
        (ANY_TASK, "'123456789012'", "'*'", "a.yaml:11: spec.allow[0].workloads[0].aws.accounts[0]: \"*\": expected an account"),
        (ANY_TASK, "'123456789012'", "123456789012", "expected a string"),
        (ANY_TASK, "        accounts:\n        - '123456789012'\n        - '234567890123'\n", "", "aws.accounts: missing"),
        (
            ANY_TASK,
            "onboardTo:\n    - workloadGroupSelector: {}",
            "onboardTo: []",
            "onboardTo: an empty list: expected at least one",
        ),
        (ANY_TASK, "workloadGroupSelector: {}", "selector: {}", "unknown field"),
        (ANY_TASK, "aws:", "azure:", "expected one of aws, jwt"),
        (ANY_TASK, "v1alpha1", "v1", "a.yaml:1: apiVersion: \"authorization.onboarding.tetrate.io/v1\": expected authoriz"),
        (NARROW, "https://a.example", "http://a.example", "jwt.issuer: \"http://a.example\": expected an https:// URL"),
        (NARROW, "values: [a, b]", "values: []", "at least one"),
        (NARROW, "operator: NotIn, values: [test]", "operator: Exists, values: [test]", "expected none with Exists"),
        (NARROW, "NotIn", "Not", "expected one of In, NotIn, Exists, DoesNotExist"),
        (GROUP, "serviceAccount", "service_account", "a.yaml:13: spec.template.service_account: unknown field"),
        (GROUP, "httpGet: {path: /health, port: 9080}", "httpGet: {path: /health}", "spec.probe"),
        (REGISTRATION, "type: VPC", "type: LAN", "expected one of VPC, INTERNET"),
        (REGISTRATION, "'123456789012'", "'1'", "expected 12 digits"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let error = parse(&changed).expect_err(to);
        assert!(error.contains(expected), "{from} -> {to}: {error}");
    }
    let twice = parse(&[ANY_TASK, ANY_TASK].join("---\n")).unwrap_err();
    assert!(twice.contains("a second OnboardingPolicy"), "{twice}");
}

#[test]
fn selectors_are_those_of_kubernetes() {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let selector: LabelSelector = serde_json::from_str(
        r#"{"matchLabels":{"app":"ratings"},"matchExpressions":[
            {"key":"tier","operator":"NotIn","values":["test"]},{"key":"class","operator":"In","values":["vm","task"]},
            {"key":"team","operator":"Exists"},{"key":"frozen","operator":"DoesNotExist"}]}"#,
    )
    .unwrap();
    let good = [("app", "ratings"), ("class", "vm"), ("team", "a")];
    assert_eq!(selector.mismatch(&labels(&good)), None);
    for (change, reason) in [
        (("app", "details"), "label app is \"details\", expected ratings"),
        (("tier", "test"), "label tier is \"test\", expected NotIn test"),
        (("class", "pod"), "label class is \"pod\", expected In vm, task"),
        (("frozen", ""), "label frozen is \"\", expected DoesNotExist"),
    ] {
        let mut changed: Labels = labels(&good);
        changed.insert(change.0.to_owned(), change.1.to_owned());
        assert_eq!(selector.mismatch(&changed).as_deref(), Some(reason));
    }
    let without: Labels = labels(&good[..2]);
    assert_eq!(selector.mismatch(&without).as_deref(), Some("label team is missing, expected Exists"));
    assert_eq!(LabelSelector::default().mismatch(&Labels::new()), None);
}

#[test]
fn the_time_of_a_transition_is_that_of_the_change() {
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let condition = |status, time| Condition {
        kind: "AgentConnected".to_owned(),
        status,
        reason: String::new(),
        message: String::new(),
        last_transition_time: at(time),
        last_probe_time: None,
    };
    let mut conditions = vec![condition(ConditionStatus::True, "2026-11-29T15:00:00Z")];
    Condition::set(&mut conditions, condition(ConditionStatus::True, "2026-11-29T16:00:00Z"));
    assert_eq!(conditions[0].last_transition_time, at("2026-11-29T15:00:00Z"));
    Condition::set(&mut conditions, condition(ConditionStatus::False, "2026-11-29T17:00:00Z"));
    assert_eq!((conditions.len(), conditions[0].last_transition_time), (1, at("2026-11-29T17:00:00Z")));
    assert_eq!(serde_json::to_value(&conditions[0]).unwrap()["status"], "False");
}
