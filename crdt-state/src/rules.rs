//! Who may state what (feature L2), as far as it can be told from the fact, its author and the job's spec alone. These
//! checks run before a fact is merged; their verdict is the same on every node and never depends on what arrived before.
//! Whether a claim or report fits an award is judged when facts are folded ([`crate::state`]).

use crate::certificate::Roles;
use crate::fact::{Accepted, Fact, Failure, ITEMS_MAX, Outcome, Output, ReportItem, Run, TEXT_LEN_MAX};
use crate::ids::NodeId;
use crate::spec::{JobSpec, PACE_MAX, PACE_MIN, Phase};

/// Longest output name, and most outputs of one task: bounds what a report can make a brain remember.
pub const OUTPUT_NAME_LEN_MAX: usize = 1_024;
/// Most outputs of one task.
pub const OUTPUTS_MAX: usize = 1_024;

/// Why an author may not state a fact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The author is no member, or lacks the role.
    #[error("{fact} by {author}: needs the role {needs}")]
    Role {
        /// The fact's name.
        fact: &'static str,
        /// Who stated it.
        author: NodeId,
        /// What would be needed.
        needs: Roles,
    },
    /// Only another node may state it.
    #[error("{fact} by {author}: only {only} may state it")]
    Author {
        /// The fact's name.
        fact: &'static str,
        /// Who stated it.
        author: NodeId,
        /// Who may.
        only: &'static str,
    },
    /// A number or text is out of bounds.
    #[error("{fact}: {what} is out of bounds")]
    Bounds {
        /// The fact's name.
        fact: &'static str,
        /// Which part.
        what: &'static str,
    },
}

/// The brain of `term`: the set's members take turns, so that no two nodes can ever lead the same term.
#[must_use]
pub fn brain_of(spec: &JobSpec, term: u32) -> Option<NodeId> {
    let turn = term.checked_sub(1)? as usize % spec.brain_set.len();
    spec.brain_set.get(turn).copied()
}

/// The lowest term above `above` that `node` may lead; `None` when it is not in the brain set or terms ran out.
#[must_use]
pub fn next_term_of(spec: &JobSpec, node: NodeId, above: u32) -> Option<u32> {
    let n = spec.brain_set.len();
    (1..=n).filter_map(|step| above.checked_add(u32::try_from(step).ok()?)).find(|t| brain_of(spec, *t) == Some(node))
}

/// Checks that `author`, who holds `roles`, may state `fact` about the job of `spec`.
///
/// # Errors
/// [`RuleError`].
pub fn check(spec: &JobSpec, author: NodeId, roles: Roles, fact: &Fact) -> Result<(), RuleError> {
    let name = fact.name();
    let role = |needs: Roles| {
        if roles.contains(needs) { Ok(()) } else { Err(RuleError::Role { fact: name, author, needs }) }
    };
    let only = |ok: bool, only: &'static str| {
        if ok { Ok(()) } else { Err(RuleError::Author { fact: name, author, only }) }
    };
    let brain = |term: u32| only(brain_of(spec, term) == Some(author), "the brain of its term");
    match fact {
        Fact::Submit(_) => {
            role(Roles::SUBMIT)?;
            only(author == spec.submitter, "the submitter")
        }
        Fact::Bid { .. } | Fact::Claim { .. } | Fact::Receipt(_) => role(Roles::RUN),
        Fact::Report { phase, items, .. } => {
            role(Roles::RUN)?;
            check_report(spec, *phase, items).map_err(|what| RuleError::Bounds { fact: name, what })
        }
        Fact::Award { fence, .. } | Fact::Revoke { fence, .. } => brain(fence.term),
        Fact::Accept { term, phase, items } => {
            brain(*term)?;
            check_accept(spec, *phase, items).map_err(|what| RuleError::Bounds { fact: name, what })
        }
        Fact::Lead { term, voters, base, pace } => {
            brain(*term)?;
            check_pace(*pace).map_err(|what| RuleError::Bounds { fact: name, what })?;
            if base.len() > ITEMS_MAX {
                return Err(RuleError::Bounds { fact: name, what: "its list of accepts" });
            }
            let distinct =
                voters.iter().enumerate().all(|(i, v)| spec.brain_set.contains(v) && !voters[..i].contains(v));
            let enough = distinct && voters.len() >= spec.majority();
            if enough { Ok(()) } else { Err(RuleError::Bounds { fact: name, what: "its list of voters" }) }
        }
        Fact::Finish { term, outcome } => {
            brain(*term)?;
            check_outcome(outcome).map_err(|what| RuleError::Bounds { fact: name, what })
        }
        Fact::Seal { term, outcome, receipts, .. } => {
            brain(*term)?;
            if receipts.len() > ITEMS_MAX {
                return Err(RuleError::Bounds { fact: name, what: "its list of receipts" });
            }
            check_outcome(outcome).map_err(|what| RuleError::Bounds { fact: name, what })
        }
        Fact::Vote { pace, .. } => {
            only(spec.brain_set.contains(&author), "a member of the brain set")?;
            check_pace(*pace).map_err(|what| RuleError::Bounds { fact: name, what })
        }
        Fact::Rejoin { .. } => only(spec.brain_set.contains(&author), "a member of the brain set"),
        Fact::Cancel { reason } => {
            only(author == spec.submitter || roles.contains(Roles::ADMIN), "the submitter or an admin")?;
            if reason.len() > TEXT_LEN_MAX {
                return Err(RuleError::Bounds { fact: name, what: "its reason" });
            }
            Ok(())
        }
    }
}

