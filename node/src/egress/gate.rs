//! The sockets that one sandbox has for the hosts of its job. They are in its network namespace and accepted on here, open only
//! while a program runs.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Rules;
use super::relay::{Passed, dial, relay, reset};

/// Hosts of one sandbox that are looked up at once.
const LOOKUPS_MAX: usize = 4;
/// Wait before the next try when nothing can be accepted, for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// A listening socket inside a sandbox, and what it stands for.
#[derive(Debug)]
pub(crate) struct Door {
    /// Where programs connect to.
    pub(crate) socket: TcpListener,
    /// The host that they mean.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
}

/// The doors of one sandbox. Dropping it closes them and all connections.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: Arc<Rules>,
    runtime: Handle,
    connections_max: usize,
    doors: Vec<Arc<Door>>,
    /// What accepts at present.
    open: Option<JoinSet<()>>,
    passed: Arc<Passed>,
}

impl Gate {
    pub(super) fn new(
        rules: Arc<Rules>,
        runtime: Handle,
        connections_max: usize,
        doors: Vec<Door>,
    ) -> io::Result<Self> {
        for door in &doors {
            door.socket.set_nonblocking(true)?;
        }
        let doors = doors.into_iter().map(Arc::new).collect();
        Ok(Self { rules, runtime, connections_max, doors, open: None, passed: Arc::default() })
    }

    /// Lets a program connect that is about to start.
    ///
    /// # Errors
    /// When the system refuses what that takes.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        self.shut();
        let _context = self.runtime.enter();
        let way = Arc::new(Way {
            rules: Arc::clone(&self.rules),
            connections: Arc::new(Semaphore::new(self.connections_max)),
            lookups: Semaphore::new(LOOKUPS_MAX),
            passed: Arc::clone(&self.passed),
        });
        let mut open = JoinSet::new();
        for door in &self.doors {
            // Of the program before, which has ended: nobody is at their other ends.
            while door.socket.accept().is_ok() {}
            let socket = tokio::net::TcpListener::from_std(door.socket.try_clone()?)?;
            open.spawn_on(serve(socket, Arc::clone(door), Arc::clone(&way)), &self.runtime);
        }
        self.open = Some(open);
        Ok(())
    }

    /// Closes every connection and accepts no more: the program has ended.
    pub(crate) fn shut(&mut self) {
        if self.open.take().is_some() {
            let (sent, received) =
                (self.passed.sent.swap(0, Ordering::Relaxed), self.passed.received.swap(0, Ordering::Relaxed));
            tracing::debug!(sent, received, "a program's connections are closed");
        }
    }
}

/// What the connections of one program share.
#[derive(Debug)]
struct Way {
    rules: Arc<Rules>,
    connections: Arc<Semaphore>,
    lookups: Semaphore,
    passed: Arc<Passed>,
}

/// Accepts at one door. With as many connections as there may be, the next one waits, and those behind it in the kernel.
async fn serve(socket: tokio::net::TcpListener, door: Arc<Door>, way: Arc<Way>) {
    // Dropped with this task, which ends them.
    let mut connections = JoinSet::new();
    loop {
        let accepted = socket.accept().await;
        while connections.try_join_next().is_some() {}
        let Ok((program, _)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&way.connections).acquire_owned().await else { return };
        connections.spawn(connect(program, Arc::clone(&door), Arc::clone(&way), permit));
    }
}

async fn connect(program: TcpStream, door: Arc<Door>, way: Arc<Way>, _permit: OwnedSemaphorePermit) {
    let host = match dial(&way.rules, &way.lookups, &door.host, door.port).await {
        Ok(host) => host,
        Err(error) => {
            tracing::debug!(host = door.host, port = door.port, %error, "a program's connection is refused");
            return reset(&program);
        }
    };
    if let Err(error) = relay(program, host, &way.passed).await {
        tracing::debug!(host = door.host, port = door.port, %error, "a program's connection broke");
    }
}
