//! Who may join what: OnboardingPolicies, evaluated and explained. Nobody may until a rule says so.

use std::borrow::Borrow;
use std::fmt;

use super::objects::{
    AllowRule, AwsKindMatcher, AwsMatcher, JwtMatcher, ObjectKey, OnboardingPolicy, WorkloadGroup, WorkloadMatcher,
};
use crate::onboarding::identity::{AwsIdentity, AwsKind, JwtIdentity, WorkloadIdentity};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The verified identity.
    pub identity: WorkloadIdentity,
    /// Whether AWS has said where it runs. Region, zone and cluster are the workload's own words otherwise, and no rule that
    /// names any of them admits it.
    pub placement_verified: bool,
}

/// What the policies say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This rule admits it.
    Admitted(Rule),
    /// None does; why not, rule by rule.
    Denied(Vec<Mismatch>),
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The policy.
    pub policy: ObjectKey,
    /// Its place in `spec.allow`, from 0.
    pub index: usize,
}

/// Why a rule does not admit a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The rule; of a policy in another namespace, the first one stands for all.
    pub rule: Rule,
    /// Each with the field that it is about.
    pub reasons: Vec<String>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnboardingPolicy {} spec.allow[{}]", self.policy, self.index)
    }
}

/// Whether `subject` may join `group`. Policies of other namespaces than the group's are only listed.
pub fn evaluate<P: Borrow<OnboardingPolicy>>(subject: &Subject, group: &WorkloadGroup, policies: &[P]) -> Verdict {
    let mut mismatches = Vec::new();
    for policy in policies.iter().map(Borrow::borrow) {
        let rule = |index| Rule { policy: policy.key(), index };
        if policy.metadata.namespace != group.metadata.namespace {
            let reason = format!(
                "metadata.namespace: {:?} speaks for groups there, not in {:?}",
                policy.metadata.namespace, group.metadata.namespace
            );
            mismatches.push(Mismatch { rule: rule(0), reasons: vec![reason] });
            continue;
        }
        for (index, allow) in policy.spec.allow.iter().enumerate() {
            let reasons = mismatch(subject, group, allow);
            if reasons.is_empty() {
                return Verdict::Admitted(rule(index));
            }
            mismatches.push(Mismatch { rule: rule(index), reasons });
        }
    }
    Verdict::Denied(mismatches)
}

/// Why a rule does not speak for it; empty when it does.
fn mismatch(subject: &Subject, group: &WorkloadGroup, allow: &AllowRule) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut found = false;
    for (index, matcher) in allow.workloads.iter().enumerate() {
        match unlike(subject, matcher) {
            None => found = true,
            Some(reason) => reasons.push(format!("workloads[{index}].{reason}")),
        }
    }
    if found {
        reasons.clear();
    }
    let groups = allow.onboard_to.iter().enumerate().map(|(index, onboard_to)| {
        let mismatch = onboard_to.workload_group_selector.mismatch(&group.metadata.labels)?;
        Some(format!("onboardTo[{index}].workloadGroupSelector: the group's {mismatch}"))
    });
    let groups: Vec<_> = groups.collect();
    if groups.iter().all(Option::is_some) {
        reasons.extend(groups.into_iter().flatten());
    }
    reasons
}

/// The first field that does not fit.
fn unlike(subject: &Subject, matcher: &WorkloadMatcher) -> Option<String> {
    match (matcher, &subject.identity) {
        (WorkloadMatcher::Aws(matcher), WorkloadIdentity::Aws(identity)) => {
            unlike_aws(matcher, identity, subject.placement_verified).map(|reason| format!("aws.{reason}"))
        }
        (WorkloadMatcher::Jwt(matcher), WorkloadIdentity::Jwt(identity)) => {
            unlike_jwt(matcher, identity).map(|reason| format!("jwt.{reason}"))
        }
        (WorkloadMatcher::Aws(_), WorkloadIdentity::Jwt(_)) => Some("aws: the workload has shown a JSON Web Token".to_owned()),
        (WorkloadMatcher::Jwt(_), WorkloadIdentity::Aws(_)) => Some("jwt: the workload is on AWS".to_owned()),
    }
}

fn unlike_aws(matcher: &AwsMatcher, identity: &AwsIdentity, verified: bool) -> Option<String> {
    let accounts = matcher.accounts.iter().any(|account| account.as_str() == identity.account);
    if !accounts {
        let listed: Vec<_> = matcher.accounts.iter().map(super::objects::Account::as_str).collect();
        return Some(format!("accounts: {:?} is not among {}", identity.account, listed.join(", ")));
    }
    let placed = |field: &str, listed: &[String], value: &str| {
        if !listed.is_empty() && !verified {
            let why = match &identity.kind {
                AwsKind::Ecs(_) => "AWS was not asked for it (ecs:DescribeTasks is off)",
                AwsKind::Ec2(_) => "no identity document with AWS's signature was verified (--aws-instance-certs)",
            };
            return Some(format!("{field}: {why}, so that no value counts"));
        }
        outside(field, listed, value)
    };
    outside("partitions", &matcher.partitions, &identity.partition)
        .or_else(|| placed("regions", &matcher.regions, &identity.region))
        .or_else(|| placed("zones", &matcher.zones, &identity.zone))
        .or_else(|| match (&matcher.kind, &identity.kind) {
            (AwsKindMatcher::Ec2(wanted), AwsKind::Ec2(ec2)) => {
                outside("ec2.iamRoleNames", &wanted.iam_role_names, &ec2.iam_role.name)
            }
            (AwsKindMatcher::Ecs(wanted), AwsKind::Ecs(ecs)) => placed("ecs.clusters", &wanted.clusters, &ecs.cluster)
                .or_else(|| outside("ecs.iamRoleNames", &wanted.iam_role_names, &ecs.iam_role.name)),
            (AwsKindMatcher::Ec2(_), AwsKind::Ecs(_)) => Some("ec2: the workload is a task of ECS".to_owned()),
            (AwsKindMatcher::Ecs(_), AwsKind::Ec2(_)) => Some("ecs: the workload is a machine of EC2".to_owned()),
        })
}

fn unlike_jwt(matcher: &JwtMatcher, identity: &JwtIdentity) -> Option<String> {
    if matcher.issuer.as_str() != identity.issuer {
        return Some(format!("issuer: {:?} is not {}", identity.issuer, matcher.issuer.as_str()));
    }
    outside("subjects", &matcher.subjects, &identity.subject).or_else(|| {
        matcher.attributes.iter().enumerate().find_map(|(index, wanted)| {
            let had = identity.attributes.get(&wanted.name).map_or(&[][..], Vec::as_slice);
            let listed = wanted.values.join(", ");
            (!had.iter().any(|value| wanted.values.contains(value)))
                .then(|| format!("attributes[{index}]: {} is {had:?}, none of which is among {listed}", wanted.name))
        })
    })
}

/// An empty list is any value.
fn outside(field: &str, listed: &[String], value: &str) -> Option<String> {
    let admitted = listed.is_empty() || listed.iter().any(|one| one == value);
    (!admitted).then(|| format!("{field}: {value:?} is not among {}", listed.join(", ")))
}

#[cfg(test)]
mod tests;
