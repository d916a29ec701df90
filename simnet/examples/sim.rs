//! Simulated runs without the daemon's build, one after another:
//! `cargo run --release -p sinew-simnet --example sim -- --seed 7 --nodes 50 --faults crash,drop`. Takes what `sinew sim`
//! takes, but for `--threads` and `--json`. With `SIMNET_VERBOSE` set it prints every message.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sinew_simnet::{cli, files, run};

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let out = take_out(&mut args);
    let mut plans = match cli::plans(&args) {
        Ok(plans) => plans,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    for options in &mut plans {
        options.verbose = std::env::var_os("SIMNET_VERBOSE").is_some();
    }
    let mut held = Vec::new();
    for options in &plans {
        match run::run(options) {
            Ok(report) => {
                println!("{}", if plans.len() > 1 { report.line() } else { report.to_string() });
                held.push(report);
            }
            Err(failure) => {
                let (what, at, log) = (&failure.what, failure.at.as_ms(), &failure.log);
                eprintln!("{what}\nat {at} ms\n{log}\nagain: {}", options.command());
            }
        }
    }
    if let Some(growth) = run::Growth::of(&held) {
        print!("{growth}");
    }
    if let Some(Err(error)) = out.map(|out| write(&out, &held)) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    if held.len() == plans.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Takes `--out DIR` away.
fn take_out(args: &mut Vec<String>) -> Option<PathBuf> {
    let place = args.iter().step_by(2).position(|arg| arg == "--out")? * 2;
    let dir = args.get(place + 1)?.into();
    args.drain(place..place + 2);
    Some(dir)
}

fn write(out: &Path, held: &[run::Report]) -> std::io::Result<()> {
    std::fs::create_dir_all(out)?;
    files::of(held).into_iter().try_for_each(|(name, text)| std::fs::write(out.join(name), text))
}
