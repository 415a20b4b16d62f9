//! Regions, partitions and Amazon Resource Names, as far as they say who a workload is.

use std::fmt;
use std::str::FromStr;

use crate::onboarding::identity::is_account;

/// A part of AWS with accounts and domain names of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Partition {
    /// Such as `aws`.
    pub id: &'static str,
    /// What the names of its services end in.
    pub dns_suffix: &'static str,
    /// What its regions begin with; a word and a number follow.
    region_prefixes: &'static [&'static str],
}

/// All of them. Regions whose beginning is not here are refused: a verifier must know whom it asks.
const PARTITIONS: [Partition; 8] = [
    Partition {
        id: "aws",
        dns_suffix: "amazonaws.com",
        region_prefixes: &["us-", "eu-", "ap-", "sa-", "ca-", "me-", "af-", "il-", "mx-"],
    },
    Partition { id: "aws-cn", dns_suffix: "amazonaws.com.cn", region_prefixes: &["cn-"] },
    Partition { id: "aws-us-gov", dns_suffix: "amazonaws.com", region_prefixes: &["us-gov-"] },
    Partition { id: "aws-eusc", dns_suffix: "amazonaws.eu", region_prefixes: &["eusc-de-"] },
    Partition { id: "aws-iso", dns_suffix: "c2s.ic.gov", region_prefixes: &["us-iso-"] },
    Partition { id: "aws-iso-b", dns_suffix: "sc2s.sgov.gov", region_prefixes: &["us-isob-"] },
    Partition { id: "aws-iso-e", dns_suffix: "cloud.adc-e.uk", region_prefixes: &["eu-isoe-"] },
    Partition { id: "aws-iso-f", dns_suffix: "csp.hci.ic.gov", region_prefixes: &["us-isof-"] },
];

/// A region of a known partition.
#[derive(Clone, PartialEq, Eq)]
pub struct Region {
    name: String,
    partition: &'static Partition,
}

/// What a text was expected to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {expected}")]
pub struct ArnError {
    /// As it was given, cut to a length fit for a log.
    pub text: String,
    /// Such as `AWS region`.
    pub expected: &'static str,
}

fn not(text: &str, expected: &'static str) -> ArnError {
    ArnError { text: text.chars().take(256).collect(), expected }
}

impl FromStr for Region {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let fits = |prefix: &&str| {
            let rest = text.strip_prefix(prefix).and_then(|rest| rest.split_once('-'));
            rest.is_some_and(|(word, number)| {
                matches!(word.len(), 1..=20)
                    && word.bytes().all(|byte| byte.is_ascii_lowercase())
                    && matches!(number.len(), 1..=2)
                    && number.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        let partition = PARTITIONS.iter().find(|partition| partition.region_prefixes.iter().any(fits));
        let partition = partition.ok_or_else(|| not(text, "AWS region"))?;
        Ok(Self { name: text.to_owned(), partition })
    }
}

impl Region {
    /// Such as `us-east-1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is part of.
    pub fn partition(&self) -> &'static Partition {
        self.partition
    }

    /// The host of a service in it.
    pub fn host(&self, service: &str) -> String {
        format!("{service}.{}.{}", self.name, self.partition.dns_suffix)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// `arn:<partition>:<service>:<region>:<account>:<resource>`.
struct Arn<'a> {
    partition: &'a str,
    service: &'a str,
    region: &'a str,
    account: &'a str,
    resource: &'a str,
}

impl<'a> Arn<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let arn = parts.next()?;
        let (partition, service, region, account) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let resource = parts.next()?;
        (arn == "arn" && is_account(account)).then_some(Self { partition, service, region, account, resource })
    }
}

/// The name of a task: `arn:<partition>:ecs:<region>:<account>:task/<cluster>/<id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskArn {
    /// Where it runs.
    pub region: Region,
    /// 12 digits.
    pub account: String,
    /// Name of its cluster; names of before 2019 have none.
    pub cluster: Option<String>,
    /// 32 hexadecimal digits; a UUID in names of before 2019.
    pub task_id: String,
}

