//! One warm worker: an interpreter that runs `worker.py`, and what is said to it. It is as hostile as the functions that it has
//! called: what it says is short, and nothing is believed of it but how a call ended.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Deserialize;

use crate::exec::body::Body;
use crate::exec::cell::pool::Fit;
use crate::exec::cell::process_cpu;
use crate::exec::control::Who;
use crate::exec::guardian::NodeTag;
use crate::exec::outcome::Failure;
use crate::exec::process::Pipe;
use crate::exec::procfs;
use crate::exec::stop::{Bound, StopHandle};
use crate::exec::sweep::{self, Target};
use crate::exec::switch::Kind;

/// What a worker runs.
pub(super) const SCRIPT: &str = include_str!("worker.py");
/// Longest reply: a message of [`MESSAGE_MAX`] characters, each of them escaped, and a few numbers.
const REPLY_LEN_MAX: usize = 16 * 1024;
/// Characters of a message that are shown.
const MESSAGE_MAX: usize = 1_000;
/// Bytes of a frame's length.
const LEN_BYTES: usize = 4;
/// A worker takes a request as it comes; one that leaves it lying this long is broken.
const SEND_PATIENCE: Duration = Duration::from_secs(10);

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum End {
    /// The function returned.
    Done,
    /// It raised an exception.
    Raised,
    /// It asked to exit.
    Exited,
    /// There is no such function, or it does not fit its parameters.
    Refused,
}

/// What a worker says of a call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Reply {
    pub(super) end: End,
    #[serde(default)]
    pub(super) code: u8,
    #[serde(default)]
    pub(super) message: String,
    /// Whether it can take another call.
    pub(super) usable: bool,
    #[serde(default)]
    pub(super) peak_rss_kib: u64,
}

/// What has come from a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing, or not all of it yet.
    Nothing,
    /// A reply.
    Reply(Reply),
    /// Something that is none.
    Garbage,
    /// It closed the connection.
    Closed,
}

/// An interpreter that waits for calls, or is at one. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) body: Body,
    socket: OwnedFd,
    received: Vec<u8>,
    pub(super) pipes: Arc<[Pipe; 2]>,
    pub(super) fit: Fit,
    pub(super) env: BTreeMap<String, String>,
    pid: Option<i32>,
    /// CPU time up to the end of its last call: its own, and that of children it waited for.
    cpu: [Duration; 2],
    /// Bytes of memory that it may use.
    memory_bytes: u64,
    tag: NodeTag,
    run: u64,
}

/// A worker's connections: ours, and what becomes its stdin.
pub(super) fn connection() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&ours, Timeout::Send, Some(SEND_PATIENCE))?;
    Ok((ours, theirs))
}

/// What tells a worker from others.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) fit: Fit,
    pub(super) env: BTreeMap<String, String>,
    pub(super) memory_bytes: u64,
    pub(super) tag: NodeTag,
    pub(super) run: u64,
}

impl Worker {
    pub(super) fn new(body: Body, socket: OwnedFd, pipes: Arc<[Pipe; 2]>, identity: Identity) -> Self {
        let Identity { fit, env, memory_bytes, tag, run } = identity;
        Self {
            body,
            socket,
            received: Vec::new(),
            pipes,
            fit,
            env,
            pid: None,
            cpu: [Duration::ZERO; 2],
            memory_bytes,
            tag,
            run,
        }
    }

    /// For `poll(2)`: readable when it has said something.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its process, as the host counts, once it is known.
    pub(super) fn pid(&mut self) -> Option<i32> {
        if self.pid.is_none() {
            self.pid = self.body.pid();
        }
        self.pid
    }

    /// Has it killed when the lease of its next call is over.
    pub(super) fn bind(&self, stop: &StopHandle) -> Result<Bound, Failure> {
        let number = |pid: rustix::process::Pid| pid.as_raw_nonzero().get();
        match &self.body {
            Body::Child(group, _) => stop.bind(Kind::Group, number(group.pid), self.run),
            Body::Cell(run) => stop.bind(Kind::Cell, run.init().map_or(0, number), self.run),
            Body::Call(_) => stop.bind(Kind::Group, 0, self.run),
        }
    }

    /// Where its process is found.
    pub(super) fn who(&self) -> Who {
        match &self.body {
            Body::Child(group, _) => Who::Process(group.pid),
            Body::Cell(run) => run.init().map_or(Who::Nobody, Who::ChildOf),
            Body::Call(_) => Who::Nobody,
        }
    }

