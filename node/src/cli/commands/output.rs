//! What tasks print, on its way to stdout and stderr here. What a pipe or a file gets is of one attempt of a task, whole, or the command
//! ends with an error: bytes that are out cannot be taken back. A person at a terminal is shown each attempt, with a line between.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal};

use data_encoding::BASE64;
use serde_json::json;
use sinew_crdt_state::ids::JobId;

use super::super::error::CliError;
use super::super::human::clean;
use super::super::ui::Ui;
use crate::api::Reply;
use crate::api::client::ClientError;

/// Bytes of stdout that wait for the end of their attempt where another may follow: what most such programs print, and small beside
/// what the command takes anyway.
const HOLD_MAX: usize = 1 << 20;

type TaskKey = (u8, u32);

/// See the module.
#[derive(Debug)]
pub(crate) struct Output {
    ui: Ui,
    /// A person sees stdout.
    shown: bool,
    /// Stdout waits here until its attempt is known to be the last.
    held: Option<Vec<u8>>,
    /// Bytes of stdout that are out, by task.
    printed: BTreeMap<TaskKey, u64>,
    /// Tasks of whose stdout another attempt's beginning is out.
    spoiled: BTreeSet<TaskKey>,
    /// Some stdout cannot be had.
    missing: bool,
}

impl Output {
    /// `hold` keeps stdout back until its attempt is over: for jobs that may try again after a failure.
    pub(crate) fn new(ui: Ui, hold: bool) -> Self {
        let shown = io::stdout().is_terminal();
        let held = (hold && !shown && !ui.json).then(Vec::new);
        Self { ui, shown, held, printed: BTreeMap::new(), spoiled: BTreeSet::new(), missing: false }
    }

    /// Takes what the daemon sent.
    pub(crate) fn take(&mut self, reply: Reply) -> Result<(), CliError> {
        match reply {
            Reply::Output { task, stderr, data, phase, attempt } => {
                if self.ui.json {
                    let object = json!({ "event": "output", "task": task, "stderr": stderr, "data": data, "phase": phase, "attempt": attempt });
                    return self.ui.object(&object);
                }
                let bytes = BASE64.decode(data.as_bytes()).map_err(|_| ClientError::OtherReply)?;
                if stderr { self.ui.pass(true, &bytes) } else { self.stdout((phase, task), &bytes) }
            }
            Reply::Attempt { task, attempt, node, phase } => {
                if self.ui.json {
                    let object =
                        json!({ "event": "attempt", "task": task, "attempt": attempt, "node": node, "phase": phase });
                    return self.ui.object(&object);
                }
                self.ui.note(&format!("sinew: task {task}: {}, on node {}", named(attempt), node.short()));
                Ok(())
            }
            Reply::Anew { task, stderr, phase, attempt } => {
                if self.ui.json {
                    let object =
                        json!({ "event": "anew", "task": task, "stderr": stderr, "phase": phase, "attempt": attempt });
                    return self.ui.object(&object);
                }
                if !stderr {
                    self.anew((phase, task), attempt);
                }
                Ok(())
            }
            Reply::Missing { task, stderr, why, phase, attempt } => {
                if self.ui.json {
                    let object = json!({ "event": "missing", "task": task, "stderr": stderr, "why": why, "phase": phase, "attempt": attempt });
                    return self.ui.object(&object);
                }
                let stream = if stderr { "stderr" } else { "stdout" };
                self.ui.note(&format!("sinew: output is missing: {stream} of task {task}: {}", clean(&why)));
                self.missing |= !stderr;
                Ok(())
            }
            _ => Err(ClientError::OtherReply.into()),
        }
    }

    fn stdout(&mut self, key: TaskKey, bytes: &[u8]) -> Result<(), CliError> {
        if self.spoiled.contains(&key) {
            return Ok(());
        }
        if let Some(held) = &mut self.held {
            held.extend_from_slice(bytes);
            return if held.len() > HOLD_MAX { self.let_go(key) } else { Ok(()) };
        }
        *self.printed.entry(key).or_default() += bytes.len() as u64;
        self.ui.pass(false, bytes)
    }

    /// Prints what was held; from here on nothing is.
    fn let_go(&mut self, key: TaskKey) -> Result<(), CliError> {
        let Some(held) = self.held.take().filter(|held| !held.is_empty()) else { return Ok(()) };
        *self.printed.entry(key).or_default() += held.len() as u64;
        self.ui.pass(false, &held)
    }

    fn anew(&mut self, key: TaskKey, attempt: u32) {
        let task = key.1;
        if let Some(held) = &mut self.held {
            let bytes = held.len();
            held.clear();
            self.ui.note(&format!("sinew: task {task}: {bytes} bytes of the attempt before are not printed"));
        } else if self.printed.get(&key).is_some_and(|printed| *printed > 0) && !self.shown {
            let named = named(attempt);
            self.ui.note(&format!("sinew: task {task}: {named} prints something else than what is out already"));
            self.spoiled.insert(key);
        }
        self.printed.remove(&key);
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// That what is out is not one attempt's output, whole.
    pub(crate) fn finish(mut self, job: JobId) -> Result<(), CliError> {
        // With several tasks nothing is held.
        self.let_go((0, 0))?;
        match self.spoiled.first() {
            Some((_, task)) => Err(CliError::Spliced { job, task: *task }),
            None if self.missing => Err(CliError::Missing { job }),
            None => Ok(()),
        }
    }
}

impl Drop for Output {
    // Of a command that is interrupted what was printed is worth seeing.
    fn drop(&mut self) {
        let _ = self.let_go((0, 0));
    }
}

fn named(attempt: u32) -> String {
    if attempt == 0 { "another attempt".to_owned() } else { format!("attempt {attempt}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(hold: bool) -> Output {
        let ui = Ui { json: false, verbose: 0 };
        let held = hold.then(Vec::new);
        let (printed, spoiled) = (BTreeMap::new(), BTreeSet::new());
        Output { ui, shown: false, held, printed, spoiled, missing: false }
    }

    fn piece(text: &str) -> Reply {
        Reply::Output { task: 0, stderr: false, data: BASE64.encode(text.as_bytes()), phase: 0, attempt: 1 }
    }

    const ANEW: Reply = Reply::Anew { task: 0, stderr: false, phase: 0, attempt: 2 };

    #[test]
    fn two_attempts_in_a_pipe_are_an_error_unless_the_first_was_held_back() {
        let job = JobId([1; 32]);
        let mut pipe = output(false);
        pipe.take(piece("")).expect("taken");
        pipe.take(ANEW).expect("nothing is out");
        pipe.take(piece("x")).expect("taken");
        assert!(pipe.spoiled.is_empty());
        pipe.take(ANEW).expect("taken");
        pipe.take(piece("never printed")).expect("taken");
        assert!(matches!(pipe.finish(job), Err(CliError::Spliced { task: 0, .. })));
        let mut held = output(true);
        held.take(piece("first")).expect("taken");
        held.take(ANEW).expect("taken");
        assert_eq!(held.held.as_deref(), Some(&b""[..]));
        held.finish(job).expect("whole");
        let mut cut = output(false);
        let missing = Reply::Missing { task: 0, stderr: false, why: "gone".to_owned(), phase: 0, attempt: 1 };
        cut.take(missing).expect("taken");
        assert!(matches!(cut.finish(job), Err(CliError::Missing { .. })));
    }
}
