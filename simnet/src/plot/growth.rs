//! How cost grows with the mesh, on logarithmic axes: a straight line's slope is the power. Adverts are drawn apart, as they
//! are meant to reach everybody.

use sinew_scheduler::kind::Family;

use super::Picture;
use super::chart::{COLOURS, Frame, Line, Scale, Style, lines};
use crate::run::{Growth, exponent};

const GREY: plotters::style::RGBColor = plotters::style::RGBColor(130, 130, 130);

pub(super) fn draw(caption: &str, growth: &Growth) -> Vec<Picture> {
    let chart = |title: &str, y: &str, all: Vec<Line>| {
        let (caption, x) = (caption.to_owned(), "nodes in the mesh".to_owned());
        let frame = Frame { title: title.to_owned(), caption, x, y: y.to_owned() };
        lines(&frame, Scale::LogBoth, &with_guide(all))
    };
    let families = |measure: &str| {
        let all = Family::ALL.into_iter().filter(|family| *family != Family::Advert).zip(COLOURS);
        all.map(|(family, colour)| line(family.name(), growth.traffic(measure, Some(family)), colour)).collect()
    };
    let several = |of: &[(&str, &str)]| {
        of.iter().zip(COLOURS).map(|((name, measure), colour)| line(name, growth.whole(measure), colour)).collect()
    };
    let adverts = [("copies an advert", "copies_per_advert"), ("bytes an advert", "bytes_per_advert")];
    let per_job = growth.traffic("messages_per_job", Some(Family::Advert));
    let mut adverts: Vec<Line> = several(&adverts);
    adverts.push(line("copies a job", per_job, COLOURS[2]));
    let events = [("a job", "events_per_job"), ("a node and second", "events_per_node_s")];
    let starts = [("p50", "start_p50_ms"), ("p99", "start_p99_ms")];
    vec![
        ("growth-messages-per-job.svg", {
            chart(
                "Messages a job (peer, load, swim: sent without jobs too)",
                "messages a job",
                families("messages_per_job"),
            )
        }),
        ("growth-messages-per-node.svg", {
            let title = "Messages a node and second, by what they are for";
            chart(title, "messages a node and second", families("messages_per_node_s"))
        }),
        ("growth-bytes-per-job.svg", {
            chart("Bytes a job (peer, load, swim: sent without jobs too)", "bytes a job", families("bytes_per_job"))
        }),
        ("growth-bytes-per-node.svg", {
            let title = "Bytes a node and second, by what they are for";
            chart(title, "bytes a node and second", families("bytes_per_node_s"))
        }),
        ("growth-adverts.svg", chart("Adverts: what reaching everybody costs", "copies, or bytes", adverts)),
        ("growth-events.svg", chart("Events that a run takes", "events", several(&events))),
        ("growth-start-latency.svg", chart("From submit to the first task's start", "milliseconds", several(&starts))),
    ]
}

/// A line with the power that it grows with in its name.
fn line(name: &str, points: Vec<(f64, f64)>, colour: plotters::style::RGBColor) -> Line {
    let power = exponent(&points).map_or(String::new(), |power| format!(" ^{power:.2}"));
    Line { name: format!("{name}{power}"), points, colour, style: Style::Points }
}

/// With a line to compare with, which ends where the highest ends: what is flatter grows less than the mesh.
fn with_guide(mut all: Vec<Line>) -> Vec<Line> {
    all.retain(|line| !line.points.is_empty());
    let points = || all.iter().flat_map(|line| line.points.iter().copied());
    let most = points().map(|p| p.1).fold(f64::MIN, f64::max);
    let last = points().map(|p| p.0).fold(f64::MIN, f64::max);
    // As far down as something is drawn.
    let lowest = points().map(|p| p.1).fold(f64::MAX, f64::min);
    let least = points().map(|p| p.0).fold(f64::MAX, f64::min).max(last * lowest / most);
    if least < last {
        let guide = vec![(least, most * least / last), (last, most)];
        all.push(Line {
            name: "grows with the mesh (^1)".to_owned(),
            points: guide,
            colour: GREY,
            style: Style::Guide,
        });
    }
    all
}
