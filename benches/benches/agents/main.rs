//! What a fleet of agents costs an onboarding plane, and what it is like when the plane is killed under it.
//!
//! `cargo bench -p skiff-benches --bench agents -- 5000`. The plane is a process of its own: this program run again as `skiff plane`, or
//! `SKIFF_BINARY`. Agents are tasks of this process, each with a connection of its own, all from one address as behind a NAT gateway;
//! they do what `skiff` does (discover, authorise by a token, register, report health, send heartbeats, come back after 1 s to 15 s with
//! full jitter), but run no proxy. `alone`: the plane tells workloads of each other; `istiod`: it does not have to. Both are run unless
//! one is named.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot be set up has nothing to measure")]

mod fleet;
mod plane;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use fleet::Fleet;
use plane::{Mode, Plane, Usage};

#[global_allocator]
static ALLOCATOR: skiff_memory::Allocator = skiff_memory::ALLOCATOR;

/// How long a fleet may take to be there.
const PATIENCE: Duration = Duration::from_secs(600);
/// Over which what a quiet fleet costs is measured.
const QUIET: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "plane") {
        return skiff_agent::cli::main();
    }
    // Agents have a connection each.
    skiff_agent::descriptors::raise_limit();
    let sizes: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let named: Vec<Mode> = arguments.iter().filter_map(|argument| Mode::named(argument)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // `cargo bench -- --test` asks whether it works, not how fast.
    let usual = if arguments.iter().any(|argument| argument == "--test") { 20 } else { 1000 };
    for size in if sizes.is_empty() { vec![usual] } else { sizes } {
        for &mode in if named.is_empty() { &[Mode::Istiod, Mode::Alone][..] } else { &named } {
            runtime.block_on(measure(size, mode));
        }
    }
    ExitCode::SUCCESS
}

async fn measure(agents: usize, mode: Mode) {
    println!("{agents} agents, {mode:?}");
    let mut plane = Plane::start(mode).await;
    let before = plane.usage();
    let fleet = Fleet::start(agents, &plane);

    let started = Instant::now();
    fleet.is_there(PATIENCE).await;
    let (took, joined) = (started.elapsed(), plane.usage());
    report("join", took, agents, &before, &joined);
    println!("  {:.0} registrations/s; {}", agents as f64 / took.as_secs_f64(), fleet.counts());

    quiet(&plane, agents, &before).await;

    let known = plane.registrations().await;
    fleet.forget();
    plane.kill().await;
    let started = Instant::now();
    plane.resume().await;
    println!("  killed and started again: serves after {:?}", started.elapsed());
    fleet.is_there(PATIENCE).await;
    report("come back", started.elapsed(), agents, &Usage::default(), &plane.usage());
    println!("  {}", fleet.counts());
    let again = plane.registrations().await;
    println!(
        "  registrations: {} before, {} after, {} the same objects, {} connected; entries told {}",
        known.len(),
        again.len(),
        again.iter().filter(|one| known.contains(one)).count(),
        plane.connected().await,
        fleet.entries_told(),
    );
    quiet(&plane, agents, &before).await;
    println!("  peak over all of it: {} MB", plane.usage().peak >> 20);
    plane.kill().await;
}

fn report(what: &str, took: Duration, agents: usize, before: &Usage, after: &Usage) {
    let cpu = after.cpu.saturating_sub(before.cpu);
    println!(
        "  {what}: {:.1} s, {:.2} s of the plane's CPU, {:.3} ms an agent; peak {} MB",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        cpu.as_secs_f64() * 1e3 / agents as f64,
        after.peak >> 20,
    );
}

/// What is held, once everything is said, and what holding it costs.
async fn quiet(plane: &Plane, agents: usize, before: &Usage) {
    let settled = plane.settled().await;
    let first = plane.usage();
    sleep(QUIET).await;
    let last = plane.usage();
    let each = |bytes: usize, without: usize| bytes.saturating_sub(without) / agents;
    println!(
        "  quiet after {:.0} s: resident {} MB, {} KiB an agent; private {} MB, {} KiB an agent; {:.1} % of a core; told {} times, {} MB",
        settled.as_secs_f64(),
        last.resident >> 20,
        each(last.resident, before.resident) >> 10,
        last.private >> 20,
        each(last.private, before.private) >> 10,
        (last.cpu - first.cpu).as_secs_f64() * 100.0 / QUIET.as_secs_f64(),
        plane.number("skiff_plane_documents_pushed_total").await,
        last.written >> 20,
    );
}