impl FromStr for TaskArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let error = || not(text, "ARN of an ECS task");
        let arn = Arn::parse(text).filter(|arn| arn.service == "ecs").ok_or_else(error)?;
        let region: Region = arn.region.parse().map_err(|_| error())?;
        let (cluster, task_id) = match arn.resource.strip_prefix("task/").ok_or_else(error)?.split_once('/') {
            Some((cluster, task_id)) => (Some(cluster), task_id),
            None => (None, arn.resource.trim_start_matches("task/")),
        };
        if region.partition.id != arn.partition || !cluster.is_none_or(is_cluster) || !is_task_id(task_id) {
            return Err(error());
        }
        Ok(Self { region, account: arn.account.to_owned(), cluster: cluster.map(str::to_owned), task_id: task_id.to_owned() })
    }
}

/// As it was read.
impl fmt::Display for TaskArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:{}:ecs:{}:{}:task/", self.region.partition.id, self.region, self.account)?;
        if let Some(cluster) = &self.cluster {
            write!(f, "{cluster}/")?;
        }
        f.write_str(&self.task_id)
    }
}

/// Whether this can be the id of a task.
pub(crate) fn is_task_id(text: &str) -> bool {
    matches!(text.len(), 32 | 36) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

/// Whether this can be the name of a cluster.
pub(crate) fn is_cluster(text: &str) -> bool {
    matches!(text.len(), 1..=255) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The name of a cluster from its name or its ARN, which ECS writes both.
///
/// # Errors
/// When it is neither.
pub fn cluster_name(text: &str) -> Result<&str, ArnError> {
    let name = if text.starts_with("arn:") {
        Arn::parse(text).filter(|arn| arn.service == "ecs").and_then(|arn| arn.resource.strip_prefix("cluster/"))
    } else {
        Some(text)
    };
    name.filter(|name| is_cluster(name)).ok_or_else(|| not(text, "name or ARN of an ECS cluster"))
}

/// The ARN of an IAM role: `arn:<partition>:iam::<account>:role/<path>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleArn {
    /// 12 digits.
    pub account: String,
    /// Its name, without path.
    pub name: String,
}

impl FromStr for RoleArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let arn = Arn::parse(text).filter(|arn| arn.service == "iam" && arn.region.is_empty());
        let role = arn.and_then(|arn| Some((arn.account, arn.resource.strip_prefix("role/")?.rsplit('/').next()?)));
        let (account, name) = role.filter(|(_, name)| is_iam_name(name)).ok_or_else(|| not(text, "ARN of an IAM role"))?;
        Ok(Self { account: account.to_owned(), name: name.to_owned() })
    }
}

/// The ARN of who has assumed a role: `arn:<partition>:sts::<account>:assumed-role/<role>/<session>`. The role has no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssumedRoleArn {
    /// Such as `aws`.
    pub partition: String,
    /// 12 digits.
    pub account: String,
    /// The role's name.
    pub role: String,
    /// What ECS sets to the id of the task, EC2 to that of the instance.
    pub session: String,
}

impl FromStr for AssumedRoleArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let error = || not(text, "ARN of an assumed role");
        let arn = Arn::parse(text).filter(|arn| arn.service == "sts" && arn.region.is_empty()).ok_or_else(error)?;
        let names = arn.resource.strip_prefix("assumed-role/").and_then(|rest| rest.split_once('/')).ok_or_else(error)?;
        if !is_iam_name(names.0) || !is_iam_name(names.1) {
            return Err(error());
        }
        let (partition, account) = (arn.partition.to_owned(), arn.account.to_owned());
        Ok(Self { partition, account, role: names.0.to_owned(), session: names.1.to_owned() })
    }
}

