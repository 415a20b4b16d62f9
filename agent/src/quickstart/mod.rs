//! `skiff quickstart`: Bookinfo in one process, so that the first `curl` through a mesh takes seconds.
//!
//! Two sidecars, each a data plane of its own, carry traffic between two stand-in applications over mutual TLS, configured by
//! the Istio YAML of `examples/bookinfo`. With `--check` it sends the requests itself and says whether each did what it should.

mod access_logs;
mod bookinfo;
mod check;
mod folder;
mod scenarios;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::time::Duration;

use skiff_proxy::config::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use bookinfo::{DETAILS, Member, RATINGS};

use crate::cli::node;
use crate::connect;
use crate::exit::Failure;
use crate::identity::{CaClient, ControlPlaneConnector, IdentityConfig, IdentityManager, RootSource, Security, TokenSource};
use crate::logging::LogControl;
use crate::metrics::Buckets;
use crate::plane::{Plane, PlaneConfig};
use crate::shutdown::Shutdown;
use crate::sidecar::{ConfigurationSource, Sidecar, SidecarConfig, Sources};
use crate::stand_in::StandIn;
use check::Outcome;
use folder::Folder;

/// From the start until both sidecars are ready.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// The sidecars keep the token they start with; nobody leaves a quickstart running for longer.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
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
        let plane = start_plane(&folder).await?;
        let mut mesh = Self { folder, plane, ratings, details, sidecars: JoinSet::new() };
        for member in [&RATINGS, &DETAILS] {
            let workload = member.workload()?;
            let node = node(&workload);
            let identity = Some(connect::certificates(mesh.identity(member)?));
            let mut translate = connect::istio_yaml(workload);
            if options.check {
                translate = access_logs::redirected(translate, mesh.folder.access_log(member));
            }
            let configuration = ConfigurationSource::Documents { path: mesh.folder.configuration(), translate };
            let sources = Sources { configuration, identity, membership: None };
            let config = SidecarConfig {
                node,
                admin_address: member.admin,
                drain_deadline: DRAIN_DEADLINE,
                // Two data planes share the machine with everything else.
                proxy: skiff_proxy::Options { workers: 1, ..skiff_proxy::Options::default() },
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
        Ok(mesh)
    }

    /// Gets certificates from the plane, with a token of the member's service account.
    fn identity(&self, member: &Member) -> Result<IdentityManager, Failure> {
        let internal = |error: &dyn std::fmt::Display| Failure::Internal(error.to_string());
        let token = self.plane.issue_token(bookinfo::NAMESPACE, member.service_account).map_err(|error| internal(&error))?;
        let roots = RootSource::Pem(self.plane.root_pem().as_bytes().to_vec());
        let ca = CaClient {
            connector: ControlPlaneConnector::new(self.plane.address().to_string(), Security::Tls(roots)),
            token: TokenSource::Watch(watch::Sender::new(Some(token)).subscribe()),
            cluster_id: String::new(),
            request_timeout: START_DEADLINE,
        };
        let id = member.spiffe_id().parse::<SpiffeId>().map_err(|error| internal(&error))?;
        Ok(IdentityManager::new(IdentityConfig::new(id), ca))
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

async fn start_plane(folder: &Folder) -> Result<Plane, Failure> {
    let trust_domain = bookinfo::TRUST_DOMAIN.parse::<TrustDomain>().map_err(|error| Failure::Internal(error.to_string()))?;
    let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    let config = PlaneConfig { token_lifetime: TOKEN_LIFETIME, ..PlaneConfig::new(listen, folder.plane(), trust_domain) };
    Plane::start(config).await.map_err(|error| Failure::Unavailable(error.to_string()))
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
