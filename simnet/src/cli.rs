//! The arguments of a simulated run on the command line, as options of runs. Reads arguments and nothing else: files are the caller's.

use std::collections::BTreeSet;

use sinew_scheduler::time::Span;

use crate::nemesis::Class;
use crate::run::{InvalidOptions, Options};

/// Reads a list of faults: names, or `all`, `honest`, `byzantine`, `none`, separated by commas. `all` and `honest` leave
/// churn out, which needs a rate.
///
/// # Errors
/// When a name is unknown; the message lists the known.
pub fn parse_faults(text: &str) -> Result<BTreeSet<Class>, InvalidOptions> {
    let mut faults = BTreeSet::new();
    let without_rate = || Class::ALL.into_iter().filter(|c| *c != Class::Churn);
    for name in text.split(',').map(str::trim) {
        match name {
            "none" => {}
            "all" => faults.extend(without_rate()),
            "honest" => faults.extend(without_rate().filter(|c| !c.is_byzantine())),
            "byzantine" => faults.extend(without_rate().filter(|c| c.is_byzantine())),
            name => {
                let class = name.parse::<Class>().map_err(|error| InvalidOptions {
                    field: "--faults",
                    value: name.to_owned(),
                    mend: error.to_string(),
                })?;
                faults.insert(class);
            }
        }
    }
    Ok(faults)
}

/// Reads a churn such as `5%/h`, as percent of the nodes in an hour.
///
/// # Errors
/// When it is no such thing.
pub fn parse_churn(text: &str) -> Result<f64, InvalidOptions> {
    let refuse = || InvalidOptions {
        field: "--churn",
        value: text.to_owned(),
        mend: "write the share of the nodes that leaves in an hour, such as 5%/h".to_owned(),
    };
    let number = text.strip_suffix("%/h").ok_or_else(refuse)?;
    let percent: f64 = number.trim().parse().map_err(|_| refuse())?;
    if percent.is_finite() && percent >= 0.0 { Ok(percent) } else { Err(refuse()) }
}

/// Reads `--name value` pairs, as [`Options::command`] writes them.
///
/// # Errors
/// The first argument that is unknown, has no value or a bad one, or does not fit the others.
pub fn parse(args: &[String]) -> Result<Options, InvalidOptions> {
    let mut options = Options::default();
    for pair in args.chunks(2) {
        let [name, value] = pair else {
            let mend = "give it a value";
            return Err(InvalidOptions { field: "argument", value: pair[0].clone(), mend: mend.to_owned() });
        };
        set(&mut options, name, value)?;
    }
    if options.churn_percent_per_hour > 0.0 {
        options.faults.insert(Class::Churn);
    }
    options.check()?;
    Ok(options)
}

fn set(options: &mut Options, name: &str, value: &str) -> Result<(), InvalidOptions> {
    match name {
        "--seed" => options.seed = number("--seed", value)?,
        "--nodes" => options.nodes = number("--nodes", value)?,
        "--jobs" => options.jobs = number("--jobs", value)?,
        "--duration" => options.duration = duration(value)?,
        "--latency" => options.latency = value.parse()?,
        "--workload" => options.workload = value.parse()?,
        "--churn" => options.churn_percent_per_hour = parse_churn(value)?,
        "--faults" => options.faults = parse_faults(value)?,
        "--strikes" => {
            let numbers = value.split(',').filter(|n| !n.is_empty()).map(|n| number("--strikes", n.trim()));
            options.strikes = Some(numbers.collect::<Result<_, _>>()?);
        }
        unknown => {
            let mend =
                "known are --seed, --nodes, --jobs, --duration, --latency, --workload, --churn, --faults, --strikes";
            return Err(InvalidOptions { field: "argument", value: unknown.to_owned(), mend: mend.to_owned() });
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(field: &'static str, value: &str) -> Result<T, InvalidOptions> {
    let mend = "write a whole number that is not negative, and not too large".to_owned();
    value.parse().map_err(|_| InvalidOptions { field, value: value.to_owned(), mend })
}

/// `60s` or `500ms`.
fn duration(value: &str) -> Result<Span, InvalidOptions> {
    let mend = "write seconds or milliseconds, such as 60s or 500ms".to_owned();
    let refuse = || InvalidOptions { field: "--duration", value: value.to_owned(), mend };
    let (digits, ms) = match (value.strip_suffix("ms"), value.strip_suffix('s')) {
        (Some(digits), _) => (digits, 1),
        (None, Some(digits)) => (digits, 1_000),
        (None, None) => return Err(refuse()),
    };
    let count: Option<u64> = digits.parse().ok();
    // Beyond a year nothing is meant.
    count.and_then(|n| n.checked_mul(ms)).filter(|ms| *ms <= 31_536_000_000).map(Span::ms).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_command_of_a_run_reads_as_that_run() {
        let options = Options {
            seed: 7,
            nodes: 9,
            churn_percent_per_hour: 5.5,
            faults: Class::ALL.into(),
            strikes: Some([3, 10_001].into()),
            ..Options::default()
        };
        let command = options.command();
        let args = command.strip_prefix("sinew sim ").unwrap();
        assert_eq!(parse(&words(args)), Ok(options));
    }

    #[test]
    fn what_cannot_be_is_refused_by_field_value_and_mend() {
        for (args, field, value, mend) in [
            ("--nodes 0", "--nodes", "0", "20000"),
            ("--nodes many", "--nodes", "many", "number"),
            ("--jobs 0", "--jobs", "0", "1 or more"),
            ("--duration 5", "--duration", "5", "60s"),
            ("--duration 0s", "--duration", "0", "60s"),
            ("--latency moon", "--latency", "moon", "geo"),
            ("--workload idle", "--workload", "idle", "mixed"),
            ("--churn 5", "--churn", "5", "5%/h"),
            ("--faults churn", "--churn", "0%/h", "--churn 5%/h"),
            ("--faults crash,crsh", "--faults", "crsh", "one-way"),
            ("--nodes 1 --faults partition", "--faults", "partition", "--nodes 2"),
            ("--nodes 3 --faults flood", "--faults", "flood", "--nodes 4"),
            ("--sede 3", "argument", "--sede", "--seed"),
            ("--seed", "argument", "--seed", "value"),
        ] {
            let error = parse(&words(args)).unwrap_err();
            assert_eq!((error.field, error.value.as_str()), (field, value), "{args}");
            assert!(error.mend.contains(mend), "{args}: {error}");
        }
    }
}
