//! The arguments of a simulated run on the command line, as options of runs. Reads arguments and nothing else: files are the caller's.

use std::collections::BTreeSet;

use sinew_scheduler::time::Span;

use crate::nemesis::Class;
use crate::network::UnknownNetwork;
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
                let class = name.parse::<Class>().map_err(|error| bad("--faults", name, &error.to_string()))?;
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
    let refuse = || bad("--churn", text, "write the share of the nodes that leaves in an hour, such as 5%/h");
    let number = text.strip_suffix("%/h").ok_or_else(refuse)?;
    let percent: f64 = number.trim().parse().map_err(|_| refuse())?;
    if percent.is_finite() && percent >= 0.0 { Ok(percent) } else { Err(refuse()) }
}

/// Most runs that are asked for at once: more is a slip of the keyboard.
const RUNS_MAX: u64 = 1_000_000;

/// Reads what [`parse`] reads, and `--seeds A..B` and `--sweep nodes=LIST`: one description for each run, by size and seed.
///
/// # Errors
/// The first argument that is unknown, has no value or a bad one, or does not fit the others.
pub fn plans(args: &[String]) -> Result<Vec<Options>, InvalidOptions> {
    let (mut common, mut sizes, mut seeds) = (Vec::new(), vec![None], vec![None]);
    for pair in args.chunks(2) {
        match pair {
            [name, value] if name == "--sweep" => {
                refuse_both(args, "--sweep", "--nodes", value)?;
                sizes = read_sizes(value)?.into_iter().map(Some).collect();
            }
            [name, value] if name == "--seeds" => {
                refuse_both(args, "--seeds", "--seed", value)?;
                seeds = read_seeds(value)?.map(Some).collect();
            }
            others => common.extend_from_slice(others),
        }
    }
    let common = read(&common)?;
    let mut plans = Vec::with_capacity(sizes.len() * seeds.len());
    for nodes in sizes {
        let options = Options { nodes: nodes.unwrap_or(common.nodes), ..common.clone() };
        options.check()?;
        plans.extend(seeds.iter().map(|seed| Options { seed: seed.unwrap_or(common.seed), ..options.clone() }));
    }
    Ok(plans)
}

fn refuse_both(args: &[String], name: &'static str, other: &str, value: &str) -> Result<(), InvalidOptions> {
    if args.iter().step_by(2).any(|arg| arg == other) {
        return Err(bad(name, value, &format!("leave out {other}: {name} says it already")));
    }
    Ok(())
}

fn read_sizes(text: &str) -> Result<Vec<usize>, InvalidOptions> {
    let mend = "write nodes= and sizes with commas, such as nodes=10,100,1000";
    let list = text.strip_prefix("nodes=").ok_or_else(|| bad("--sweep", text, mend))?;
    let mut sizes = Vec::new();
    for word in list.split(',') {
        let size = word.trim().parse().map_err(|_| bad("--sweep", text, &format!("`{word}` is no size: {mend}")))?;
        if sizes.contains(&size) {
            return Err(bad("--sweep", text, &format!("{size} is there twice: write each size once")));
        }
        sizes.push(size);
    }
    Ok(sizes)
}

fn read_seeds(text: &str) -> Result<std::ops::Range<u64>, InvalidOptions> {
    let ends = text.split_once("..").and_then(|(a, b)| Some(a.trim().parse().ok()?..b.trim().parse().ok()?));
    let range = ends.filter(|range: &std::ops::Range<u64>| !range.is_empty());
    let range =
        range.ok_or_else(|| bad("--seeds", text, "write the first and the one after the last, such as 1..201"))?;
    if range.end - range.start > RUNS_MAX {
        return Err(bad("--seeds", text, &format!("write no more than {RUNS_MAX} seeds")));
    }
    Ok(range)
}

fn bad(field: &'static str, value: &str, mend: &str) -> InvalidOptions {
    InvalidOptions { field, value: value.to_owned(), mend: mend.to_owned() }
}