/// Whether this can be the name of a role or of a session.
fn is_iam_name(text: &str) -> bool {
    matches!(text.len(), 1..=64) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_know_their_hosts() {
        for (region, partition, host) in [
            ("us-east-1", "aws", "sts.us-east-1.amazonaws.com"),
            ("ap-southeast-5", "aws", "sts.ap-southeast-5.amazonaws.com"),
            ("cn-north-1", "aws-cn", "sts.cn-north-1.amazonaws.com.cn"),
            ("us-gov-west-1", "aws-us-gov", "sts.us-gov-west-1.amazonaws.com"),
            ("us-iso-east-1", "aws-iso", "sts.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "aws-iso-b", "sts.us-isob-east-1.sc2s.sgov.gov"),
            ("eusc-de-east-1", "aws-eusc", "sts.eusc-de-east-1.amazonaws.eu"),
        ] {
            let parsed: Region = region.parse().unwrap();
            assert_eq!((parsed.partition().id, parsed.host("sts").as_str()), (partition, host));
        }
        for bad in ["", "us", "us-east", "us-east-", "us-east-1a", "US-EAST-1", "us-east-1.x", "x", "us-east-1/", "s3"] {
            assert!(bad.parse::<Region>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tasks_with_and_without_a_cluster() {
        let new = "arn:aws:ecs:us-east-1:123456789012:task/bookinfo/3a151358f03a4e32bf8cd401c1c74653";
        let arn: TaskArn = new.parse().unwrap();
        assert_eq!(arn.cluster.as_deref(), Some("bookinfo"));
        assert_eq!(arn.task_id, "3a151358f03a4e32bf8cd401c1c74653");
        assert_eq!(arn.to_string(), new);
        let old = "arn:aws-cn:ecs:cn-north-1:123456789012:task/1dc5c17a-422b-4dc4-b493-371970c6c4d6";
        let arn: TaskArn = old.parse().unwrap();
        assert_eq!((arn.cluster.as_deref(), arn.to_string().as_str()), (None, old));
        for (from, to) in [
            ("arn:aws:", "arn:aws-cn:"),
            ("ecs", "sts"),
            ("us-east-1", ""),
            ("123456789012", "12345678901"),
            ("task/", "cluster/"),
            ("/bookinfo/", "/book/info/"),
            ("/bookinfo/", "/book info/"),
            ("3a15", "3A15"),
            ("3a15", ""),
        ] {
            assert!(new.replace(from, to).parse::<TaskArn>().is_err(), "{from} {to}");
        }
    }

    #[test]
    fn clusters_by_name_and_by_arn() {
        assert_eq!(cluster_name("Book_info-1").unwrap(), "Book_info-1");
        assert_eq!(cluster_name("arn:aws:ecs:us-east-1:123456789012:cluster/bookinfo").unwrap(), "bookinfo");
        for bad in ["", "a/b", "arn:aws:ecs:us-east-1:123456789012:task/bookinfo", "arn:aws:iam::123456789012:cluster/a", "a b"] {
            assert!(cluster_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn roles_without_their_path() {
        let role: RoleArn = "arn:aws:iam::123456789012:role/some/path/task-role".parse().unwrap();
        assert_eq!((role.account.as_str(), role.name.as_str()), ("123456789012", "task-role"));
        let assumed: AssumedRoleArn = "arn:aws:sts::123456789012:assumed-role/task-role/3a15".parse().unwrap();
        assert_eq!((assumed.role.as_str(), assumed.session.as_str()), ("task-role", "3a15"));
        for bad in [
            "arn:aws:iam::123456789012:user/task-role",
            "arn:aws:sts::123456789012:federated-user/3a15",
            "arn:aws:sts::123456789012:assumed-role/task-role",
            "arn:aws:sts::123456789012:assumed-role/task-role/3a15/x",
            "arn:aws:sts::123456789012:assumed-role//3a15",
            "arn:aws:iam::123456789012:root",
        ] {
            assert!(bad.parse::<AssumedRoleArn>().is_err() && bad.parse::<RoleArn>().is_err(), "{bad}");
        }
    }
}
