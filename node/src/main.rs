//! The `sinew` binary: daemon and command line in one.

use std::process::ExitCode;

/// Thousands of small facts a second: the system's allocator took an eighth of a busy daemon's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sinew_node::cli::main()
}
