//! `skiff explain policy`: whether an identity may join a group, which rule says so, or what keeps each of them from it.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use super::plane::DescribeTasks;
use super::print;
use crate::exit::Failure;
use crate::onboarding::identity::{AwsIdentity, AwsKind, WorkloadIdentity};
use crate::plane::objects::{self, ObjectKey};
use crate::plane::policy::{Subject, Verdict, evaluate};
use crate::sidecar;
use crate::translate::istio::de::from_node;
use crate::translate::istio::yaml;

/// What can be explained.
#[derive(Debug, Subcommand)]
pub(super) enum Explained {
    /// Say which OnboardingPolicy lets a workload join a WorkloadGroup, or why none does. Exit code 0: one does, 1: none does.
    Policy(Box<PolicyArgs>),
}

/// Who asks, for what, and who decides.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    /// Files and folders of OnboardingPolicies and WorkloadGroups.
    #[arg(short = 'f', long = "files", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// The WorkloadGroup, NAMESPACE/NAME.
    #[arg(long)]
    group: ObjectKey,
    /// File of a WorkloadIdentity, or of a WorkloadAutoRegistration.
    #[arg(long, conflicts_with_all = ["aws_account", "jwt_issuer"])]
    identity: Option<PathBuf>,
    /// Whether the plane asks ECS where tasks run.
    #[arg(long, value_enum, default_value_t = DescribeTasks::Required)]
    aws_describe_tasks: DescribeTasks,
    /// The plane has AWS's certificates, so that it knows where instances are.
    #[arg(long)]
    aws_instance_certs: bool,
    /// The AWS account.
    #[arg(long, requires = "iam_role")]
    aws_account: Option<String>,
    /// The AWS partition.
    #[arg(long, default_value = "aws")]
    aws_partition: String,
    /// The region; that of the zone if none is given.
    #[arg(long)]
    aws_region: Option<String>,
    /// The availability zone.
    #[arg(long)]
    aws_zone: Option<String>,
    /// Name of the IAM role.
    #[arg(long)]
    iam_role: Option<String>,
    /// Name of the ECS cluster: the workload is a task.
    #[arg(long, conflicts_with = "ec2_instance")]
    ecs_cluster: Option<String>,
    /// Id of the task.
    #[arg(long, default_value = "00000000000000000000000000000000")]
    ecs_task: String,
    /// Id of the EC2 instance: the workload is a machine.
    #[arg(long)]
    ec2_instance: Option<String>,
    /// Issuer of the workload's token.
    #[arg(long, requires = "jwt_subject", conflicts_with = "aws_account")]
    jwt_issuer: Option<String>,
    /// Subject of the workload's token.
    #[arg(long)]
    jwt_subject: Option<String>,
    /// Attribute of the workload's token, NAME=VALUE; may be given several times.
    #[arg(long)]
    jwt_attribute: Vec<String>,
}

/// Explains what was asked for.
pub(super) fn run(what: Explained) -> Result<(), Failure> {
    let Explained::Policy(args) = what;
    let mut files = Vec::new();
    for path in &args.files {
        files.extend(sidecar::read_documents(path).map_err(|error| Failure::Configuration(error.to_string()))?);
    }
    let read = objects::read(&files, "default").map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Failure::Configuration(lines.join("\n"))
    })?;
    let identity = args.identity()?;
    let placement_verified = args.knows_where(&identity);
    let subject = Subject { identity, placement_verified };
    let Some(group) = read.groups.iter().find(|group| group.key() == args.group) else {
        let known: Vec<_> = read.groups.iter().map(|group| group.key().to_string()).collect();
        return Err(Failure::No(format!("WorkloadGroup {} is not in the files, which have: {}", args.group, known.join(", "))));
    };
    match evaluate(&subject, group, &read.policies) {
        Verdict::Admitted(rule) => print(&format!("{} may join {}: {rule}\n", subject.identity, args.group)),
        Verdict::Denied(mismatches) => {
            let mut text = String::new();
            for mismatch in &mismatches {
                let _ = writeln!(text, "{}", mismatch.rule);
                for reason in &mismatch.reasons {
                    let _ = writeln!(text, "  {reason}");
                }
            }
            print(&text)?;
            let rules = if mismatches.is_empty() { "there is no OnboardingPolicy" } else { "no rule admits it" };
            Err(Failure::No(format!("{} may not join {}: {rules}", subject.identity, args.group)))
        }
    }
}

impl PolicyArgs {
    fn knows_where(&self, identity: &WorkloadIdentity) -> bool {
        match identity {
            WorkloadIdentity::Aws(AwsIdentity { kind: AwsKind::Ec2(_), .. }) => self.aws_instance_certs,
            WorkloadIdentity::Aws(_) => self.aws_describe_tasks == DescribeTasks::Required,
            WorkloadIdentity::Jwt(_) => true,
        }
    }

    fn identity(&self) -> Result<WorkloadIdentity, Failure> {
        if let Some(file) = &self.identity {
            return read_identity(file);
        }
        let identity = match (&self.aws_account, &self.jwt_issuer) {
            (Some(account), _) => self.aws(account)?,
            (None, Some(issuer)) => self.jwt(issuer)?,
            (None, None) => {
                return Err(Failure::Usage("whose identity: expected --identity, --aws-account or --jwt-issuer".to_owned()));
            }
        };
        serde_json::from_value(identity).map_err(|error| Failure::Usage(error.to_string()))
    }

