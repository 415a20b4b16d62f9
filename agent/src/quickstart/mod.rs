//! `skiff quickstart`: Bookinfo in one process, so that the first `curl` through a mesh takes seconds.
//!
//! Two sidecars, each a data plane of its own, join an onboarding plane, as tasks and machines do: nothing in it is a special case.
//! They carry traffic between two stand-in applications over mutual TLS, configured by the Istio YAML of `examples/bookinfo`, which
//! the plane sends them. With `--check` it sends the requests itself and says whether each did what it should.

mod access_logs;
mod bookinfo;
mod check;
mod folder;
mod plane;
mod scenarios;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use tokio::task::JoinSet;

pub use bookinfo::{DETAILS, Member, RATINGS};

use crate::client;
use crate::exit::Failure;
use crate::logging::LogControl;
use crate::metrics::Buckets;
use crate::onboarding::config::Settings;
use crate::onboarding::credential::JWT_FILE_VARIABLE;
use crate::onboarding::{HostSettings, Joined, Onboarding};
use crate::plane::Plane;
use crate::shutdown::Shutdown;
use crate::sidecar::{ConfigurationSource, Document, Sidecar, SidecarConfig};
use crate::stand_in::StandIn;
use check::Outcome;
use folder::Folder;

/// From the start until both sidecars are ready.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// Of one request that finds out whether one member knows the other.
const ACQUAINTANCE: Duration = Duration::from_secs(1);
/// Nobody waits for a quickstart to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// What `skiff quickstart` is run with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Send the requests of the check, then end.
    pub check: bool,
    /// Bounds of histograms.
    pub histograms: &'static [Buckets],
}

/// Runs until it is asked to stop, or until the check is done.
///
/// # Errors
/// When an address is in use, a sidecar does not become ready, or a scenario of the check failed.
pub async fn run(options: &Options, logging: &LogControl, shutdown: &Shutdown) -> Result<(), Failure> {
    let mut mesh = Mesh::start(options, logging, shutdown).await?;
    let mut out = io::stdout();
    let outcome = if options.check {
        let checked = tokio::select! {
            checked = check::run(&mut mesh, &mut out) => checked.map_err(|error| Failure::Internal(error.to_string())),
            () = shutdown.requested() => Err(Failure::No("interrupted".to_owned())),
        };
        shutdown.request();
        checked.and_then(verdict)
    } else {
        introduce(&mesh, &mut out).map_err(|error| Failure::Internal(error.to_string()))
    };
    mesh.finish(shutdown).await.and(outcome)
}

/// Everything that runs.
pub(crate) struct Mesh {
    folder: Folder,
    plane: Plane,
    ratings: StandIn,
    details: StandIn,
    sidecars: JoinSet<Result<(), Failure>>,
}

impl Mesh {
    async fn start(options: &Options, logging: &LogControl, shutdown: &Shutdown) -> Result<Self, Failure> {
        let folder = Folder::create().map_err(|error| Failure::Unavailable(error.to_string()))?;
        let (ratings, details) = (start_app(&RATINGS).await?, start_app(&DETAILS).await?);
        let plane = plane::start(&folder).await?;
        let mut mesh = Self { folder, plane, ratings, details, sidecars: JoinSet::new() };
        let mut told = Vec::new();
        for member in [&RATINGS, &DETAILS] {
            let joined = tokio::time::timeout(START_DEADLINE, mesh.join(member, shutdown));
            let late = |_| Failure::Unavailable(format!("{} could not join the mesh", member.name));
            let Joined { node, local, mut sources } = joined.await.map_err(late)??;
            if let ConfigurationSource::Pushed { documents, .. } = &sources.configuration {
                told.push(documents.clone());
            }
            sources.configuration = match sources.configuration {
                ConfigurationSource::Pushed { documents, translate } if options.check => {
                    let translate = access_logs::redirected(translate, mesh.folder.access_log(member));
                    ConfigurationSource::Pushed { documents, translate }
                }
                other => other,
            };
            let config = SidecarConfig {
                node,
                admin_address: member.admin,
                status: None,
                drain_deadline: DRAIN_DEADLINE,
                minimum_drain: Duration::ZERO,
                // Two data planes share the machine with everything else.
                proxy: skiff_proxy::Options { workers: 1, node: local, ..skiff_proxy::Options::default() },
                histograms: options.histograms,
            };
            let sidecar = Sidecar::start(config, sources, logging.clone(), shutdown.clone()).await?;
            let readiness = sidecar.readiness();
            mesh.sidecars.spawn(sidecar.run());
            if tokio::time::timeout(START_DEADLINE, readiness.ready()).await.is_err() {
                let reason = readiness.reason().unwrap_or_default();
                return Err(Failure::Unavailable(format!("the sidecar of {} is not ready: {reason}", member.name)));
            }
        }
        let acquainted = async {
            for documents in &mut told {
                let _ = documents.wait_for(|documents| documents.as_deref().is_some_and(tells_of_both)).await;
            }
            acquaint(&RATINGS, &DETAILS, "/details/0").await;
            acquaint(&DETAILS, &RATINGS, "/ratings/0").await;
        };
        let late = |_| Failure::Unavailable("the plane has not told the workloads of each other".to_owned());
        tokio::time::timeout(START_DEADLINE, acquainted).await.map_err(late)?;
        Ok(mesh)
    }

