//! One job in full: header, progress, nodes, failures, outputs, history.

use sinew_crdt_state::fact::{Failure, Outcome};
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::state::{Event, Status};
use sinew_scheduler::view::{JobView, blocked_text, waiting_text};

use super::super::error::FailedTask;
use super::super::human::{clean, clean_lines, clock, cut, percent, rate, size, span, utc};
use super::super::table::{Column, Table, WIDTH};
use super::pace::{from_history, shares};
use super::status::field;

/// Rows of one kind that are shown unless more is asked for: a job's page should not be longer than a few screens.
const ROWS_MAX: usize = 20;
/// Lines of each stderr tail that are shown: where a stack trace names its error.
const TAIL_LINES_MAX: usize = 10;

/// A job's page, as of `now_ms`. With `verbose`, nothing is left out.
pub(crate) fn job(view: &JobView, timeline: &[Event], now_ms: u64, verbose: bool) -> String {
    let most = if verbose { usize::MAX } else { ROWS_MAX };
    let parts = [
        header(view, timeline, now_ms),
        phases(view, timeline, now_ms),
        nodes(view, most),
        failures(view, most),
        outputs(view, most),
        history(timeline, most),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

/// How a job ended, or where it is, in a word.
pub(crate) const fn outcome_word(view: &JobView) -> &'static str {
    match &view.outcome {
        Some(Outcome::Completed) => "completed",
        Some(Outcome::Failed { .. }) => "failed",
        Some(Outcome::Cancelled) => "cancelled",
        None => match view.status {
            Status::Received => "received",
            Status::Advertised => "advertised",
            Status::Awarded => "awarded",
            Status::Running => "running",
            Status::Uploading => "uploading",
            Status::RetryWait => "retry-wait",
            Status::Completed => "completed",
            Status::Sealed => "sealed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Waiting => "waiting",
        },
    }
}

fn header(view: &JobView, timeline: &[Event], now_ms: u64) -> String {
    let sealed = if view.status == Status::Sealed { ", sealed" } else { "" };
    let took = timeline.iter().find(|e| e.what == "finish" && view.is_ended()).map(|e| e.at_ms);
    let took = took.map(|at| format!(" after {}", span(at.saturating_sub(view.submitted_ms)))).unwrap_or_default();
    let others: Vec<String> = view.brain_set.iter().map(NodeId::short).collect();
    let brain = view.brain.map_or_else(|| "none".to_owned(), |node| node.short());
    let age = span(now_ms.saturating_sub(view.submitted_ms));
    [
        field("job", &view.id.to_string()),
        field("name", &format!("{} ({})", view.name, view.kind.replace('_', "-"))),
        field("state", &format!("{}{sealed}{took}", state(view))),
        field("submitted", &format!("{} UTC, {age} ago, by {}", utc(view.submitted_ms), view.submitter.short())),
        field("brain", &format!("{brain}, term {}, of {}", view.term, others.join(" "))),
        field("safety", &view.durability),
        field("key", &view.key.to_string()),
    ]
    .concat()
}

/// Where it is; of a job that nobody can decide for, whom it waits for.
fn state(view: &JobView) -> String {
    let word = match view.status {
        Status::Waiting => waiting_text(&view.lost),
        _ => match (&view.blocked, view.copied) {
            (Some(blocked), _) if !view.is_ended() => format!("{}, {}", outcome_word(view), blocked_text(blocked)),
            (_, Some((done, total))) => {
                format!("{}, {} of {} of its inputs are copied", outcome_word(view), size(done), size(total))
            }
            _ => outcome_word(view).to_owned(),
        },
    };
    if view.cancelling { format!("{word} (a cancel is under way)") } else { word }
}

fn phases(view: &JobView, timeline: &[Event], now_ms: u64) -> String {
    let mut table = Table::new([
        Column::Left("PHASE"),
        Column::Right("TASKS"),
        Column::Right("DONE"),
        Column::Right("%"),
        Column::Right("RUNNING"),
        Column::Right("RATE"),
        Column::Right("ETA"),
    ]);
    let dash = || "-".to_owned();
    for pace in from_history(view, timeline, now_ms) {
        let eta = pace.eta_ms.filter(|_| !view.is_ended());
        table.row([
            clean(&pace.name),
            pace.tasks.to_string(),
            pace.done.to_string(),
            percent(pace.done, pace.tasks),
            pace.running.to_string(),
            pace.per_s.map_or_else(dash, rate),
            eta.map_or_else(dash, span),
        ]);
    }
    table.render(WIDTH)
}

fn nodes(view: &JobView, most: usize) -> String {
    if view.shares.is_empty() {
        return String::new();
    }
    let names = view.phases.iter().map(|phase| match phase.name.as_str() {
        "map" => "MAP",
        "reduce" => "REDUCE",
        _ => "TASKS",
    });
    let mut columns = vec![Column::Left("NODE")];
    columns.extend(names.map(Column::Right));
    columns.extend([Column::Right("SHARE"), Column::Right("SLOTS")]);
    let mut table = Table::new(columns);
    for share in shares(view).iter().take(most) {
        let Some(full) = view.shares.iter().find(|s| s.node == share.node) else { continue };
        let counts = (0..view.phases.len()).map(|phase| full.done.get(phase).copied().unwrap_or(0).to_string());
        let last = [format!("{}%", share.percent), full.slots.to_string()];
        table.row(std::iter::once(share.node.short()).chain(counts).chain(last));
    }
    table.render(WIDTH) + &rest(view.shares.len(), most)
}

fn failures(view: &JobView, most: usize) -> String {
    if view.failures.is_empty() {
        return String::new();
    }
    let mut out = "failures, the last of each task:\n".to_owned();
    for (phase, task, node, failure) in view.failures.iter().take(most) {
        let phase = view.phases.get(usize::from(*phase)).map_or("", |p| p.name.as_str());
        out += &one_failure(phase, *task, *node, failure);
    }
    out + &rest(view.failures.len(), most)
}

fn one_failure(phase: &str, task: u32, node: NodeId, failure: &Failure) -> String {
    let task = FailedTask { phase: phase.to_owned(), task, node: Some(node), failure: failure.clone() };
    let mut out = format!("  {} {} on {}\n", failure.code, clean(&task.who()), node.short());
    out += &format!("{}\n", cut(&format!("    {}", clean(&failure.message)), WIDTH));
    let tail = clean_lines(failure.stderr_tail.trim_end());
    let lines: Vec<&str> = tail.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES_MAX)) {
        out += &format!("{}\n", cut(&format!("    | {line}"), WIDTH));
    }
    out
}

