//! Who a workload is: `WorkloadIdentity` of Tetrate's onboarding API, as it stands in `spec.identity` of a
//! WorkloadAutoRegistration and in what OnboardingPolicy matches. Written in camelCase, read in snake_case as well.
//!
//! <https://docs.tetrate.io/service-bridge/refs/onboarding/config/runtime/v1alpha1/workload_auto_registration>

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// The zone of a task on ECS Anywhere, which has none.
pub const EXTERNAL_ZONE: &str = "external";

/// Longest name of a Kubernetes object, in characters.
const MAX_NAME: usize = 253;
/// Hexadecimal digits at the end of a name that had to be changed.
const HASH_DIGITS: usize = 16;

/// A workload whose credential has been verified.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkloadIdentity {
    /// By the credentials of an IAM role.
    Aws(AwsIdentity),
    /// By a JSON Web Token.
    Jwt(JwtIdentity),
}

/// A workload on AWS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawAws")]
pub struct AwsIdentity {
    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub partition: String,
    /// 12 digits.
    pub account: String,
    /// Such as `us-east-1`.
    pub region: String,
    /// Availability zone, such as `us-east-1a`; [`EXTERNAL_ZONE`] on ECS Anywhere.
    pub zone: String,
    /// What it runs on.
    #[serde(flatten)]
    pub kind: AwsKind,
}

/// What a workload on AWS runs on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AwsKind {
    /// A virtual machine.
    Ec2(Ec2Identity),
    /// A task of the Elastic Container Service.
    Ecs(EcsIdentity),
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ec2Identity {
    /// Such as `i-1234567890abcdef0`.
    #[serde(alias = "instance_id")]
    pub instance_id: String,
    /// The role of its instance profile.
    #[serde(alias = "iam_role")]
    pub iam_role: IamRole,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EcsIdentity {
    /// 32 hexadecimal digits, a UUID in accounts with old ARNs.
    #[serde(alias = "task_id")]
    pub task_id: String,
    /// Name of the cluster, not its ARN.
    pub cluster: String,
    /// The task role.
    #[serde(alias = "iam_role")]
    pub iam_role: IamRole,
}

/// An IAM role.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IamRole {
    /// Its name, without path.
    pub name: String,
}

/// A workload that has shown a JSON Web Token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtIdentity {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// What JwtIssuer takes out of the token, for OnboardingPolicy to match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Vec<String>>,
}

/// What is read; `TryFrom` makes an identity of it that has everything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAws {
    partition: String,
    account: String,
    region: String,
    zone: String,
    ec2: Option<Ec2Identity>,
    ecs: Option<EcsIdentity>,
}

/// Why there is no identity in what was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Neither or both.
    #[error("aws: expected exactly one of ec2, ecs")]
    Kind,
    /// Every part counts, and none can forge a line of a log.
    #[error("aws.{0} {1:?}: expected visible ASCII characters")]
    Part(&'static str, String),
    /// Not an account.
    #[error("aws.account {0:?}: expected 12 digits")]
    Account(String),
}

impl TryFrom<RawAws> for AwsIdentity {
    type Error = IdentityError;

    fn try_from(raw: RawAws) -> Result<Self, IdentityError> {
        let RawAws { partition, account, region, zone, ec2, ecs } = raw;
        let kind = match (ec2, ecs) {
            (Some(ec2), None) => AwsKind::Ec2(ec2),
            (None, Some(ecs)) => AwsKind::Ecs(ecs),
            _ => return Err(IdentityError::Kind),
        };
        let identity = Self { partition, account, region, zone, kind };
        identity.check()?;
        Ok(identity)
    }
}

impl AwsIdentity {
    fn check(&self) -> Result<(), IdentityError> {
        if !is_account(&self.account) {
            return Err(IdentityError::Account(self.account.clone()));
        }
        let own = [("partition", &self.partition), ("region", &self.region), ("zone", &self.zone)];
        let of_kind = match &self.kind {
            AwsKind::Ec2(ec2) => vec![("ec2.instanceId", &ec2.instance_id), ("ec2.iamRole.name", &ec2.iam_role.name)],
            AwsKind::Ecs(ecs) => {
                vec![("ecs.taskId", &ecs.task_id), ("ecs.cluster", &ecs.cluster), ("ecs.iamRole.name", &ecs.iam_role.name)]
            }
        };
        let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let wrong = own.into_iter().chain(of_kind).find(|(_, value)| !visible(value));
        wrong.map_or(Ok(()), |(name, value)| Err(IdentityError::Part(name, value.clone())))
    }
}

