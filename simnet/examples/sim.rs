//! One simulated run: `cargo run --release -p sinew-simnet --example sim -- --seed 7 --nodes 50 --faults crash,drop`.

use std::process::ExitCode;

use sinew_simnet::{cli, run};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let verbose = std::env::var_os("SIMNET_VERBOSE").is_some();
    let options = match cli::parse(&args) {
        Ok(options) => run::Options { verbose, ..options },
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match run::run(&options) {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{}\nat {} ms\n{}\nagain: {}", failure.what, failure.at.as_ms(), failure.log, options.command());
            ExitCode::FAILURE
        }
    }
}
