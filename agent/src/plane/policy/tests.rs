//! Each field of a policy, admitting and not.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::objects::{Objects, read};
use super::*;
use crate::onboarding::identity::{Ec2Identity, EcsIdentity, IamRole};

fn objects(rule: &str) -> Objects {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\n\
         metadata: {{name: ratings, namespace: bookinfo, labels: {{app: ratings}}}}\nspec: {{template: {{serviceAccount: a}}}}\n\
         ---\napiVersion: authorization.onboarding.tetrate.io/v1alpha1\nkind: OnboardingPolicy\n\
         metadata: {{name: policy, namespace: bookinfo}}\nspec:\n  allow:\n  - {rule}\n"
    );
    read(&[(PathBuf::from("a.yaml"), text.clone())], "default").unwrap_or_else(|errors| panic!("{errors:?} in {text}"))
}

fn verdict(rule: &str, subject: &Subject) -> Verdict {
    let objects = objects(rule);
    evaluate(subject, &objects.groups[0], &objects.policies)
}

fn on_aws(kind: AwsKind) -> Subject {
    let identity = WorkloadIdentity::Aws(AwsIdentity {
        partition: "aws".to_owned(),
        account: "123456789012".to_owned(),
        region: "us-east-1".to_owned(),
        zone: "us-east-1a".to_owned(),
        kind,
    });
    Subject { identity, placement_verified: true }
}

fn task() -> Subject {
    on_aws(AwsKind::Ecs(EcsIdentity {
        task_id: "3a15".to_owned(),
        cluster: "bookinfo".to_owned(),
        iam_role: IamRole { name: "task".to_owned() },
    }))
}

fn machine() -> Subject {
    on_aws(AwsKind::Ec2(Ec2Identity { instance_id: "i-1".to_owned(), iam_role: IamRole { name: "vm".to_owned() } }))
}

fn holder(attributes: &[(&str, &[&str])]) -> Subject {
    let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let attributes: BTreeMap<_, _> = attributes.iter().map(|(name, values)| ((*name).to_owned(), owned(values))).collect();
    let (issuer, subject) = ("https://a.example".to_owned(), "vm-1".to_owned());
    Subject { identity: WorkloadIdentity::Jwt(JwtIdentity { issuer, subject, attributes }), placement_verified: true }
}

const EVERYWHERE: &str = "onboardTo: [{workloadGroupSelector: {}}]";

#[test]
fn every_field_of_a_rule_counts() {
    let aws = |rest: &str| format!("{{workloads: [{{aws: {{accounts: ['123456789012'], {rest}}}}}], {EVERYWHERE}}}");
    let jwt = |rest: &str| format!("{{workloads: [{{jwt: {{issuer: 'https://a.example'{rest}}}}}], {EVERYWHERE}}}");
    let team = holder(&[("team", &["a", "b"]), ("env", &["prod"])]);
    for (rule, subject, reason) in [
        (aws("ecs: {}"), task(), None),
        (aws("ecs: {}").replace("'123456789012'", "'123456789013'"), task(), Some("aws.accounts: \"123456789012\" is not among")),
        (aws("partitions: [aws-cn, aws], ecs: {}"), task(), None),
        (aws("partitions: [aws-cn], ecs: {}"), task(), Some("aws.partitions: \"aws\" is not among aws-cn")),
        (aws("regions: [us-east-1], zones: [us-east-1a], ecs: {}"), task(), None),
        (aws("regions: [us-east-2], ecs: {}"), task(), Some("aws.regions: \"us-east-1\"")),
        (aws("zones: [us-east-1b], ecs: {}"), task(), Some("aws.zones: \"us-east-1a\"")),
        (aws("ecs: {clusters: [bookinfo], iamRoleNames: [task]}"), task(), None),
        (aws("ecs: {clusters: [other]}"), task(), Some("aws.ecs.clusters: \"bookinfo\"")),
        (aws("ecs: {iamRoleNames: [other]}"), task(), Some("aws.ecs.iamRoleNames: \"task\"")),
        (aws("ec2: {}"), task(), Some("aws.ec2: the workload is a task")),
        (aws("ec2: {iamRoleNames: [vm]}"), machine(), None),
        (aws("ec2: {iamRoleNames: [task]}"), machine(), Some("aws.ec2.iamRoleNames: \"vm\"")),
        (aws("ecs: {}"), machine(), Some("aws.ecs: the workload is a machine")),
        (aws("ecs: {}"), team.clone(), Some("aws: the workload has shown")),
        (jwt(""), task(), Some("jwt: the workload is on AWS")),
        (jwt(""), team.clone(), None),
        (jwt("").replace("a.example", "b.example"), team.clone(), Some("jwt.issuer: \"https://a.example\"")),
        (jwt(", subjects: [vm-1, vm-2]"), team.clone(), None),
        (jwt(", subjects: [vm-2]"), team.clone(), Some("jwt.subjects: \"vm-1\"")),
        (jwt(", attributes: [{name: team, values: [b, c]}, {name: env, values: [prod]}]"), team.clone(), None),
        (jwt(", attributes: [{name: team, values: [b]}, {name: env, values: [test]}]"), team.clone(), Some("attributes[1]: env")),
        (jwt(", attributes: [{name: zone, values: [b]}]"), team.clone(), Some("attributes[0]: zone is []")),
    ] {
        match (verdict(&rule, &subject), reason) {
            (Verdict::Admitted(rule), None) => assert_eq!(rule.to_string(), "OnboardingPolicy bookinfo/policy spec.allow[0]"),
            (Verdict::Denied(mismatches), Some(reason)) => {
                assert!(mismatches[0].reasons[0].contains(reason), "{rule}: {mismatches:?}");
            }
            (verdict, _) => panic!("{rule}: {verdict:?}"),
        }
    }
}

