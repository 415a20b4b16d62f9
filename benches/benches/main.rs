//! All criterion benches in one binary, because each binary costs a link with fat LTO.
//!
//! `cargo bench -p skiff-benches -- routing` runs those whose name begins so; `-- --test` runs each once.

#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up has nothing to measure")]

mod access_log;
mod apply;
mod balancing;
mod heads;
mod proxy;
mod routing;

use criterion::Criterion;

#[global_allocator]
static ALLOCATOR: skiff_memory::Allocator = skiff_memory::ALLOCATOR;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    routing::bench(&mut criterion);
    balancing::bench(&mut criterion);
    heads::bench(&mut criterion);
    access_log::bench(&mut criterion);
    apply::bench(&mut criterion);
    proxy::bench(&mut criterion);
    criterion.final_summary();
}
