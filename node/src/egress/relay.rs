//! One connection of a program: bytes in both directions until both are at their ends.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Rules;

/// A host that does not answer for so long is given up, and its next address tried.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Addresses of a host that are tried.
const ADDRESSES_MAX: usize = 4;
/// A connection of which one direction is at its end, and the other silent for so long, is closed.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(120);
/// Silence after which a host is asked whether it is still there. A connection may be silent for as long as its task runs.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Bytes taken from one side at once; no more are held on the way, so that whoever reads slowly slows the other down.
const PART_LEN: usize = 16 * 1024;

/// Bytes that have passed.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl Passed {
    fn sum(&self) -> u64 {
        self.sent.load(Ordering::Relaxed).wrapping_add(self.received.load(Ordering::Relaxed))
    }
}

/// A connection to `host`. The address that was checked is the one that is connected to.
///
/// # Errors
/// Why there is none.
pub(super) async fn dial(rules: &Rules, lookups: &Semaphore, host: &str, port: u16) -> io::Result<TcpStream> {
    let found = {
        // Each is a thread for as long as the resolver takes.
        let _turn = lookups.acquire().await;
        rules.addresses(host, port).await.map_err(io::Error::other)?
    };
    let mut why = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in found.into_iter().take(ADDRESSES_MAX) {
        match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                set_socket_keepalive(&stream, true)?;
                set_tcp_keepidle(&stream, KEEPALIVE_AFTER)?;
                return Ok(stream);
            }
            Ok(Err(error)) => why = error,
            Err(_) => why = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(why)
}

/// Passes bytes until both directions are at their ends. After an error neither side sees an end that looks like a good one.
pub(super) async fn relay(mut program: TcpStream, mut host: TcpStream, passed: &Passed) -> io::Result<()> {
    let _ = program.set_nodelay(true);
    let done = both_ways(&mut program, &mut host, passed).await;
    if done.is_err() {
        reset(&program);
        reset(&host);
    }
    done
}

/// Has a connection end with a reset when it is dropped.
pub(super) fn reset(stream: &TcpStream) {
    // It fails for a socket that is none any more.
    let _ = stream.set_zero_linger();
}

async fn both_ways(program: &mut TcpStream, host: &mut TcpStream, passed: &Passed) -> io::Result<()> {
    let (program_says, to_program) = program.split();
    let (host_says, to_host) = host.split();
    let mut out = std::pin::pin!(pass(program_says, to_host, &passed.sent));
    let mut back = std::pin::pin!(pass(host_says, to_program, &passed.received));
    let program_is_first = tokio::select! {
        done = &mut out => { done?; true }
        done = &mut back => { done?; false }
    };
    loop {
        let before = passed.sum();
        let rest = async { if program_is_first { back.as_mut().await } else { out.as_mut().await } };
        match timeout(HALF_CLOSED_MAX, rest).await {
            Ok(done) => return done,
            Err(_) if passed.sum() == before => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

/// Passes one direction on to its end, and the end itself.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: &AtomicU64) -> io::Result<()> {
    let mut part = vec![0; PART_LEN];
    loop {
        let len = from.read(&mut part).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&part[..len]).await?;
        count.fetch_add(len as u64, Ordering::Relaxed);
    }
}