#[test]
fn any_workload_and_any_group_of_a_rule_are_enough() {
    let rule = "{workloads: [{aws: {accounts: ['123456789013'], ecs: {}}}, {aws: {accounts: ['123456789012'], ecs: {}}}], \
        onboardTo: [{workloadGroupSelector: {matchLabels: {app: details}}}, {workloadGroupSelector: {matchLabels: {app: ratings}}}]}";
    assert!(matches!(verdict(rule, &task()), Verdict::Admitted(_)));
    let rule = rule.replace("app: ratings", "app: reviews");
    let Verdict::Denied(mismatches) = verdict(&rule, &task()) else { panic!("admitted") };
    assert_eq!(mismatches[0].reasons.len(), 2);
    assert!(mismatches[0].reasons[0].contains("onboardTo[0].workloadGroupSelector: the group's label app is \"ratings\""));
}

#[test]
fn what_aws_was_not_asked_for_does_not_count() {
    let unverified = Subject { placement_verified: false, ..task() };
    for field in ["regions: [us-east-1], ecs: {}", "zones: [us-east-1a], ecs: {}", "ecs: {clusters: [bookinfo]}"] {
        let rule = format!("{{workloads: [{{aws: {{accounts: ['123456789012'], {field}}}}}], {EVERYWHERE}}}");
        assert!(matches!(verdict(&rule, &task()), Verdict::Admitted(_)), "{field}");
        let Verdict::Denied(mismatches) = verdict(&rule, &unverified) else { panic!("{field} counted") };
        assert!(mismatches[0].reasons[0].contains("AWS was not asked"), "{mismatches:?}");
    }
    let unverified_machine = Subject { placement_verified: false, ..machine() };
    for field in ["regions: [us-east-1], ec2: {}", "zones: [us-east-1a], ec2: {}"] {
        let rule = format!("{{workloads: [{{aws: {{accounts: ['123456789012'], {field}}}}}], {EVERYWHERE}}}");
        assert!(matches!(verdict(&rule, &machine()), Verdict::Admitted(_)), "{field}");
        let Verdict::Denied(mismatches) = verdict(&rule, &unverified_machine) else { panic!("{field} counted") };
        assert!(mismatches[0].reasons[0].contains("--aws-instance-certs"), "{mismatches:?}");
    }
    let role = format!("{{workloads: [{{aws: {{accounts: ['123456789012'], ecs: {{iamRoleNames: [task]}}}}}}], {EVERYWHERE}}}");
    assert!(matches!(verdict(&role, &unverified), Verdict::Admitted(_)));
}

#[test]
fn without_a_policy_of_the_groups_namespace_nobody_is_admitted() {
    let mut objects = objects(&format!("{{workloads: [{{aws: {{accounts: ['123456789012'], ecs: {{}}}}}}], {EVERYWHERE}}}"));
    assert_eq!(evaluate::<OnboardingPolicy>(&task(), &objects.groups[0], &[]), Verdict::Denied(Vec::new()));
    objects.policies[0].metadata.namespace = "other".to_owned();
    let Verdict::Denied(mismatches) = evaluate(&task(), &objects.groups[0], &objects.policies) else { panic!("admitted") };
    assert!(mismatches[0].reasons[0].contains("metadata.namespace: \"other\""), "{mismatches:?}");
}
