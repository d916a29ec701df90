//! Where `sinew up` logs to: stdout, as text or JSON, sinew's own lines from `info` on and libraries' from `warn` on.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// A filter in the syntax of tracing's `EnvFilter`; it beats `-v`.
pub(super) const FILTER_VAR: &str = "SINEW_LOG";
/// Our crates, as they are called in log targets.
const OWN: [&str; 5] = ["sinew_node", "sinew_mesh", "sinew_blobs", "sinew_scheduler", "sinew_crdt_state"];

/// Starts logging. A process that logs already goes on as it does.
pub(super) fn start(json: bool, verbose: u8) {
    let filter = EnvFilter::try_from_env(FILTER_VAR).unwrap_or_else(|_| EnvFilter::new(directives(verbose)));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stdout).log_internal_errors(false);
    let started = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stdout())).try_init()
    };
    drop(started);
}

fn directives(verbose: u8) -> String {
    let (own, others) = match verbose {
        0 => ("info", "warn"),
        1 => ("debug", "warn"),
        2 => ("trace", "info"),
        _ => ("trace", "debug"),
    };
    OWN.iter().fold(others.to_owned(), |text, name| format!("{text},{name}={own}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verbosity_is_a_valid_filter() {
        for verbose in 0..5 {
            EnvFilter::try_new(directives(verbose)).expect("filter");
        }
        assert!(directives(0).starts_with("warn,sinew_node=info"));
    }
}