/// Whether this is the id of an AWS account.
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl WorkloadIdentity {
    /// The name of the workload's objects (WorkloadAutoRegistration, WorkloadEntry) in a WorkloadGroup:
    /// `<group>-aws-<partition>-<account>-<zone>-ecs-<cluster>-<task id>`, `…-ec2-<instance id>`,
    /// `<group>-jwt-<issuer's short name>-<subject>`.
    ///
    /// What is no name of a Kubernetes object is made one and gets a hash at its end. Names with and without a hash are never
    /// the same, but some of those without could be, since their parts hold dashes too: who finds an object of this name has to
    /// compare its identity.
    ///
    /// `issuer_short_name` is that of the JwtIssuer; without one a hash of the issuer stands for it. Of no meaning for AWS.
    pub fn object_name(&self, workload_group: &str, issuer_short_name: Option<&str>) -> String {
        let name = match self {
            Self::Aws(AwsIdentity { partition, account, zone, kind, .. }) => match kind {
                AwsKind::Ec2(Ec2Identity { instance_id, .. }) => {
                    format!("{workload_group}-aws-{partition}-{account}-{zone}-ec2-{instance_id}")
                }
                AwsKind::Ecs(EcsIdentity { task_id, cluster, .. }) => {
                    format!("{workload_group}-aws-{partition}-{account}-{zone}-ecs-{cluster}-{task_id}")
                }
            },
            Self::Jwt(JwtIdentity { issuer, subject, .. }) => {
                let hashed = hash(&[issuer]);
                format!("{workload_group}-jwt-{}-{subject}", issuer_short_name.unwrap_or(&hashed))
            }
        };
        if is_object_name(&name) && !ends_in_hash(&name) {
            return name;
        }
        let hashed = match self {
            Self::Aws(_) => hash(&[workload_group, &name]),
            Self::Jwt(JwtIdentity { issuer, subject, .. }) => hash(&[workload_group, issuer, subject]),
        };
        format!("{}-{hashed}", sanitised(&name))
    }
}

/// Whether Kubernetes takes this for the name of an object (RFC 1123 subdomain).
fn is_object_name(name: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().zip(bytes.last()).is_some_and(|(first, last)| *first != b'-' && *last != b'-')
            && bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    name.len() <= MAX_NAME && name.split('.').all(label)
}

