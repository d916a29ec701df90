//! The `sinew` binary: daemon and command line in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    sinew_node::cli::main()
}
