//! What is known of one task's attempts, and how much of which one was sent. It reads nothing and sends nothing.
//!
//! Attempts are told apart by their fence. What was sent of a stream is at any time the beginning of what one attempt printed: when
//! another attempt takes over, its bytes are compared with those that were sent, and where they differ the stream is sent anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::ids::NodeId;

use crate::frames::{AttemptLogs, LogData, LogPart};

/// An attempt whose award is over, and of whose end its node says nothing, is given up after so long.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// Attempts known of one task: far more than any retry policy gives, a bound against a member that invents them.
const ATTEMPTS_MAX: usize = 1_024;

/// Tells attempts of one task apart; the later one is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AttemptId {
    pub(super) fence: Fence,
    pub(super) node: NodeId,
    /// Its number on that node.
    pub(super) attempt: u64,
}

/// What is known of an attempt.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempt {
    /// Which one of the task, from 1; 0 where nobody said.
    pub(super) number: u32,
    /// Its node said that it is over.
    pub(super) over: bool,
    /// It ended well: another one is not sent after it, unless the job's end says that that one counts.
    pub(super) good: bool,
    /// Stdout and stderr: at least so much.
    pub(super) parts: [LogPart; 2],
    /// Since when its node has no award any more.
    pub(super) unseated: Option<Instant>,
}

impl Attempt {
    fn is_over(&self) -> bool {
        self.over || self.unseated.is_some_and(|since| since.elapsed() >= SILENT_AFTER)
    }
}

/// What was sent of one stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) sent: u64,
    hash: blake3::Hasher,
    check: Option<Check>,
}

/// Another attempt's bytes are compared with those that were sent.
#[derive(Debug)]
struct Check {
    at: u64,
    hash: blake3::Hasher,
}

/// What comes of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// They were sent before, or are still being compared.
    Nothing,
    /// These are to be sent.
    Send(&'a [u8]),
    /// The attempt printed something else than what was sent: it is sent from its beginning.
    Anew,
}

impl Stream {
    /// From where on bytes of the current attempt are wanted.
    pub(super) fn wanted(&self) -> u64 {
        self.check.as_ref().map_or(self.sent, |check| check.at)
    }

    /// Bytes of the current attempt that begin at [`Self::wanted`].
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8]) -> Next<'a> {
        let Some(check) = &mut self.check else {
            self.hash.update(bytes);
            self.sent += bytes.len() as u64;
            return if bytes.is_empty() { Next::Nothing } else { Next::Send(bytes) };
        };
        let left = usize::try_from(self.sent - check.at).unwrap_or(usize::MAX).min(bytes.len());
        check.hash.update(&bytes[..left]);
        check.at += left as u64;
        if check.at < self.sent {
            return Next::Nothing;
        }
        if check.hash.finalize() != self.hash.finalize() {
            return self.anew();
        }
        self.check = None;
        self.take(&bytes[left..])
    }

    /// The current attempt is over, with so many bytes in all.
    pub(super) fn close(&mut self, size: u64) -> Next<'static> {
        if self.check.is_some() && size < self.sent { self.anew() } else { Next::Nothing }
    }

    fn anew(&mut self) -> Next<'static> {
        *self = Self::default();
        Next::Anew
    }

    fn begin_check(&mut self) {
        self.check = (self.sent > 0).then(|| Check { at: 0, hash: blake3::Hasher::new() });
    }
}

/// One task.
#[derive(Debug, Default)]
pub(super) struct TaskLog {
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    /// The one that is sent.
    pub(super) current: Option<AttemptId>,
    pub(super) streams: [Stream; 2],
}

impl TaskLog {
    /// Hears what a node has of an attempt.
    pub(super) fn listed(&mut self, node: NodeId, logs: &AttemptLogs) {
        let id = AttemptId { fence: logs.attempt.fence, node, attempt: logs.attempt.attempt };
        let Some(known) = self.attempt(id) else { return };
        known.number = logs.attempt.number;
        if known.over && logs.running {
            return;
        }
        known.over = !logs.running;
        known.good |= logs.good;
        let parts = [logs.stdout, logs.stderr];
        for (known, part) in known.parts.iter_mut().zip(parts) {
            *known = if logs.running { LogPart { size: known.size.max(part.size), hash: None } } else { part };
        }
    }

    fn attempt(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        let room = self.attempts.len() < ATTEMPTS_MAX || self.attempts.contains_key(&id);
        room.then(|| self.attempts.entry(id).or_default())
    }

