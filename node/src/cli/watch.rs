//! Watching a job until it has ended: bars on a terminal, a line now and then in a pipe, objects with `--json`.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use sinew_scheduler::view::JobView;

use super::error::{CliError, JobEnd};
use super::human::{clean, cut, percent, size};
use super::render::outcome_word;
use super::render::pace::{Pace, line, share_line, shares};
use super::ui::Ui;
use crate::api::client::{Client, ClientError};
use crate::api::{Reply, Request};
use crate::clock::unix_ms;

/// Between two lines in a pipe: often enough to see that it lives, seldom enough to leave a log readable.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Between two objects with `--json`: programs can take more, but nobody needs every change of a counter.
const OBJECT_EVERY: Duration = Duration::from_millis(500);
/// Between two turns of a spinner while nothing changes.
const TICK: Duration = Duration::from_millis(200);

/// How much is said while a job goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Say {
    /// Progress.
    Progress,
    /// Nothing: something else is on the terminal.
    Nothing,
}

/// Follows `job` until it has ended, and returns its last view.
pub(crate) async fn watch(client: &Client, ui: Ui, job: &str, say: Say) -> Result<JobView, CliError> {
    let mut replies = client.ask(&Request::Watch { job: job.to_owned() }).await?;
    let mut display = Display::new(ui, say);
    let mut last = None;
    while let Some(reply) = replies.next().await? {
        let Reply::Job { view, .. } = reply else { return Err(ClientError::OtherReply.into()) };
        display.see(&view)?;
        last = Some(*view);
    }
    display.clear();
    // A daemon that ends before the job does ends the watch too.
    last.filter(JobView::is_ended).ok_or_else(|| ClientError::Gone.into())
}

/// A line of a show (the demo) for people; nothing with `json`, whose show is one object at its end.
pub fn show_watch(json: bool, text: &str) {
    if !json {
        // A show that nobody reads any more goes on to tidy up after itself.
        let _ = Ui { json, verbose: 0 }.line(text);
    }
}

/// Shows how `job` goes until it has completed.
///
/// # Errors
/// When it ends otherwise, or cannot be watched.
pub async fn show_watch_of(client: &Client, job: &str, json: bool) -> anyhow::Result<()> {
    let say = if json { Say::Nothing } else { Say::Progress };
    let view = watch(client, Ui { json, verbose: 0 }, job, say).await?;
    match JobEnd::of(&view) {
        Some(end) => Err(CliError::Job(Box::new(end)).into()),
        None => Ok(()),
    }
}

/// What progress looks like.
#[derive(Debug)]
enum Display {
    Bars(Bars),
    Lines { ui: Ui, pace: Pace, last: Option<Instant> },
    Nothing,
}

impl Display {
    fn new(ui: Ui, say: Say) -> Self {
        if say == Say::Nothing {
            Self::Nothing
        } else if ui.draws() {
            Self::Bars(Bars::new())
        } else {
            Self::Lines { ui, pace: Pace::default(), last: None }
        }
    }

    fn see(&mut self, view: &JobView) -> Result<(), CliError> {
        match self {
            Self::Nothing => {}
            Self::Bars(bars) => bars.see(view),
            Self::Lines { ui, pace, last } => {
                let paces = pace.see(view, unix_ms());
                let every = if ui.json { OBJECT_EVERY } else { LINE_EVERY };
                if last.is_some_and(|at| at.elapsed() < every) && !view.is_ended() {
                    return Ok(());
                }
                *last = Some(Instant::now());
                let state = outcome_word(view);
                if ui.json {
                    let nodes = shares(view);
                    ui.object(&json!({ "event": "progress", "job": view.id, "state": state, "phases": paces, "nodes": nodes }))?;
                } else {
                    ui.note(&format!("{}: {state}: {}", view.id.short(), line(view, &paces)));
                }
            }
        }
        Ok(())
    }

    fn clear(&self) {
        if let Self::Bars(bars) = self {
            // Each of them: a bar that is dropped unfinished is drawn once more.
            bars.phases.iter().chain([&bars.nodes]).for_each(ProgressBar::finish_and_clear);
        }
    }
}

impl Drop for Display {
    // An interrupted command must not leave half a bar on the terminal.
    fn drop(&mut self) {
        self.clear();
    }
}

/// A bar per phase and a line with the nodes.
#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    phases: Vec<ProgressBar>,
    nodes: ProgressBar,
    pace: Pace,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let nodes = all.add(ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg}")));
        nodes.enable_steady_tick(TICK);
        Self { all, phases: Vec::new(), nodes, pace: Pace::default() }
    }

    fn see(&mut self, view: &JobView) {
        let paces = self.pace.see(view, unix_ms());
        while self.phases.len() < paces.len() {
            let bar = ProgressBar::new(0).with_style(style("{prefix:6} [{bar:20}] {pos}/{len} {wide_msg}"));
            self.phases.push(self.all.insert_before(&self.nodes, bar));
        }
        for (bar, pace) in self.phases.iter().zip(&paces) {
            bar.set_prefix(clean(&pace.name));
            bar.set_length(pace.tasks);
            bar.set_position(pace.done);
            bar.set_message(pace.numbers());
        }
        let nodes = share_line(view);
        self.nodes.set_message(if nodes.is_empty() { outcome_word(view).to_owned() } else { nodes });
    }
}

/// How far taking in a job's inputs is.
#[derive(Debug)]
pub(crate) struct Intake {
    ui: Ui,
    bar: Option<ProgressBar>,
    last: Option<Instant>,
}

impl Intake {
    pub(crate) const fn new(ui: Ui) -> Self {
        Self { ui, bar: None, last: None }
    }

    /// Hears of progress.
    pub(crate) fn see(&mut self, what: &str, done: u64, total: u64) {
        if self.ui.draws() {
            let bar = self.bar.get_or_insert_with(|| {
                let style = style("{msg:30} [{bar:20}] {bytes}/{total_bytes} {bytes_per_sec}");
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
            });
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(cut(&clean(what), 30));
        } else if self.last.get_or_insert_with(Instant::now).elapsed() >= LINE_EVERY && !self.ui.json {
            self.last = Some(Instant::now());
            self.ui.note(&format!("{}: {} of {} {}", clean(what), size(done), size(total), percent(done, total)));
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates in this file are valid").progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::super::render::testing::view;
    use super::*;

    #[test]
    fn every_template_is_valid_and_bars_follow_the_view() {
        let mut bars = Bars::new();
        bars.all.set_draw_target(ProgressDrawTarget::hidden());
        bars.see(&view());
        assert_eq!(bars.phases.len(), 2);
        assert_eq!((bars.phases[0].position(), bars.phases[0].length()), (620, Some(1_000)));
        assert_eq!(bars.phases[0].message(), "62%, 8 running");
        style("{msg:30} [{bar:20}] {bytes}/{total_bytes} {bytes_per_sec}");
    }
}