/// Reads `--name value` pairs, as [`Options::command`] writes them.
///
/// # Errors
/// The first argument that is unknown, has no value or a bad one, or does not fit the others.
pub fn parse(args: &[String]) -> Result<Options, InvalidOptions> {
    let options = read(args)?;
    options.check()?;
    Ok(options)
}

/// Reads pairs without looking whether they fit each other.
fn read(args: &[String]) -> Result<Options, InvalidOptions> {
    let mut options = Options::default();
    for pair in args.chunks(2) {
        let [name, value] = pair else {
            return Err(bad("argument", &pair[0], "give it a value"));
        };
        set(&mut options, name, value)?;
    }
    if options.churn_percent_per_hour > 0.0 {
        options.faults.insert(Class::Churn);
    }
    Ok(options)
}

fn set(options: &mut Options, name: &str, value: &str) -> Result<(), InvalidOptions> {
    match name {
        "--seed" => options.seed = number("--seed", value)?,
        "--nodes" => options.nodes = number("--nodes", value)?,
        "--jobs" => options.jobs = number("--jobs", value)?,
        "--duration" => options.duration = duration(value)?,
        "--latency" => {
            options.latency = value.parse().map_err(|e: UnknownNetwork| bad("--latency", value, &e.to_string()))?;
        }
        "--workload" => options.workload = value.parse()?,
        "--churn" => options.churn_percent_per_hour = parse_churn(value)?,
        "--faults" => options.faults = parse_faults(value)?,
        "--strikes" => {
            let numbers = value.split(',').filter(|n| !n.is_empty()).map(|n| number("--strikes", n.trim()));
            options.strikes = Some(numbers.collect::<Result<_, _>>()?);
        }
        unknown => {
            let mend = "known are --seed, --seeds, --nodes, --sweep, --jobs, --duration, --latency, --workload, --churn, \
                        --faults, --strikes";
            return Err(bad("argument", unknown, mend));
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(field: &'static str, value: &str) -> Result<T, InvalidOptions> {
    value.parse().map_err(|_| bad(field, value, "write a whole number that is not negative, and not too large"))
}

/// `60s` or `500ms`.
fn duration(value: &str) -> Result<Span, InvalidOptions> {
    let refuse = || bad("--duration", value, "write seconds or milliseconds, such as 60s or 500ms");
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
    fn seeds_and_sizes_become_runs() {
        let all = plans(&words("--seeds 3..5 --sweep nodes=10,20 --faults crash")).unwrap();
        let found: Vec<(usize, u64)> = all.iter().map(|o| (o.nodes, o.seed)).collect();
        assert_eq!(found, [(10, 3), (10, 4), (20, 3), (20, 4)]);
        assert!(all.iter().all(|o| o.faults.contains(&Class::Crash)));
        assert_eq!(plans(&[]).unwrap(), [Options::default()]);
    }

    #[test]
    fn what_makes_no_range_and_no_list_is_refused() {
        for (args, field, value, mend) in [
            ("--seeds 5..5", "--seeds", "5..5", "1..201"),
            ("--seeds many", "--seeds", "many", "1..201"),
            ("--seeds 0..18446744073709551615", "--seeds", "0..18446744073709551615", "1000000"),
            ("--seeds 1..3 --seed 7", "--seeds", "1..3", "--seed"),
            ("--sweep 10,20", "--sweep", "10,20", "nodes=10"),
            ("--sweep nodes=", "--sweep", "nodes=", "nodes=10"),
            ("--sweep nodes=10,x", "--sweep", "nodes=10,x", "`x`"),
            ("--sweep nodes=10,10", "--sweep", "nodes=10,10", "twice"),
            ("--sweep nodes=10,30000", "--nodes", "30000", "20000"),
            ("--nodes 5 --sweep nodes=10,20", "--sweep", "nodes=10,20", "--nodes"),
            ("--sweep nodes=1,5 --faults drop", "--faults", "drop", "--nodes 2"),
            ("--sweep", "argument", "--sweep", "value"),
        ] {
            let error = plans(&words(args)).unwrap_err();
            assert_eq!((error.field, error.value.as_str()), (field, value), "{args}");
            assert!(error.mend.contains(mend), "{args}: {error}");
        }
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