/// Whether this could be a name that was changed: somebody may choose a subject that is.
fn ends_in_hash(name: &str) -> bool {
    name.rsplit_once(['-', '.'])
        .is_some_and(|(_, end)| end.len() == HASH_DIGITS && end.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// Letters, digits and single dashes, with room for a hash.
fn sanitised(name: &str) -> String {
    let parts = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    let mut name = parts.collect::<Vec<_>>().join("-").to_ascii_lowercase();
    name.truncate(MAX_NAME - HASH_DIGITS - 1);
    name.truncate(name.trim_end_matches('-').len());
    name
}

/// A hash of these parts, whatever they hold.
fn hash(parts: &[&str]) -> String {
    let mut text = Vec::new();
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    HEXLOWER.encode(&digest(&SHA256, &text).as_ref()[..HASH_DIGITS / 2])
}

/// For logs: no part can forge a line.
impl fmt::Display for WorkloadIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aws(AwsIdentity { partition, account, region, zone, kind }) => {
                write!(f, "{partition}/{account}/{region}/{zone}/")?;
                match kind {
                    AwsKind::Ec2(ec2) => write!(f, "ec2/{} (role {})", ec2.instance_id, ec2.iam_role.name),
                    AwsKind::Ecs(ecs) => write!(f, "ecs/{}/{} (role {})", ecs.cluster, ecs.task_id, ecs.iam_role.name),
                }
            }
            Self::Jwt(JwtIdentity { issuer, subject, .. }) => write!(f, "jwt {subject:?} of {issuer:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(cluster: &str, task_id: &str) -> WorkloadIdentity {
        WorkloadIdentity::Aws(AwsIdentity {
            partition: "aws".to_owned(),
            account: "123456789012".to_owned(),
            region: "us-east-1".to_owned(),
            zone: "us-east-1a".to_owned(),
            kind: AwsKind::Ecs(EcsIdentity {
                task_id: task_id.to_owned(),
                cluster: cluster.to_owned(),
                iam_role: IamRole { name: "bookinfoECSTaskRole".to_owned() },
            }),
        })
    }

    fn holder(issuer: &str, subject: &str) -> WorkloadIdentity {
        let (issuer, subject) = (issuer.to_owned(), subject.to_owned());
        WorkloadIdentity::Jwt(JwtIdentity { issuer, subject, attributes: BTreeMap::new() })
    }

    #[test]
    fn it_is_written_as_tetrate_writes_it_and_read_in_both_cases() {
        let identity = task("bookinfo", "3a151358f03a4e32bf8cd401c1c74653");
        let written = serde_json::to_value(&identity).unwrap();
        let expected = serde_json::json!({"aws": {
            "partition": "aws", "account": "123456789012", "region": "us-east-1", "zone": "us-east-1a",
            "ecs": {"taskId": "3a151358f03a4e32bf8cd401c1c74653", "cluster": "bookinfo", "iamRole": {"name": "bookinfoECSTaskRole"}},
        }});
        assert_eq!(written, expected);
        assert_eq!(serde_json::from_value::<WorkloadIdentity>(written.clone()).unwrap(), identity);
        let snake = written.to_string().replace("taskId", "task_id").replace("iamRole", "iam_role");
        assert_eq!(serde_json::from_str::<WorkloadIdentity>(&snake).unwrap(), identity);

        let machine = r#"{"aws":{"partition":"aws","account":"123456789012","region":"us-east-1","zone":"us-east-1a",
            "ec2":{"instance_id":"i-0123456789abcdef0","iam_role":{"name":"vm"}}}}"#;
        let machine: WorkloadIdentity = serde_json::from_str(machine).unwrap();
        assert_eq!(serde_json::to_value(&machine).unwrap()["aws"]["ec2"]["instanceId"], "i-0123456789abcdef0");
        assert_eq!(machine.object_name("ratings", None), "ratings-aws-aws-123456789012-us-east-1a-ec2-i-0123456789abcdef0");

        let token =
            serde_json::json!({"jwt": {"issuer": "https://a.example", "subject": "b", "attributes": {"region": ["x", "y"]}}});
        let identity: WorkloadIdentity = serde_json::from_value(token.clone()).unwrap();
        assert_eq!(serde_json::to_value(identity).unwrap(), token);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let good = serde_json::to_string(&task("bookinfo", "3a15")).unwrap();
        for (from, to, reason) in [
            ("123456789012", "12345678901", "expected 12 digits"),
            ("us-east-1a", "", "aws.zone \"\""),
            ("3a15", "", "aws.ecs.taskId \"\""),
            ("bookinfoECSTaskRole", "a\\nb", "aws.ecs.iamRole.name"),
            ("\"ecs\"", "\"ec2\"", "unknown field"),
            ("\"ecs\"", "\"fargate\"", "unknown field"),
            ("\"zone\"", "\"zones\"", "unknown field"),
        ] {
            let error = serde_json::from_str::<WorkloadIdentity>(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(reason), "{from} {to}: {error}");
        }
        let neither = r#"{"aws":{"partition":"aws","account":"123456789012","region":"r","zone":"z"}}"#;
        let error = serde_json::from_str::<WorkloadIdentity>(neither).unwrap_err().to_string();
        assert!(error.contains("exactly one of ec2, ecs"), "{error}");
    }

    #[test]
    fn names_are_those_of_tetrate_where_kubernetes_takes_them() {
        let identity = task("bookinfo", "3a151358f03a4e32bf8cd401c1c74653");
        let expected = "ratings-aws-aws-123456789012-us-east-1a-ecs-bookinfo-3a151358f03a4e32bf8cd401c1c74653";
        assert_eq!(identity.object_name("ratings", None), expected);
        assert_eq!(holder("https://a.example", "vm-1.b").object_name("ratings", Some("a")), "ratings-jwt-a-vm-1.b");
    }

    #[test]
    fn other_names_are_made_valid_and_stay_apart() {
        let long = "C".repeat(255);
        let names = [
            task("Book_Info", "3a15").object_name("ratings", None),
            task("book_info", "3a15").object_name("ratings", None),
            task("book-info", "3a15").object_name("ratings", None),
            task(&long, "3a15").object_name("ratings", None),
            task(&long, "3a16").object_name("ratings", None),
            holder("https://a.example", "Vm/1").object_name("ratings", Some("a")),
            holder("https://a.example", "vm/1").object_name("ratings", Some("a")),
            holder("https://b.example", "vm/1").object_name("ratings", Some("a")),
            holder("https://a.example", "").object_name("ratings", Some("a")),
            holder("https://a.example", "é\n").object_name("ratings", Some("a")),
            holder("https://a.example", "vm").object_name("ratings", None),
            holder("https://b.example", "vm").object_name("ratings", None),
        ];
        for name in &names {
            assert!(is_object_name(name), "{name}");
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
        }
        // Nobody gets the changed name of another by choosing it.
        let changed = holder("https://a.example", "Vm/1").object_name("ratings", Some("a"));
        let chosen = changed.strip_prefix("ratings-jwt-a-").unwrap();
        assert_ne!(holder("https://a.example", chosen).object_name("ratings", Some("a")), changed);
    }

    #[test]
    fn a_subject_cannot_forge_a_log_line() {
        assert!(!holder("https://a.example", "a\nlevel=info").to_string().contains('\n'));
    }
}
