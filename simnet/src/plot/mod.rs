//! Reports as pictures: SVG texts. Nothing is written here.

mod chart;
mod growth;
mod runs;

use crate::run::{Growth, Report};

/// A picture: what it is called, and its SVG text.
pub type Picture = (&'static str, String);

/// Runs of one size drawn together; runs of several sizes as how cost grows.
#[must_use]
pub fn of(reports: &[Report]) -> Vec<Picture> {
    let Some(first) = reports.first() else { return Vec::new() };
    let caption = command_of_all(first, reports);
    Growth::of(reports).map_or_else(|| runs::draw(&caption, reports), |growth| growth::draw(&caption, &growth))
}

/// One command for all of these runs: the first's, with its seed and size replaced by theirs.
fn command_of_all(first: &Report, reports: &[Report]) -> String {
    let seeds = || reports.iter().map(|report| report.seed);
    let (least, most) = (seeds().min().unwrap_or_default(), seeds().max().unwrap_or_default());
    let mut command = first.command.clone();
    if least < most {
        command = command.replacen(&format!("--seed {}", first.seed), &format!("--seeds {least}..{}", most + 1), 1);
    }
    let sizes: std::collections::BTreeSet<usize> = reports.iter().map(|report| report.nodes).collect();
    if sizes.len() > 1 {
        let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        let sweep = format!("--sweep nodes={}", sizes.join(","));
        command = command.replacen(&format!("--nodes {}", first.nodes), &sweep, 1);
    }
    command
}

#[cfg(test)]
mod tests {
    use sinew_scheduler::time::Span;

    use super::*;
    use crate::nemesis::Class;
    use crate::run::{Options, run};

    fn report(seed: u64, nodes: usize) -> Report {
        let faults = [Class::Crash, Class::OneWay].into();
        let options = Options { seed, nodes, jobs: 12, duration: Span::ms(9_000), faults, ..Options::default() };
        run(&options).expect("it holds")
    }

    fn texts_of(svg: &str) -> String {
        svg.split('<')
            .filter_map(|part| part.split_once('>'))
            .map(|(_, text)| text.trim())
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn a_run_s_pictures_say_what_they_show_and_where_it_came_from() {
        let report = report(5, 4);
        let pictures = of(std::slice::from_ref(&report));
        let names: Vec<&str> = pictures.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["start-latency.svg", "jobs.svg", "faults.svg", "messages.svg"]);
        for (name, svg) in &pictures {
            let text = texts_of(svg);
            assert!(svg.contains("width=\"800\" height=\"500\""), "{name}");
            assert!(text.contains("sinew sim --seed 5 --nodes 4 --jobs 12 --duration 9000ms"), "{name}: {text}");
        }
        let [starts, jobs, faults, messages] = [0, 1, 2, 3].map(|n| texts_of(&pictures[n].1));
        assert!(starts.contains("milliseconds") && starts.contains("percent of the jobs"), "{starts}");
        assert!(jobs.contains("virtual seconds") && jobs.contains("completed"), "{jobs}");
        assert!(faults.contains("crash") && faults.contains("one-way") && faults.contains("felt"), "{faults}");
        assert!(messages.contains("swim") && messages.contains("set beat ack"), "{messages}");
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn a_sweep_s_pictures_draw_adverts_apart() {
        let reports = [report(5, 4), report(5, 8), report(6, 8)];
        let pictures = of(&reports);
        for (name, svg) in &pictures {
            let text = texts_of(svg);
            assert!(text.contains("sinew sim --seeds 5..7 --sweep nodes=4,8 --jobs 12"), "{name}: {text}");
            assert!(text.contains("nodes in the mesh"), "{name}: {text}");
            let whole = name.contains("events") || name.contains("latency");
            assert!(
                whole || text.to_lowercase().contains("advert") == (*name == "growth-adverts.svg"),
                "{name}: {text}"
            );
        }
        assert_eq!(pictures.len(), 7);
    }
}