    /// What a member's sidecar is run with, once the plane has let it in.
    async fn join(&self, member: &Member, shutdown: &Shutdown) -> Result<Joined, Failure> {
        let configuration = member.onboarding_configuration(self.plane.address());
        let roots = self.plane.root_pem().to_owned();
        let given = |name: &str| match name {
            "ONBOARDING_CONFIG" => Some(configuration.as_str()),
            "ONBOARDING_AGENT_ROOT_CERTS" => Some(roots.as_str()),
            _ => None,
        };
        // No file of the machine counts, only what is given.
        let settings = Settings::read(given, &self.folder.plane().join("none"));
        let settings = settings.map_err(|error| Failure::Internal(error.to_string()))?;
        let settings = settings.ok_or_else(|| Failure::Internal("nothing to join".to_owned()))?;
        let token = self.folder.token(member).display().to_string();
        let variables = |name: &str| (name == JWT_FILE_VARIABLE).then(|| token.clone());
        let own = vec![member.ingress.ip()];
        let host = HostSettings { advertised: own.clone(), own, ..HostSettings::default() };
        let onboarding = Onboarding::prepare(&settings, host, &variables).await;
        let onboarding = onboarding.map_err(|error| Failure::Unavailable(error.to_string()))?;
        let joined = onboarding.join(serde_json::Map::new(), shutdown).await;
        joined.ok_or_else(|| Failure::No("interrupted".to_owned()))
    }

    /// The stand-in of a member.
    fn app(&mut self, member: &Member) -> &mut StandIn {
        if member.name == RATINGS.name { &mut self.ratings } else { &mut self.details }
    }

    /// Waits until the sidecars have ended. One without the other is no mesh: when one fails, so does all.
    async fn finish(mut self, shutdown: &Shutdown) -> Result<(), Failure> {
        let mut outcome = Ok(());
        while let Some(ended) = self.sidecars.join_next().await {
            outcome = outcome.and(ended.unwrap_or_else(|error| Err(Failure::Internal(error.to_string()))));
            if outcome.is_err() {
                shutdown.request();
            }
        }
        outcome
    }
}

/// Whether a sidecar has been sent the entries of both members, which the plane does a moment after they are healthy.
fn tells_of_both(documents: &[Document]) -> bool {
    [&RATINGS, &DETAILS].iter().all(|member| {
        let address = format!("\"address\":\"{}\"", member.ingress.ip());
        documents.iter().any(|(_, yaml)| yaml.contains(&address))
    })
}

/// Until the sidecar of one member has made something of the entry of the other.
async fn acquaint(from: &Member, to: &Member, path: &'static str) {
    loop {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = http::Uri::from_static(path);
        if let Ok(host) = to.host_and_port().parse() {
            request.headers_mut().insert(header::HOST, host);
        }
        match client::send(from.egress, request, ACQUAINTANCE).await {
            Ok(answer) if answer.status().is_success() => return,
            _ => tokio::time::sleep(ACQUAINTANCE / 50).await,
        }
    }
}

async fn start_app(member: &Member) -> Result<StandIn, Failure> {
    let named = |error| {
        Failure::Unavailable(format!("the {} application: cannot listen on {}: {error}", member.name, member.app_address))
    };
    StandIn::start(member.app, member.app_address.port()).await.map_err(named)
}

fn verdict(outcome: Outcome) -> Result<(), Failure> {
    match outcome.failed {
        0 => Ok(()),
        failed => Err(Failure::No(format!("{failed} of {} scenarios did not do what they should", outcome.total))),
    }
}

fn introduce(mesh: &Mesh, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Two services of Istio's Bookinfo run in this process, each behind its own sidecar:\n")?;
    for Member { name, app_address, ingress, egress, admin, .. } in [&RATINGS, &DETAILS] {
        writeln!(out, "  {name}")?;
        writeln!(out, "    application  {app_address} (plain HTTP)")?;
        writeln!(out, "    from mesh    {ingress} (mutual TLS, STRICT)")?;
        writeln!(out, "    to mesh      {egress} (plain HTTP)")?;
        writeln!(out, "    admin page   http://{admin}")?;
    }
    writeln!(out, "\nTheir Istio YAML is in {}; an edit is applied at once.", mesh.folder.configuration().display())?;
    writeln!(out, "\nTry, as the ratings application would:\n")?;
    for path in ["/details/0", "/details/0 -X POST"] {
        writeln!(out, "  {}", curl(&RATINGS, &DETAILS, path))?;
    }
    writeln!(out, "\nand as details:\n\n  {}", curl(&DETAILS, &RATINGS, "/ratings/0"))?;
    writeln!(out, "\nThe POST is refused with 403: details lets ratings GET only. Access logs of both sidecars follow.")?;
    writeln!(out, "Ctrl-C ends it.\n")?;
    out.flush()
}

fn curl(from: &Member, to: &Member, path: &str) -> String {
    let (host, port) = (to.host(), to.ingress.port());
    format!("curl --resolve {host}:{port}:{} http://{host}:{port}{path}", from.egress.ip())
}
