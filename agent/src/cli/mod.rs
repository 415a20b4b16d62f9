//! The command line of `skiff`. Every option is an environment variable as well, because a task definition has no shell.

mod environment;
mod explain;
mod plane;
mod proxy;
mod run;
mod status;

use skiff_proxy::telemetry::metrics::HISTOGRAM_BUCKETS;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::runtime;

use crate::admin;
use crate::bootstrap;
use crate::descriptors;
use crate::exit::Failure;
use crate::logging::{self, LogControl};
use crate::plane::{Checked, check as check_onboarding};
use crate::quickstart;
use crate::shutdown::Shutdown;
use crate::sidecar::{self, Sidecar};
use crate::translate::istio::{Documents, Workload, translate};
use crate::xds;
use proxy::ProxyArgs;
use run::RunArgs;

/// A sidecar for Istio without Envoy. Without a command it runs the sidecar.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, disable_help_subcommand = true, subcommand_negates_reqs = true)]
#[command(after_help = "Exit codes: 0 done, 1 the answer is no, 64 wrong command line, 69 something it needs is not available, \
    70 internal fault, 78 wrong or missing configuration.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Exit 0 when the sidecar on this machine is ready, 1 with the reason when it is not.
    Health {
        /// Its admin page [default: 127.0.0.1 and proxyAdminPort, else 15000].
        #[arg(long, env = "SKIFF_ADMIN_ADDRESS")]
        admin_address: Option<SocketAddr>,
    },
    /// See it work: two services of Bookinfo with their sidecars in this process.
    Quickstart {
        /// Send the requests, compare what comes of them, and end.
        #[arg(long)]
        check: bool,
    },
    /// Run the data plane alone, from a static Envoy bootstrap.
    Proxy(ProxyArgs),
    /// Read Istio YAML and say what is wrong with it, without running anything.
    #[command(args_conflicts_with_subcommands = true)]
    Check {
        #[command(subcommand)]
        what: Option<Subject>,
        /// Files and folders; what the sidecar would run from if none is given.
        files: Vec<PathBuf>,
    },
    /// Run the onboarding plane, or ask it what has registered.
    Plane(Box<plane::PlaneArgs>),
    /// Say why something is as it is.
    Explain {
        #[command(subcommand)]
        what: explain::Explained,
    },
    /// Print the version.
    Version,
}