fn tasks_of(spec: &JobSpec, phase: Phase) -> Result<u32, &'static str> {
    spec.phases().get(usize::from(phase)).copied().ok_or("its phase")
}

pub(crate) const fn check_pace(pace: u8) -> Result<(), &'static str> {
    if pace >= PACE_MIN && pace <= PACE_MAX { Ok(()) } else { Err("its pace") }
}

fn check_run(run: Run, tasks: u32) -> Result<(), &'static str> {
    if run.len > 0 && run.start.checked_add(run.len).is_some_and(|end| end <= tasks) {
        Ok(())
    } else {
        Err("a task number")
    }
}

fn check_outputs(outputs: &[Output]) -> Result<(), &'static str> {
    if outputs.len() > OUTPUTS_MAX {
        return Err("the number of outputs");
    }
    if outputs.iter().any(|o| o.name.len() > OUTPUT_NAME_LEN_MAX || !crate::spec::is_safe_relative(&o.name)) {
        return Err("the name of an output");
    }
    Ok(())
}

fn check_failure(failure: &Failure) -> Result<(), &'static str> {
    if failure.message.len() > TEXT_LEN_MAX || failure.stderr_tail.len() > TEXT_LEN_MAX {
        return Err("the text of a failure");
    }
    Ok(())
}

fn check_report(spec: &JobSpec, phase: Phase, items: &[ReportItem]) -> Result<(), &'static str> {
    let tasks = tasks_of(spec, phase)?;
    if items.len() > ITEMS_MAX {
        return Err("the number of items");
    }
    items.iter().try_for_each(|item| match item {
        ReportItem::Plain { run, .. } => check_run(*run, tasks),
        ReportItem::Outputs { task, outputs, .. } => {
            check_run(Run { start: *task, len: 1 }, tasks)?;
            check_outputs(outputs)
        }
        ReportItem::Failed { task, failure, .. } => {
            check_run(Run { start: *task, len: 1 }, tasks)?;
            check_failure(failure)
        }
    })
}

fn check_accept(spec: &JobSpec, phase: Phase, items: &[Accepted]) -> Result<(), &'static str> {
    let tasks = tasks_of(spec, phase)?;
    if items.len() > ITEMS_MAX {
        return Err("the number of items");
    }
    let last = usize::from(phase) + 1 == spec.phases().len();
    items.iter().try_for_each(|item| {
        check_run(item.run, tasks)?;
        // What a user is shown is never replaced.
        if last && item.again > 0 {
            return Err("how often it was made");
        }
        // Outputs are one task's own: a long run of them would make every reader's memory grow by a few bytes' word.
        if !item.outputs.is_empty() && item.run.len != 1 {
            return Err("a task number");
        }
        check_outputs(&item.outputs)
    })
}

fn check_outcome(outcome: &Outcome) -> Result<(), &'static str> {
    match outcome {
        Outcome::Failed { failure, .. } => check_failure(failure),
        Outcome::Completed | Outcome::Cancelled => Ok(()),
    }
}

/// Cuts a text to what a fact may hold, at a character boundary.
#[must_use]
pub fn clip(mut text: String) -> String {
    if text.len() > TEXT_LEN_MAX {
        let cut = (0..=TEXT_LEN_MAX).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(cut);
    }
    text
}