fn outputs(view: &JobView, most: usize) -> String {
    if view.outputs.is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        Column::Right("TASK"),
        Column::Cut("OUTPUT"),
        Column::Right("SIZE"),
        Column::Left("BLOB"),
        Column::Left("ON"),
        Column::Left("COPY"),
    ]);
    for output in view.outputs.iter().take(most) {
        table.row([
            output.task.to_string(),
            clean(&output.output.name),
            size(output.output.blob.size),
            output.output.blob.hash.short(),
            output.node.short(),
            output.copy.map_or_else(|| "-".to_owned(), |node| node.short()),
        ]);
    }
    table.render(WIDTH) + &rest(view.outputs.len(), most)
}

fn history(timeline: &[Event], most: usize) -> String {
    if timeline.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new([Column::Left("UTC"), Column::Left("FACT"), Column::Left("BY"), Column::Cut("WHAT IT SAYS")]);
    // The newest matter most, but how it began is said above already.
    for event in timeline.iter().skip(timeline.len().saturating_sub(most)) {
        table.row([clock(event.at_ms), clean(&event.what), event.author.short(), clean(&event.detail)]);
    }
    let earlier = timeline.len().saturating_sub(most);
    let note = if earlier > 0 { format!("{earlier} earlier ones: -v\n") } else { String::new() };
    table.render(WIDTH) + &note
}

