//! The part of `skiff plane`'s arguments that says which credentials are believed, and what verifies them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::aws::credentials::CredentialProvider;
use crate::aws::ecs::{EcsOptions, EcsVerifier};
use crate::aws::instance::InstanceCertificates;
use crate::aws::verifier::StsVerifier;
use crate::exit::Failure;
use crate::fetch::{Client, Endpoint, TrustedRoots};
use crate::identity::Clock;
use crate::onboarding::aws::AwsVerifier;
use crate::onboarding::jwt::JwtVerifier;
use crate::plane::{Verifiers, read_issuers};

/// Which credentials are believed.
#[derive(Debug, Args)]
pub(super) struct CredentialArgs {
    /// Whether ECS has to confirm where a task runs; without it no policy that names regions, zones or clusters admits a task.
    #[arg(long, env = "SKIFF_PLANE_AWS_DESCRIBE_TASKS", value_enum, default_value_t = DescribeTasks::Required)]
    pub(super) aws_describe_tasks: DescribeTasks,
    /// Role in whose name tasks are asked for; {account} and {partition} stand for those of the task.
    #[arg(long, env = "SKIFF_PLANE_AWS_ROLE_ARN")]
    aws_role_arn: Option<String>,
    /// Folder of AWS's RSA-2048 certificates for identity documents of instances, as <region>.pem; without it no policy that names
    /// regions or zones admits an instance.
    #[arg(long, env = "SKIFF_PLANE_AWS_INSTANCE_CERTS")]
    aws_instance_certs: Option<PathBuf>,
    /// Asked instead of the region's STS.
    #[arg(long, env = "AWS_ENDPOINT_URL_STS", value_parser = parse_endpoint)]
    aws_sts_endpoint: Option<Endpoint>,
    /// Asked instead of the region's ECS.
    #[arg(long, env = "AWS_ENDPOINT_URL_ECS", value_parser = parse_endpoint)]
    aws_ecs_endpoint: Option<Endpoint>,
    /// YAML file of the issuers of tokens that are believed: `issuers: [{issuer: …}]`.
    #[arg(long, env = "SKIFF_PLANE_JWT_ISSUERS")]
    jwt_issuers: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum DescribeTasks {
    /// ecs:DescribeTasks is asked.
    Required,
    /// It is not.
    Off,
}

impl CredentialArgs {
    pub(super) fn verifiers(&self, uid: &str, clock: &Clock) -> Result<Verifiers, Failure> {
        let client = Client::new(TrustedRoots::System);
        let environment = |name: &str| std::env::var(name).ok();
        let ecs = match self.aws_describe_tasks {
            DescribeTasks::Off => None,
            DescribeTasks::Required => {
                let credentials = CredentialProvider::from_environment(&environment, &client, clock.clone());
                let credentials = credentials.map_err(|error| Failure::Configuration(error.to_string()))?;
                let options = EcsOptions {
                    ecs_endpoint: self.aws_ecs_endpoint.clone(),
                    sts_endpoint: self.aws_sts_endpoint.clone(),
                    role_arn: self.aws_role_arn.clone(),
                };
                Some(EcsVerifier::new(client.clone(), Arc::new(credentials), options, clock.clone()))
            }
        };
        let sts = StsVerifier::new(client.clone(), self.aws_sts_endpoint.clone());
        let jwt = match &self.jwt_issuers {
            None => None,
            Some(file) => {
                let text =
                    fs::read_to_string(file).map_err(|error| Failure::Configuration(format!("{}: {error}", file.display())))?;
                let issuers = read_issuers(file.clone(), &text).map_err(|error| Failure::Configuration(error.to_string()))?;
                Some(JwtVerifier::new(issuers, uid.to_owned(), &client, clock.clone()))
            }
        };
        let certificates = self.aws_instance_certs.as_deref().map(InstanceCertificates::read).transpose();
        let certificates =
            certificates.map_err(|error| Failure::Configuration(format!("SKIFF_PLANE_AWS_INSTANCE_CERTS: {error}")))?;
        let aws = AwsVerifier::new(sts, ecs, clock.clone()).with_certificates(certificates);
        Ok(Verifiers { aws: Some(aws), jwt })
    }
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse().map_err(|error: crate::fetch::EndpointError| error.to_string())
}
