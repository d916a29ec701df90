//! A module's stdin, stdout and stderr: buffers that the thread which runs it fills and empties whenever the module gives way.
//! Everything here happens on that one thread; the lock is for the compiler.

use std::future::poll_fn;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError};

/// Bytes in each buffer: enough that giving way between two fillings does not count.
const BUFFER_LEN: usize = 64 << 10;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout = 0,
    Stderr = 1,
}

#[derive(Debug, Default)]
struct Buffers {
    input: Vec<u8>,
    /// How much of it was taken.
    taken: usize,
    /// Nothing will follow.
    input_ended: bool,
    /// The module waits for input.
    wanted: bool,
    /// stdout and stderr.
    output: [Vec<u8>; 2],
}

/// All three streams.
#[derive(Debug, Clone, Default)]
pub(super) struct Pipes(Arc<Mutex<Buffers>>);

impl Pipes {
    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stdin(&self) -> Stdin {
        Stdin(self.clone())
    }

    pub(super) fn output(&self, stream: Stream) -> Output {
        Output(self.clone(), stream)
    }

    /// Whether the module waits for [`Self::feed`].
    pub(super) fn wants_input(&self) -> bool {
        self.lock().wanted
    }

    /// Fills the input from `source`, whole if there is as much: how many bytes a module gets at once is then a matter of
    /// where it is, not of when.
    ///
    /// # Errors
    /// Whatever `source` says.
    pub(super) fn feed(&self, source: &mut dyn Read) -> std::io::Result<()> {
        let mut buffers = self.lock();
        let mut input = std::mem::take(&mut buffers.input);
        input.clear();
        let limit = BUFFER_LEN as u64;
        let read = source.take(limit).read_to_end(&mut input)?;
        buffers.input_ended = read < BUFFER_LEN;
        (buffers.input, buffers.taken, buffers.wanted) = (input, 0, false);
        Ok(())
    }

    /// Takes what was written.
    pub(super) fn take(&self, stream: Stream, into: &mut Vec<u8>) {
        into.clear();
        std::mem::swap(into, &mut self.lock().output[stream as usize]);
    }
}

#[derive(Debug, Clone)]
pub(super) struct Stdin(Pipes);

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    /// Preview 1 has no use for it.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Stdin {
    async fn ready(&mut self) {
        poll_fn(|_| {
            let mut buffers = self.0.lock();
            buffers.wanted = buffers.taken == buffers.input.len() && !buffers.input_ended;
            if buffers.wanted { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

impl InputStream for Stdin {
    fn read(&mut self, size: usize) -> Result<Bytes, StreamError> {
        let mut buffers = self.0.lock();
        let from = buffers.taken;
        let to = buffers.input.len().min(from.saturating_add(size));
        if from == to && size > 0 && buffers.input_ended {
            return Err(StreamError::Closed);
        }
        buffers.taken = to;
        Ok(Bytes::copy_from_slice(&buffers.input[from..to]))
    }
}

#[derive(Debug, Clone)]
pub(super) struct Output(Pipes, Stream);

impl Output {
    fn room(&self) -> usize {
        BUFFER_LEN.saturating_sub(self.0.lock().output[self.1 as usize].len())
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    /// Preview 1 has no use for it.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        poll_fn(|_| if self.room() > 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.0.lock().output[self.1 as usize].extend_from_slice(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(self.room())
    }
}
