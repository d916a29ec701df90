//! What daemon and cell say to each other: frames of CBOR over a socket pair, file descriptors beside them. The daemon
//! takes a cell for hostile: a frame of it is short, and one that does not decode ends the cell.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sinew_crdt_state::cbor;
use sinew_crdt_state::network::ENDPOINTS_MAX;
use zeroize::Zeroizing;

use super::network::Route;
use crate::secrets::files::SecretFile;

use crate::exec::volumes::Mounted;

/// Longest frame from a cell: a report, or a list of what the kernel lacks.
pub(super) const REPORT_LEN_MAX: usize = 16 * 1024;
/// Longest frame to a cell: arguments and environment of a spec's length, several times over.
pub(super) const REQUEST_LEN_MAX: usize = 16 << 20;
/// Descriptors beside one frame: stdin, stdout and stderr, or the listening sockets of a network.
const FDS_MAX: usize = ENDPOINTS_MAX;
/// Bytes of a frame's length.
const LEN_BYTES: usize = 4;
/// Bytes taken from the socket at once: most requests are shorter.
const READ_LEN: usize = 8 * 1024;

/// A piece of isolation that this machine does not give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub piece: String,
    /// Why, in the system's words.
    pub why: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.piece, self.why)
    }
}

/// How a cell is to be set up. All paths are the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Holds `work` and `output`; seen as `/job`.
    pub(super) job: PathBuf,
    /// The job's files; seen as `/input`.
    pub(super) input: Option<PathBuf>,
    /// Further paths, seen where they are, read-only.
    pub(super) readable: Vec<PathBuf>,
    /// Further paths, seen where they are, writable.
    pub(super) writable: Vec<PathBuf>,
    /// Directories that the job has, seen where it wants them.
    pub(super) volumes: Vec<Mounted>,
    /// Bytes that fit into `/tmp`, and again into `/dev/shm`.
    pub(super) tmp_bytes: u64,
    /// Largest file that a program can write, bytes.
    pub(super) file_bytes_max: u64,
    /// Most processes and threads at a time.
    pub(super) processes_max: u64,
    /// Whether supplementary groups can be dropped: only root's maps allow that.
    pub(super) drop_groups: bool,
    /// The hosts that programs may reach.
    pub(super) routes: Vec<Route>,
    /// Files of a directory in memory, read-only; seen as `/run/secrets`.
    pub(super) secrets: Vec<SecretFile>,
}

/// One program to start; three descriptors come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spawn {
    pub(super) program: PathBuf,
    pub(super) argv: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

/// Daemon to cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// The first thing said.
    Setup(Box<Setup>),
    /// The identity maps are written.
    Mapped,
    /// Start a program. There is none.
    Spawn(Spawn),
    /// Signal the program's process group.
    Signal(i32),
    /// Kill the program and whatever it started.
    Kill,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::exec) struct Exit {
    /// As `wait(2)` gives it.
    pub(in crate::exec) status: i32,
    /// User and system CPU µs of it and the children it waited for.
    pub(in crate::exec) cpu_us: u64,
    /// Peak resident bytes of its biggest process.
    pub(in crate::exec) max_rss_bytes: u64,
    /// Whether the cell can take another: everything that the program left is gone.
    pub(in crate::exec) reusable: bool,
}

/// Cell to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The cell's first process is this one, as the host counts.
    Born(i32),
    /// A piece that nothing can go on without could not be had.
    Failed(Missing),
    /// Programs can be started, with these pieces missing. A listening socket for each port of each route comes with it.
    Ready(Vec<Missing>),
    /// The program could not be started, for this `errno`.
    NotStarted(i32),
    /// The program ended, and nothing of it is left.
    Ended(Exit),
}

