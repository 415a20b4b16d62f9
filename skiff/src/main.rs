//! The `skiff` binary; everything is in [`skiff_agent::cli`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: skiff_memory::Allocator = skiff_memory::ALLOCATOR;

fn main() -> ExitCode {
    skiff_agent::cli::main()
}
