//! Bare `skiff` for a workload that joins through an onboarding plane: what it is given, and what it runs with once it has joined.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use super::super::environment::Environment;
use super::{RunArgs, parse_addresses, wrong};
use crate::exit::Failure;
use crate::onboarding::config::{self, Settings};
use crate::onboarding::credential::ObtainError;
use crate::onboarding::{HostError, HostSettings, Joined, Onboarding, PrepareError};
use crate::shutdown::Shutdown;
use crate::sidecar::{SidecarConfig, Sources};

/// What is left of a task's time to stop when the sidecar ends by itself.
const STOP_RESERVE: Duration = Duration::from_secs(2);

/// What there is to run.
pub(in super::super) enum Plan {
    /// A sidecar that knows where its configuration comes from.
    Sidecar(Box<(SidecarConfig, Sources)>),
    /// A workload that has to join first.
    Onboarding(Box<Join>),
}

/// A workload that joins through an onboarding plane.
pub(in super::super) struct Join {
    settings: Settings,
    host: HostSettings,
    /// For the platform.
    environment: Environment,
    /// For istiod.
    metadata: Map<String, Json>,
    /// Whose node comes with the registration.
    config: SidecarConfig,
}

impl RunArgs {
    /// What a check of the environment of an onboarded workload comes to; `None` when it is none.
    ///
    /// # Errors
    /// Names the variable or file, and what is wrong with it.
    pub(in super::super) fn check_onboarding(&self) -> Result<Option<String>, Failure> {
        let environment = Environment::of_process()?;
        if self.config.is_some() {
            return Ok(None);
        }
        let folder = Path::new(config::FOLDER);
        let settings = Settings::read(|name| environment.get(name), folder).map_err(wrong)?;
        Ok(settings.map(|Settings { onboarding, .. }| {
            let (group, endpoint) = (onboarding.workload_group, onboarding.endpoint);
            format!("joins {}/{} at {}:{}, without a fault\n", group.namespace, group.name, endpoint.host, endpoint.port)
        }))
    }

    /// A workload that joins as `settings` say.
    pub(super) fn join(self, environment: Environment, settings: Settings) -> Result<Join, Failure> {
        let deadline = self.drain_deadline.unwrap_or_else(|| self.stop_timeout.saturating_sub(STOP_RESERVE));
        let addresses = |name: &str| {
            let parsed = environment.parse(name, "addresses separated by commas", parse_addresses)?;
            Ok::<_, Failure>(parsed.unwrap_or_default())
        };
        let own =
            if self.workload.instance_ip.is_empty() { addresses("INSTANCE_IP")? } else { self.workload.instance_ip.clone() };
        let containers = environment.get("SKIFF_APP_CONTAINERS").unwrap_or_default().split(',').map(str::trim);
        let host = HostSettings {
            own,
            advertised: addresses("SKIFF_ADVERTISED_ADDRESS")?,
            containers: containers.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        };
        let config = self.sidecar(&environment, false, deadline)?;
        Ok(Join { host, metadata: environment.node_metadata()?, config, settings, environment })
    }
}

impl Plan {
    /// What the sidecar is run with, once that is known; `None` when the process is asked to stop before.
    ///
    /// # Errors
    /// When others cannot reach this workload.
    pub(in super::super) async fn sources(self, shutdown: &Shutdown) -> Result<Option<(SidecarConfig, Sources)>, Failure> {
        let join = match self {
            Self::Sidecar(sidecar) => return Ok(Some(*sidecar)),
            Self::Onboarding(join) => join,
        };
        let Join { settings, host, environment, metadata, mut config } = *join;
        let variables = |name: &str| environment.get(name).map(str::to_owned);
        let onboarding = tokio::select! {
            prepared = Onboarding::prepare(&settings, host, &variables) => prepared.map_err(unprepared)?,
            () = shutdown.requested() => return Ok(None),
        };
        let Some(Joined { node, local, sources }) = onboarding.join(metadata, shutdown).await else { return Ok(None) };
        config.node = node;
        config.proxy.node = local;
        Ok(Some((config, sources)))
    }
}

/// What has to be repaired by whoever has written the task's definition, or what may be better in a moment.
#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn unprepared(error: PrepareError) -> Failure {
    let reason = error.to_string();
    match error {
        PrepareError::Host(HostError::Unreachable(_) | HostError::NoAddress)
        | PrepareError::Credential(ObtainError::NoPlatform | ObtainError::NoTaskRole) => Failure::Configuration(reason),
        _ => Failure::Unavailable(reason),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::super::Cli;
    use super::*;

    fn plan(arguments: &[&str], environment: &Environment) -> Plan {
        let args = Cli::try_parse_from(arguments).unwrap().run;
        args.resolve_in(environment.clone(), Path::new("/nowhere")).unwrap()
    }

    const ONBOARDING: &str = "{apiVersion: config.agent.onboarding.tetrate.io/v1alpha1, kind: OnboardingConfiguration,
        onboardingEndpoint: {host: plane.example}, workloadGroup: {namespace: bookinfo, name: ratings},}";

    #[test]
    fn onboarding_goes_before_a_mesh_and_after_documents() {
        let folder = tempfile::tempdir().unwrap();
        let variables = [("ONBOARDING_CONFIG", ONBOARDING), ("PROXY_CONFIG", "{}"), ("SKIFF_APP_CONTAINERS", "a, b")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = Environment::read(variables, folder.path()).unwrap();
        let Plan::Onboarding(join) = plan(&["skiff"], &environment) else { panic!("no onboarding") };
        assert_eq!((join.host.containers.len(), join.config.drain_deadline), (2, Duration::from_secs(28)));
        let arguments = ["skiff", "--stop-timeout", "120s", "--drain-deadline", "5s"];
        for (count, seconds) in [(3, 118), (5, 5)] {
            let Plan::Onboarding(join) = plan(&arguments[..count], &environment) else { panic!("no onboarding") };
            assert_eq!(join.config.drain_deadline, Duration::from_secs(seconds));
        }
        let arguments = ["skiff", "--config", folder.path().to_str().unwrap()];
        assert!(matches!(plan(&arguments, &environment), Plan::Sidecar(..)));
    }

    #[test]
    fn a_wrong_onboarding_configuration_ends_with_78() {
        for (name, value) in [("ONBOARDING_CONFIG", "{"), ("SKIFF_ADVERTISED_ADDRESS", "here")] {
            let mut variables = vec![("ONBOARDING_CONFIG".to_owned(), ONBOARDING.to_owned())];
            variables.push((name.to_owned(), value.to_owned()));
            let environment = Environment::read(variables, "/nowhere").unwrap();
            let args = Cli::try_parse_from(["skiff"]).unwrap().run;
            let failure = args.resolve_in(environment, Path::new("/nowhere")).err().unwrap();
            assert!(failure.code() == 78 && failure.to_string().starts_with(name), "{failure}");
        }
    }
}