    /// Hears of a piece. Says which attempt it is of.
    pub(super) fn piece(&mut self, node: NodeId, data: &LogData) -> AttemptId {
        let id = AttemptId { fence: data.fence.unwrap_or(Fence { term: 0, epoch: 0 }), node, attempt: data.attempt };
        let Some(known) = self.attempt(id) else { return id };
        known.number = known.number.max(data.number);
        let part = &mut known.parts[usize::from(data.stderr)];
        if part.hash.is_none() {
            part.size = part.size.max(data.offset.saturating_add(data.bytes.len() as u64));
        }
        id
    }

    /// Notes which nodes have an award now.
    pub(super) fn seats(&mut self, has_award: impl Fn(NodeId) -> bool) {
        for (id, attempt) in &mut self.attempts {
            attempt.unseated =
                if has_award(id.node) { None } else { attempt.unseated.or_else(|| Some(Instant::now())) };
        }
    }

    /// Whether all that is known of the current attempt was sent.
    pub(super) fn is_level(&self) -> bool {
        let Some(current) = self.current.and_then(|id| self.attempts.get(&id)) else { return true };
        self.streams.iter().zip(&current.parts).all(|(stream, part)| stream.wanted() >= part.size)
    }

    /// The attempt to be sent next, if it is another one: while one goes on, nothing of others is sent.
    pub(super) fn next(&self) -> Option<AttemptId> {
        let Some(current) = self.current else { return self.attempts.keys().next_back().copied() };
        let over = self.attempts.get(&current).is_none_or(|attempt| attempt.is_over() && !attempt.good);
        let later = self.attempts.range(current..).map(|(id, _)| *id).find(|id| *id != current);
        later.filter(|_| over)
    }

    /// The node of the current attempt, where it has not said that the attempt is over.
    pub(super) fn silent(&self) -> Option<NodeId> {
        let id = self.current?;
        self.attempts.get(&id).is_some_and(|attempt| !attempt.over).then_some(id.node)
    }

    /// Whether an attempt runs, as far as is known.
    pub(super) fn runs(&self) -> bool {
        self.attempts.values().any(|attempt| !attempt.over && attempt.unseated.is_none())
    }

    /// Goes on with another attempt.
    pub(super) fn switch(&mut self, to: AttemptId) {
        self.current = Some(to);
        self.streams.iter_mut().for_each(Stream::begin_check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u32) -> AttemptId {
        AttemptId { fence: Fence { term: 1, epoch }, node: NodeId([1; 32]), attempt: u64::from(epoch) }
    }

    /// Another attempt that prints the same goes on where the first was; one that differs is sent from its beginning.
    #[test]
    fn bytes_of_two_attempts_are_never_put_together() {
        let mut stream = Stream::default();
        assert_eq!(stream.take(b"first 7\nmid"), Next::Send(b"first 7\nmid"));
        stream.begin_check();
        assert_eq!((stream.wanted(), stream.take(b"first")), (0, Next::Nothing));
        assert_eq!(stream.take(b" 7\nmiddle\n"), Next::Send(b"dle\n"));
        stream.begin_check();
        assert_eq!(stream.take(b"first 8\nmiddle\nlast"), Next::Anew);
        assert_eq!((stream.wanted(), stream.take(b"first 8\n")), (0, Next::Send(b"first 8\n")));
        // One that ended sooner is another too.
        stream.begin_check();
        assert_eq!(stream.take(b"first"), Next::Nothing);
        assert_eq!(stream.close(5), Next::Anew);
        assert_eq!(stream.close(5), Next::Nothing);
        // Of nothing anything is the beginning.
        stream.begin_check();
        assert_eq!(stream.take(b"x"), Next::Send(b"x"));
    }

    #[test]
    fn a_later_attempt_waits_for_the_end_of_the_one_that_is_sent() {
        let mut task = TaskLog::default();
        assert_eq!(task.next(), None);
        task.attempts.insert(id(1), Attempt::default());
        assert_eq!(task.next(), Some(id(1)));
        task.switch(id(1));
        task.attempts.insert(id(2), Attempt::default());
        assert_eq!(task.next(), None, "a twin");
        task.seats(|_| false);
        assert_eq!(task.next(), None, "its node may yet say how it ended");
        task.attempts.get_mut(&id(1)).expect("it is known").over = true;
        assert_eq!(task.next(), Some(id(2)));
    }
}