    /// Whether it lives and has said and written nothing since its last call ended.
    pub(super) fn is_quiet(&self) -> bool {
        let end = self.body.end_fd();
        let fds = [&end, &self.fd(), &self.pipes[0].read.as_fd(), &self.pipes[1].read.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
        let mut fds = fds;
        matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }

    /// Says something, with a descriptor beside it.
    pub(super) fn send(&self, payload: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let len = u32::try_from(payload.len()).map_err(|_| Errno::MSGSIZE)?;
        let mut frame = Vec::with_capacity(LEN_BYTES + payload.len());
        frame.extend_from_slice(&len.to_le_bytes());
        frame.extend_from_slice(payload.as_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::INVAL);
        }
        let mut sent = 0;
        while sent < frame.len() {
            match sendmsg(&self.socket, &[IoSlice::new(&frame[sent..])], &mut ancillary, SendFlags::NOSIGNAL) {
                // The descriptor went with the first byte.
                Ok(n) => {
                    sent += n;
                    ancillary.clear();
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes what it has said, without waiting.
    pub(super) fn hear(&mut self) -> Said {
        let mut bytes = [0_u8; 4096];
        loop {
            let mut nothing = RecvAncillaryBuffer::default();
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut nothing, flags) {
                Ok(got) if got.bytes == 0 => return Said::Closed,
                Ok(got) => self.received.extend_from_slice(&bytes[..got.bytes]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Said::Nothing,
                Err(_) => return Said::Closed,
            }
            match parse(&self.received) {
                Said::Nothing => {}
                said => {
                    self.received.clear();
                    return said;
                }
            }
        }
    }

    /// CPU time since this was asked last, if it lives. Children are looked at only after a call that was `long`: that takes
    /// as long as a short call.
    pub(super) fn spent(&mut self, long: bool) -> Duration {
        let Some(pid) = self.pid() else { return Duration::ZERO };
        let before = self.spent_before();
        self.cpu[0] = process_cpu(pid).unwrap_or_default().max(self.cpu[0]);
        if long && let Some(stat) = procfs::stat(pid) {
            self.cpu[1] = Duration::from_millis(stat.children_cpu_ms).max(self.cpu[1]);
        }
        self.spent_before() - before
    }

    /// CPU time up to the end of its last call.
    pub(super) fn spent_before(&self) -> Duration {
        self.cpu[0] + self.cpu[1]
    }

    /// The most memory that its process has used, bytes, as it says itself: no more than it may.
    pub(super) fn peak_rss(&self, reply: &Reply) -> u64 {
        reply.peak_rss_kib.saturating_mul(1_024).min(self.memory_bytes)
    }

    /// Whether processes are left in its cell besides it.
    pub(super) fn left_others(&self) -> bool {
        self.body.cell_children() > 1
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if matches!(self.body, Body::Child(..)) {
            self.body.end();
            // What has left its group ends with it too.
            sweep::kill_matching(Target::Run(&self.tag, self.run));
        }
    }
}

fn parse(received: &[u8]) -> Said {
    let Some((len, payload)) = received.split_first_chunk::<LEN_BYTES>() else { return Said::Nothing };
    let len = u32::from_le_bytes(*len) as usize;
    // More than one reply was not asked for.
    if len > REPLY_LEN_MAX || payload.len() > len {
        return Said::Garbage;
    }
    if payload.len() < len {
        return Said::Nothing;
    }
    match serde_json::from_slice::<Reply>(payload) {
        Ok(mut reply) => {
            reply.message = plain(&reply.message);
            Said::Reply(reply)
        }
        Err(_) => Said::Garbage,
    }
}

/// One line without control characters, of a length that can be shown.
fn plain(message: &str) -> String {
    message.chars().take(MESSAGE_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).expect("short");
        [&len.to_le_bytes()[..], payload].concat()
    }

    #[test]
    fn only_a_whole_reply_counts_and_only_one() {
        let good = frame(br#"{"end":"raised","code":1,"message":"a\u001bb\nc","usable":false,"peak_rss_kib":9}"#);
        for len in 0..good.len() {
            assert_eq!(parse(&good[..len]), Said::Nothing, "{len}");
        }
        let Said::Reply(reply) = parse(&good) else { panic!("a reply") };
        assert_eq!((reply.end, reply.code, reply.message.as_str()), (End::Raised, 1, "a b c"));
        assert_eq!(parse(&[good.clone(), good].concat()), Said::Garbage);
        for bad in [&frame(b"{}")[..], &frame(b"[]"), &frame(br#"{"end":"x","usable":true}"#), &[255, 255, 255, 255]] {
            assert_eq!(parse(bad), Said::Garbage, "{bad:?}");
        }
        let nested = frame(&[b'['; 10_000]);
        assert_eq!(parse(&nested), Said::Garbage);
    }
}