/// Why a conversation broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The other side is gone.
    #[error("the other side closed the socket")]
    Closed,
    /// The socket.
    #[error("the socket: {0}")]
    Io(#[from] rustix::io::Errno),
    /// Something else that the system refused.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// What came is none of ours.
    #[error("a frame that is none: {0}")]
    Garbage(String),
}

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    len_max: usize,
    takes_fds: bool,
    received: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Channel {
    /// The daemon's end. Descriptors that come are dropped by the kernel, unless they are [asked for](Self::let_fds).
    pub(super) const fn daemon(socket: OwnedFd) -> Self {
        Self { socket, len_max: REPORT_LEN_MAX, takes_fds: false, received: Vec::new(), fds: VecDeque::new() }
    }

    /// The cell's end.
    pub(super) const fn cell(socket: OwnedFd) -> Self {
        Self { socket, len_max: REQUEST_LEN_MAX, takes_fds: true, received: Vec::new(), fds: VecDeque::new() }
    }

    /// Has descriptors taken from now on, or dropped again.
    pub(super) const fn let_fds(&mut self, takes_fds: bool) {
        self.takes_fds = takes_fds;
    }

    /// For `poll(2)`; a frame may also be at hand already, see [`Self::buffered`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Says something.
    pub(super) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        // There may be secrets in it.
        let body = Zeroizing::new(cbor::to_vec(message));
        let mut frame = Zeroizing::new(vec![0; LEN_BYTES]);
        frame.reserve_exact(body.len());
        frame.extend_from_slice(&body);
        let len = u32::try_from(frame.len() - LEN_BYTES).map_err(|_| WireError::Garbage("too long".to_owned()))?;
        frame[..LEN_BYTES].copy_from_slice(&len.to_le_bytes());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(WireError::Garbage("too many descriptors".to_owned()));
        }
        let mut sent = 0;
        while sent < frame.len() {
            match sendmsg(&self.socket, &[IoSlice::new(&frame[sent..])], &mut ancillary, SendFlags::NOSIGNAL) {
                // The descriptors went with the first byte.
                Ok(n) => {
                    sent += n;
                    ancillary.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Err(WireError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits for the next frame and the descriptors that came so far.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> Result<T, WireError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill()?;
        }
    }

    /// The next frame, if it has been received whole.
    pub(super) fn buffered<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let Some((len, rest)) = self.received.split_first_chunk::<LEN_BYTES>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len > self.len_max {
            return Err(WireError::Garbage(format!("{len} bytes")));
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        let message = cbor::from_slice(payload).map_err(|e| WireError::Garbage(e.to_string()))?;
        self.received.drain(..LEN_BYTES + len);
        Ok(Some(message))
    }

    /// Takes what the socket has, waiting for something if it has nothing.
    pub(super) fn fill(&mut self) -> Result<(), WireError> {
        let mut bytes = [0_u8; READ_LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary =
            if self.takes_fds { RecvAncillaryBuffer::new(&mut space) } else { RecvAncillaryBuffer::default() };
        let got = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        match got {
            Ok(got) if got.bytes == 0 => Err(WireError::Closed),
            Ok(got) => {
                self.received.extend_from_slice(&bytes[..got.bytes]);
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(rustix::io::Errno::CONNRESET) => Err(WireError::Closed),
            Err(e) => Err(e.into()),
        }
    }

    /// The descriptors that came with a frame.
    pub(super) fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.fds.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("pair");
        (Channel::daemon(a), Channel::cell(b))
    }

    #[test]
    fn frames_and_descriptors_arrive_in_order() {
        let (daemon, mut cell) = pair();
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let env: Vec<_> = (0..20_000).map(|i| (format!("V{i}"), "x".repeat(20))).collect();
        let spawn = Spawn { program: "/bin/true".into(), argv: vec!["true".into()], env };
        let sent = [Request::Spawn(spawn), Request::Signal(15), Request::Kill];
        let requests = sent.clone();
        let sender = std::thread::spawn(move || {
            daemon.send(&requests[0], &[writer.as_fd()]).expect("send");
            daemon.send(&requests[1], &[]).expect("send");
            daemon.send(&requests[2], &[]).expect("send");
        });
        let first: Request = cell.receive().expect("receive");
        assert!(first == sent[0], "the long one");
        let mut fds = cell.take_fds();
        assert_eq!(fds.len(), 1);
        File::from(fds.remove(0)).write_all(b"through").expect("write");
        assert_eq!(cell.receive::<Request>().expect("receive"), sent[1]);
        assert_eq!(cell.receive::<Request>().expect("receive"), sent[2]);
        sender.join().expect("sender");
        assert!(matches!(cell.receive::<Request>(), Err(WireError::Closed)));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
    }

    #[test]
    fn what_a_hostile_cell_says_is_refused() {
        for (bytes, closed) in [(&[255, 255, 255, 255][..], false), (&[1, 0, 0, 0, 0xff], false), (&[9, 0], true)] {
            let (mut daemon, cell) = pair();
            rustix::io::write(&cell.socket, bytes).expect("write");
            drop(cell);
            let error = daemon.receive::<Report>().expect_err("refused");
            assert_eq!(matches!(error, WireError::Closed), closed, "{error}");
        }
        let (mut daemon, cell) = pair();
        let (_reader, writer) = std::io::pipe().expect("pipe");
        cell.send(&Report::Born(7), &[writer.as_fd()]).expect("send");
        assert_eq!(daemon.receive::<Report>().expect("receive"), Report::Born(7));
        assert!(daemon.take_fds().is_empty(), "a cell cannot fill the daemon's table of descriptors");
    }
}