fn rest(all: usize, most: usize) -> String {
    let more = all.saturating_sub(most);
    if more > 0 { format!("{more} more: -v\n") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::error_code::ErrorCode;
    use sinew_crdt_state::ids::FactId;

    use super::super::testing::{SUBMITTED_MS, assert_narrow, failed_view, failure, view};
    use super::*;

    fn event(ms: u64, what: &str, detail: &str) -> Event {
        let (author, id) = (NodeId([1; 32]), FactId([5; 32]));
        Event { at_ms: SUBMITTED_MS + ms, what: what.into(), author, detail: detail.into(), id }
    }

    #[test]
    fn a_running_round_in_full() {
        let timeline = [
            event(0, "submit", "spec of 512 bytes"),
            event(1_000, "claim", "term 1 epoch 1: 4 slots"),
            event(32_000, "accept", "phase 0: 620 results"),
        ];
        let text = job(&view(), &timeline, SUBMITTED_MS + 32_000, false);
        assert_narrow(&text);
        assert_eq!(
            text,
            "\
job       beeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeq
name      wordcount (map-reduce)
state     running
submitted 2026-07-31 11:59:29 UTC, 32s ago, by aeaqcaibae
brain     aeaqcaibae, term 1, of aeaqcaibae aibaeaqcai ambqgaydam
safety    survives the loss of any one node
key       bifaucqkbifaucqkbifaucqkbifaucqkbifaucqkbifaucqkbifa

PHASE   TASKS  DONE    %  RUNNING    RATE  ETA
map      1000   620  62%        8  20.0/s  19s
reduce      4     0   0%        0       -    -

NODE        MAP  REDUCE  SHARE  SLOTS
aibaeaqcai  310       0    50%      4
ambqgaydam  310       0    50%      4

TASK  OUTPUT    SIZE  BLOB        ON          COPY
   0  reduce  1.5KiB  aqcaibaeaq  aibaeaqcai  ambqgaydam

UTC           FACT    BY          WHAT IT SAYS
11:59:29.000  submit  aeaqcaibae  spec of 512 bytes
11:59:30.000  claim   aeaqcaibae  term 1 epoch 1: 4 slots
12:00:01.000  accept  aeaqcaibae  phase 0: 620 results
"
        );
    }

    #[test]
    fn failures_show_the_end_of_stderr_and_cannot_draw() {
        let tail = (0..40).map(|i| format!("line {i} {}\x1b[2J\n", "x".repeat(90))).collect::<String>();
        let failed = failed_view(0, 17, failure(ErrorCode::Exit, Some(3), &"long ".repeat(40), &tail));
        let timeline: Vec<Event> = (0..50).map(|i| event(i, "report", &"detail ".repeat(20))).collect();
        let text = job(&failed, &timeline, SUBMITTED_MS, false);
        assert_narrow(&text);
        assert!(text.contains("\n  E_EXIT map chunk 17 on aibaeaqcai\n    long long"), "{text}");
        assert!(text.contains("| line 39 ") && text.contains("| line 30 ") && !text.contains("| line 29 "), "{text}");
        assert!(!text.contains('\x1b') && text.ends_with("30 earlier ones: -v\n"), "{text}");
        assert!(!job(&failed, &timeline, SUBMITTED_MS, true).contains("earlier ones"));
    }

    #[test]
    fn many_of_everything_stay_in_their_columns() {
        let mut big = view();
        big.name = "n".repeat(128);
        let output = big.outputs[0].clone();
        big.outputs = (0..30).map(|_| output.clone()).collect();
        big.outputs[3].output.name = "a/very/long/path/".repeat(20);
        big.outputs[3].task = u32::MAX;
        big.shares[0].done = vec![100_000_000, 4_096];
        big.phases[0].tasks = 100_000_000;
        let text = job(&big, &[], SUBMITTED_MS, false);
        assert_narrow(&text);
        assert!(text.contains("10 more: -v"), "{text}");
    }
}
