//! `skiff plane get`: objects of the running plane, as kubectl shows them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use clap::{Subcommand, ValueEnum};

use super::super::print;
use super::DEFAULT_ADMIN;
use crate::exit::Failure;
use crate::plane::fetch_registrations;
use crate::plane::objects::WorkloadAutoRegistration;

/// What there is to see.
#[derive(Debug, Subcommand)]
pub(super) enum Shown {
    /// WorkloadAutoRegistrations: the workloads that have registered.
    #[command(aliases = ["wars", "workloadautoregistration", "workloadautoregistrations"])]
    War {
        /// Of one namespace only.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Whole objects instead of a table.
        #[arg(short, long, value_enum)]
        output: Option<Output>,
        /// The plane's page.
        #[arg(long, env = "SKIFF_PLANE_ADMIN_ADDRESS", default_value_t = DEFAULT_ADMIN)]
        admin_address: SocketAddr,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Yaml,
    Json,
}

impl Shown {
    pub(super) async fn show(self) -> Result<(), Failure> {
        let Self::War { namespace, output, admin_address } = self;
        let fetched = fetch_registrations(admin_address, namespace.as_deref()).await;
        let registrations = fetched.map_err(Failure::Unavailable)?;
        let internal = |error: &dyn std::fmt::Display| Failure::Internal(error.to_string());
        match output {
            None if registrations.is_empty() => print("No resources found\n"),
            None => print(&table(&registrations, namespace.is_none(), SystemTime::now())),
            Some(Output::Json) => {
                print(&(serde_json::to_string_pretty(&registrations).map_err(|error| internal(&error))? + "\n"))
            }
            Some(Output::Yaml) => {
                let documents: Result<Vec<_>, _> = registrations.iter().map(serde_saphyr::to_string).collect();
                print(&documents.map_err(|error| internal(&error))?.join("---\n"))
            }
        }
    }
}

/// The columns of `kubectl get war`.
fn table(registrations: &[WorkloadAutoRegistration], all: bool, now: SystemTime) -> String {
    let mut rows = vec![["NAMESPACE", "NAME", "AGENT CONNECTED", "AGE"].map(str::to_owned)];
    for registration in registrations {
        let connected = registration.status.agent_connected().map(|condition| condition.status.to_string());
        let age = registration.metadata.creation_timestamp.map(|at| now.duration_since(at.time()).unwrap_or_default());
        rows.push([
            registration.metadata.namespace.clone(),
            registration.metadata.name.clone(),
            connected.unwrap_or_default(),
            age.map(shown_age).unwrap_or_default(),
        ]);
    }
    let skipped = usize::from(!all);
    let widths: Vec<_> = (0..4).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    rows.iter().fold(String::new(), |mut text, row| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths).skip(skipped) {
            let _ = write!(line, "{cell:width$}   ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

/// As kubectl shows ages: two units at the most.
fn shown_age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let rest = |value: u64, unit: &str| if value > 0 { format!("{value}{unit}") } else { String::new() };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{minutes}m{}", rest(seconds % 60, "s")),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => format!("{hours}h{}", rest(minutes % 60, "m")),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => format!("{days}d{}", rest(hours % 24, "h")),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_look_as_kubectl_shows_them() {
        let text = "apiVersion: runtime.onboarding.tetrate.io/v1alpha1\nkind: WorkloadAutoRegistration\n\
            metadata: {name: ratings-jwt-a-vm-1, namespace: bookinfo, creationTimestamp: '2026-11-29T15:00:00Z'}\nspec:\n\
            \x20 identity: {jwt: {issuer: 'https://a.example', subject: vm-1}}\n  registration:\n    agent: {version: 0.1.0}\n\
            \x20   sidecar: {istio: {version: 1.28.0}}\n    host: {addresses: [{ip: 10.0.0.1, type: VPC}]}\n\
            status: {conditions: [{type: AgentConnected, status: 'True'}]}\n";
        let read = crate::plane::objects::read(&[("a.yaml".into(), text.to_owned())], "default").unwrap();
        let now = "2026-11-29T15:01:05Z".parse::<crate::plane::objects::Timestamp>().unwrap().time();
        let expected = "NAME                 AGENT CONNECTED   AGE\nratings-jwt-a-vm-1   True              65s\n";
        assert_eq!(table(&read.registrations, false, now), expected);
        assert!(table(&read.registrations, true, now).starts_with("NAMESPACE   NAME "));
        for (seconds, age) in [(119, "119s"), (192, "3m12s"), (660, "11m"), (11_100, "3h5m"), (36_000, "10h"), (180_000, "2d2h")]
        {
            assert_eq!(shown_age(Duration::from_secs(seconds)), age);
        }
        let yaml = serde_saphyr::to_string(&read.registrations[0]).unwrap();
        let again = crate::plane::objects::read(&[("b.yaml".into(), yaml.clone())], "default");
        assert_eq!(again.as_ref().map(|again| &again.registrations), Ok(&read.registrations), "{yaml}");
    }
}
