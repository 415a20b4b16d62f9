//! `authorization.onboarding.tetrate.io/v1alpha1` OnboardingPolicy.

use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

use super::selector::LabelSelector;
use super::{NoStatus, Spec};
use crate::onboarding::identity::is_account;

/// Which workloads may join which WorkloadGroups of its namespace. Any rule of any policy is enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnboardingPolicySpec {
    /// The rules.
    pub allow: NonEmpty<AllowRule>,
}

impl Spec for OnboardingPolicySpec {
    const KIND: &'static str = "OnboardingPolicy";
    const API_VERSIONS: &'static [&'static str] = &["authorization.onboarding.tetrate.io/v1alpha1"];
    type Status = NoStatus;
}

/// Any of these workloads may join any of these groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowRule {
    /// Who.
    pub workloads: NonEmpty<WorkloadMatcher>,
    /// Where.
    pub onboard_to: NonEmpty<OnboardTo>,
}

/// Workloads of one kind of identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkloadMatcher {
    /// On AWS.
    Aws(AwsMatcher),
    /// With a JSON Web Token.
    Jwt(JwtMatcher),
}

/// Workloads on AWS. Where a list is empty, anything is meant; accounts have to be named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawAwsMatcher")]
pub struct AwsMatcher {
    /// `aws`, `aws-cn`, `aws-us-gov`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<String>,
    /// At least one.
    pub accounts: NonEmpty<Account>,
    /// Regions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// Availability zones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// What they run on.
    #[serde(flatten)]
    pub kind: AwsKindMatcher,
}

/// What workloads on AWS run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AwsKindMatcher {
    /// Virtual machines.
    Ec2(Ec2Matcher),
    /// Tasks of the Elastic Container Service.
    Ecs(EcsMatcher),
}

/// Virtual machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ec2Matcher {
    /// Names of roles, without path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub iam_role_names: Vec<String>,
}

/// Tasks of the Elastic Container Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EcsMatcher {
    /// Names of clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<String>,
    /// Names of task roles, without path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub iam_role_names: Vec<String>,
}

/// Workloads with a JSON Web Token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtMatcher {
    /// As in JwtIssuer.
    pub issuer: IssuerUrl,
    /// Any subject when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// All of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<AttributeMatcher>,
}

/// An attribute that is one of some values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeMatcher {
    /// As JwtIssuer's `tokenFields` makes it.
    pub name: String,
    /// Any of them.
    pub values: NonEmpty<String>,
}

/// WorkloadGroups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnboardTo {
    /// By the labels in their metadata.
    pub workload_group_selector: LabelSelector,
}

/// The id of an AWS account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Account(String);

impl Account {
    /// The 12 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Account {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if is_account(&text) { Ok(Self(text)) } else { Err(format!("{text:?}: expected an account of 12 digits, in quotes")) }
    }
}

/// The name of an issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct IssuerUrl(String);

impl IssuerUrl {
    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IssuerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let named = text.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace));
        if named { Ok(Self(text)) } else { Err(format!("{text:?}: expected an https:// URL")) }
    }
}

/// A list of at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NonEmpty<T>(Vec<T>);

impl<T> Deref for NonEmpty<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> TryFrom<Vec<T>> for NonEmpty<T> {
    type Error = &'static str;

    fn try_from(list: Vec<T>) -> Result<Self, Self::Error> {
        if list.is_empty() { Err("an empty list: expected at least one") } else { Ok(Self(list)) }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for NonEmpty<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAwsMatcher {
    #[serde(default)]
    partitions: Vec<String>,
    accounts: NonEmpty<Account>,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    zones: Vec<String>,
    ec2: Option<Ec2Matcher>,
    ecs: Option<EcsMatcher>,
}

impl TryFrom<RawAwsMatcher> for AwsMatcher {
    type Error = &'static str;

    fn try_from(raw: RawAwsMatcher) -> Result<Self, Self::Error> {
        let RawAwsMatcher { partitions, accounts, regions, zones, ec2, ecs } = raw;
        let kind = match (ec2, ecs) {
            (Some(ec2), None) => AwsKindMatcher::Ec2(ec2),
            (None, Some(ecs)) => AwsKindMatcher::Ecs(ecs),
            _ => return Err("expected exactly one of ec2, ecs; `ecs: {}` is any task"),
        };
        Ok(Self { partitions, accounts, regions, zones, kind })
    }
}
