//! The `skiff` binary; everything is in [`skiff_agent::cli`].

use std::process::ExitCode;

// musl's allocator serialises threads, and jemalloc built for 4 KiB pages aborts on the 16 KiB pages of a Raspberry Pi 5.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    skiff_agent::cli::main()
}