    fn aws(&self, account: &str) -> Result<Json, Failure> {
        let zone = self.aws_zone.clone().or_else(|| self.aws_region.as_ref().map(|region| format!("{region}a")));
        let zone = zone.ok_or_else(|| Failure::Usage("expected --aws-zone or --aws-region".to_owned()))?;
        let region =
            self.aws_region.clone().unwrap_or_else(|| zone.trim_end_matches(|c: char| c.is_ascii_lowercase()).to_owned());
        let role = json!({"name": self.iam_role});
        let (kind, of_kind) = match (&self.ec2_instance, &self.ecs_cluster) {
            (Some(instance), _) => ("ec2", json!({"instanceId": instance, "iamRole": role})),
            (None, Some(cluster)) => ("ecs", json!({"taskId": self.ecs_task, "cluster": cluster, "iamRole": role})),
            (None, None) => return Err(Failure::Usage("expected --ecs-cluster or --ec2-instance".to_owned())),
        };
        Ok(json!({"aws": {"partition": self.aws_partition, "account": account, "region": region, "zone": zone, kind: of_kind}}))
    }

    fn jwt(&self, issuer: &str) -> Result<Json, Failure> {
        let mut attributes = serde_json::Map::new();
        for given in &self.jwt_attribute {
            let wrong = || Failure::Usage(format!("--jwt-attribute {given:?}: expected NAME=VALUE"));
            let (name, value) = given.split_once('=').ok_or_else(wrong)?;
            let values = attributes.entry(name).or_insert_with(|| json!([]));
            if let Some(values) = values.as_array_mut() {
                values.push(json!(value));
            }
        }
        Ok(json!({"jwt": {"issuer": issuer, "subject": self.jwt_subject, "attributes": attributes}}))
    }
}

fn read_identity(file: &PathBuf) -> Result<WorkloadIdentity, Failure> {
    let wrong = |reason: &dyn std::fmt::Display| Failure::Configuration(format!("{}:{reason}", file.display()));
    let text = fs::read_to_string(file).map_err(|error| wrong(&format_args!(" {error}")))?;
    let nodes = yaml::parse(&text).map_err(|error| wrong(&error))?;
    let [node] = nodes.as_slice() else { return Err(wrong(&" expected one document")) };
    match node.get("spec").and_then(|spec| spec.get("identity")) {
        Some(identity) => from_node(identity, "spec.identity").map_err(|error| wrong(&error)),
        None => from_node(node, "").map_err(|error| wrong(&error)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    const POLICY: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: ratings, namespace: bookinfo}\n\
        spec: {template: {serviceAccount: a}}\n---\napiVersion: authorization.onboarding.tetrate.io/v1alpha1\n\
        kind: OnboardingPolicy\nmetadata: {name: tasks, namespace: bookinfo}\nspec:\n  allow:\n  - workloads:\n\
        \x20   - aws: {accounts: ['123456789012'], regions: [us-east-1], ecs: {clusters: [bookinfo]}}\n\
        \x20   - aws: {accounts: ['123456789012'], zones: [us-east-1a], ec2: {}}\n\
        \x20   onboardTo: [{workloadGroupSelector: {}}]\n";

    fn explain(folder: &tempfile::TempDir, arguments: &[&str]) -> Result<(), Failure> {
        let folder = folder.path().to_str().unwrap();
        let all = ["skiff", "explain", "policy", "-f", folder, "--group", "bookinfo/ratings"];
        let all = all.into_iter().chain(arguments.iter().copied());
        match Cli::try_parse_from(all).map_err(|error| Failure::Usage(error.to_string()))?.command {
            Some(Command::Explain { what }) => run(what),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_exit_code_is_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("policy.yaml"), POLICY).unwrap();
        let task =
            ["--aws-account", "123456789012", "--aws-zone", "us-east-1a", "--iam-role", "task", "--ecs-cluster", "bookinfo"];
        assert_eq!(explain(&folder, &task), Ok(()));
        let changed = |from: &str, to: &'static str| task.map(|argument| if argument == from { to } else { argument });
        for (arguments, code, reason) in [
            (changed("bookinfo", "other").to_vec(), 1, "no rule admits it"),
            (changed("us-east-1a", "us-west-2a").to_vec(), 1, "may not join bookinfo/ratings"),
            (changed("123456789012", "12").to_vec(), 64, "expected 12 digits"),
            (vec!["--jwt-issuer", "https://a.example", "--jwt-subject", "vm", "--jwt-attribute", "a=b"], 1, "no rule admits it"),
            (vec!["--jwt-issuer", "https://a.example"], 64, "--jwt-subject"),
            (vec![], 64, "whose identity"),
            ([&task[..], &["--aws-describe-tasks", "off"]].concat(), 1, "no rule admits it"),
        ] {
            let failure = explain(&folder, &arguments).unwrap_err();
            assert!(failure.code() == code && failure.to_string().contains(reason), "{arguments:?}: {failure}");
        }
        // Where an instance is, only AWS's signature says.
        let instance = [&task[..6], &["--ec2-instance", "i-0123456789abcdef0"]].concat();
        assert_eq!(explain(&folder, &instance).unwrap_err().code(), 1);
        assert_eq!(explain(&folder, &[&instance[..], &["--aws-instance-certs"]].concat()), Ok(()));
        let identity = tempfile::NamedTempFile::new().unwrap();
        let text = "aws: {partition: aws, account: '123456789012', region: us-east-1, zone: us-east-1a, \
            ecs: {task_id: a, cluster: bookinfo, iam_role: {name: task}}}";
        fs::write(identity.path(), text).unwrap();
        assert_eq!(explain(&folder, &["--identity", identity.path().to_str().unwrap()]), Ok(()));
        fs::write(identity.path(), text.replace("cluster:", "clusters:")).unwrap();
        let failure = explain(&folder, &["--identity", identity.path().to_str().unwrap()]).unwrap_err();
        assert!(failure.to_string().contains(":1: aws"), "{failure}");
    }
}