/// What else can be checked.
#[derive(Debug, Subcommand)]
enum Subject {
    /// Read a static Envoy bootstrap and say what skiff does not support.
    Bootstrap {
        /// YAML or JSON.
        file: PathBuf,
    },
    /// Read what a control plane sent and say which resources skiff would refuse, and why.
    Xds {
        /// Responses as they were on the wire, or config dumps in JSON.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct LogArgs {
    /// Log filter, in env-filter syntax: `info,skiff_proxy::tls=debug`.
    #[arg(long = "log", env = "SKIFF_LOG", default_value = "info", global = true)]
    filter: String,
    /// How log lines look.
    #[arg(long = "log-format", env = "SKIFF_LOG_FORMAT", value_enum, default_value_t, global = true)]
    format: logging::Format,
}

/// Runs `skiff` with the arguments and the environment of the process.
pub fn main() -> ExitCode {
    panic::set_hook(Box::new(|fault| tracing::error!("internal fault: {}", one_line(&fault.to_string()))));
    let outcome = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(error) if error.use_stderr() => Err(Failure::Usage(usage(&error.to_string()))),
        // Help and version come this way.
        Err(text) => print(&text.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to be told when stderr is closed.
            let _ = writeln!(io::stderr(), "skiff: {failure}");
            ExitCode::from(&failure)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { command, run, log } = cli;
    let descriptors = descriptors::raise_limit();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Unavailable(format!("cannot start: {error}")))?;
    let outcome = match command {
        Some(Command::Version) => print(concat!("skiff ", env!("CARGO_PKG_VERSION"), "\n")),
        Some(Command::Health { admin_address }) => {
            let address = run::admin_address(admin_address)?;
            runtime.block_on(admin::probe(address)).map_err(Failure::No)
        }
        Some(Command::Proxy(args)) => {
            let logging = log.init()?;
            runtime.block_on(until_signals(async |shutdown| proxy::run(args, logging, shutdown).await))
        }
        Some(Command::Check { what: Some(Subject::Bootstrap { file }), .. }) => check_bootstrap(&file),
        Some(Command::Check { what: Some(Subject::Xds { files }), .. }) => check_xds(&files),
        Some(Command::Check { what: None, files }) => {
            if files.is_empty()
                && let Some(report) = run.check_onboarding()?
            {
                return print(&report);
            }
            let (config, workload) = run.subject()?;
            check(if files.is_empty() { vec![config] } else { files }, &workload)
        }
        Some(Command::Plane(args)) if args.runs() => {
            log.init()?;
            runtime.block_on(until_signals(async |shutdown| plane::run(*args, descriptors, shutdown).await))
        }
        Some(Command::Plane(args)) => runtime.block_on(plane::show(*args)),
        Some(Command::Explain { what }) => explain::run(what),
        Some(Command::Quickstart { check }) => {
            let logging = log.init()?;
            let options = quickstart::Options { check, histograms: &HISTOGRAM_BUCKETS };
            runtime.block_on(until_signals(async |shutdown| quickstart::run(&options, &logging, shutdown).await))
        }
        None => {
            let plan = run.resolve()?;
            let logging = log.init()?;
            runtime.block_on(until_signals(async |shutdown| {
                let Some((config, sources)) = plan.sources(shutdown).await? else { return Ok(()) };
                Sidecar::start(config, sources, logging, shutdown.clone()).await?.run().await
            }))
        }
    };
    // A read that hangs in a slow file system must not delay the exit.
    runtime.shutdown_background();
    outcome
}

/// Runs it with a shutdown that SIGTERM and SIGINT ask for.
async fn until_signals(run: impl AsyncFnOnce(&Shutdown) -> Result<(), Failure>) -> Result<(), Failure> {
    let shutdown = Shutdown::default();
    let signals = shutdown.on_signals().map_err(|error| Failure::Internal(error.to_string()))?;
    tokio::select! {
        outcome = run(&shutdown) => outcome,
        never = signals => match never {},
    }
}

/// Reads the files and translates them for the workload that the environment describes.
fn check(paths: Vec<PathBuf>, workload: &Workload) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for path in paths {
        documents.extend(sidecar::read_documents(&path).map_err(|error| Failure::Configuration(error.to_string()))?);
    }
    let Checked { mut faults, without_resources } = check_onboarding(&documents, &workload.namespace);
    let read = documents.len();
    documents.retain(|(file, _)| !without_resources.contains(file));
    if documents.is_empty() && faults.is_empty() {
        return print(&format!("{read} files without a fault\n"));
    }
    let translated = Documents::parse(&documents, &workload.namespace).and_then(|parsed| translate(&parsed, workload));
    if let Err(errors) = &translated {
        for error in errors.iter().map(ToString::to_string) {
            // Groups and entries are read twice.
            if !faults.contains(&error) {
                faults.push(error);
            }
        }
    }
    match translated {
        Ok(translation) if faults.is_empty() => {
            let warnings = translation.warnings.iter().fold(String::new(), |text, warning| text + "warning: " + warning + "\n");
            print(&format!("{warnings}{read} files without a fault\n"))
        }
        _ => {
            print(&faults.iter().fold(String::new(), |text, fault| text + fault + "\n"))?;
            Err(Failure::Configuration(format!("{} faults", faults.len())))
        }
    }
}

impl LogArgs {
    fn init(&self) -> Result<LogControl, Failure> {
        logging::init(&self.filter, self.format).map_err(|error| Failure::Usage(error.to_string()))
    }
}

fn check_bootstrap(file: &Path) -> Result<(), Failure> {
    let report = bootstrap::check(file)?;
    print(&format!("{report}\n"))?;
    if report.rejected.is_empty() && report.missing.is_empty() {
        return Ok(());
    }
    let faults = report.rejected.len() + report.missing.len();
    Err(Failure::Configuration(format!("{}: {faults} faults", file.display())))
}

fn check_xds(files: &[PathBuf]) -> Result<(), Failure> {
    let mut rejected = 0;
    for file in files {
        let report = xds::check(file).map_err(Failure::Configuration)?;
        print(&format!("{}:\n{report}\n", file.display()))?;
        rejected += report.rejected.len();
    }
    if rejected == 0 { Ok(()) } else { Err(Failure::Configuration(format!("{rejected} faults"))) }
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::Unavailable(format!("stdout: {error}")))
}

/// What clap says in paragraphs, without its usage and tips.
fn usage(message: &str) -> String {
    let said = message.split("\n\n").next().unwrap_or_default();
    format!("{}; see skiff --help", one_line(said.strip_prefix("error: ").unwrap_or(said)))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A whole number with `ms`, `s`, `m` or `h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => 0,
    };
    let parsed = number.parse::<u64>().ok().filter(|_| milliseconds > 0).and_then(|number| number.checked_mul(milliseconds));
    parsed.map(Duration::from_millis).ok_or_else(|| "expected a number with ms, s, m or h, such as 30s".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
        let args = Cli::try_parse_from(["skiff"]).unwrap().run;
        assert_eq!(args.drain_deadline, None, "the proxy configuration may have one");
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, milliseconds) in [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "30", "s", "-1s", "1.5s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_one_line() {
        let error = Cli::try_parse_from(["skiff", "--workers", "many"]).unwrap_err();
        let line = usage(&error.to_string());
        assert_eq!(line, "invalid value 'many' for '--workers <WORKERS>': invalid digit found in string; see skiff --help");
        assert!(!usage(&Cli::try_parse_from(["skiff", "fly"]).unwrap_err().to_string()).contains('\n'));
    }
}
