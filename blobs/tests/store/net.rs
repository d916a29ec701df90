//! Loopback providers with faults on the way: each is a real TCP listener in front of a real store.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use sinew_blobs::{BlobStore, BoxRead, BoxWrite, Dial, Opening};
use sinew_crdt_state::ids::NodeId;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What goes wrong on the way from a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection breaks after this many bytes (over all streams).
    CutAfter(u64),
    /// As above, but only once.
    CutOnceAfter(u64),
    /// The byte at this offset of each stream is flipped.
    FlipAt(u64),
    /// Nothing comes any more after this many bytes.
    StallAfter(u64),
}

/// One provider's route.
#[derive(Debug)]
pub(crate) struct Route {
    addr: std::net::SocketAddr,
    fault: Mutex<Option<Fault>>,
    /// Bytes that came this way.
    pub bytes: AtomicU64,
    /// Streams opened.
    pub streams: AtomicU64,
    /// The fault happened.
    pub fired: AtomicBool,
    server: JoinHandle<()>,
}

impl Drop for Route {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// All providers of a test.
#[derive(Debug, Default, Clone)]
pub(crate) struct Net(Arc<Mutex<HashMap<NodeId, Arc<Route>>>>);

impl Net {
    /// Puts `store` behind a listener as node `n`.
    pub(crate) async fn provide(&self, n: u8, store: &BlobStore, fault: Option<Fault>) -> (NodeId, Arc<Route>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let addr = listener.local_addr().expect("address");
        let store = store.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let store = store.clone();
                tokio::spawn(async move {
                    let (reader, writer) = stream.into_split();
                    let _ = store.serve(reader, writer).await;
                });
            }
        });
        let node = NodeId([n; 32]);
        let route = Arc::new(Route {
            addr,
            fault: Mutex::new(fault),
            bytes: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            fired: AtomicBool::new(false),
            server,
        });
        self.0.lock().expect("routes").insert(node, route.clone());
        (node, route)
    }
}

impl Route {
    pub(crate) fn heal(&self) {
        *self.fault.lock().expect("fault") = None;
    }

    pub(crate) fn sent(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn fired(&self) -> bool {
        self.fired.load(Ordering::Relaxed)
    }
}

impl Dial for Net {
    fn open(&self, provider: NodeId) -> Opening<'_> {
        Box::pin(async move {
            let route = self.0.lock().expect("routes").get(&provider).cloned();
            let route = route.ok_or(io::ErrorKind::HostUnreachable)?;
            route.streams.fetch_add(1, Ordering::Relaxed);
            let (reader, writer) = TcpStream::connect(route.addr).await?.into_split();
            let reader: BoxRead = Box::new(Wire { inner: reader, route, here: 0 });
            let writer: BoxWrite = Box::new(writer);
            Ok((reader, writer))
        })
    }
}

/// A stream from a provider, with its route's fault.
struct Wire<R> {
    inner: R,
    route: Arc<Route>,
    here: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Wire<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let fault = *self.route.fault.lock().expect("fault");
        match fault {
            Some(Fault::CutAfter(limit) | Fault::CutOnceAfter(limit)) if self.route.sent() >= limit => {
                self.route.fired.store(true, Ordering::Relaxed);
                if matches!(fault, Some(Fault::CutOnceAfter(_))) {
                    self.route.heal();
                }
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            Some(Fault::StallAfter(limit)) if self.route.sent() >= limit => {
                self.route.fired.store(true, Ordering::Relaxed);
                return Poll::Pending;
            }
            _ => {}
        }
        let before = buf.filled().len();
        // Small bites, so that a limit is met closely.
        let mut bite = ReadBuf::new(buf.initialize_unfilled_to(buf.remaining().min(64 << 10)));
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, &mut bite))?;
        let read = bite.filled().len();
        buf.advance(read);
        if let Some(Fault::FlipAt(at)) = fault
            && (self.here..self.here + read as u64).contains(&at)
        {
            let index = before + usize::try_from(at - self.here).expect("small");
            buf.filled_mut()[index] ^= 0x40;
            self.route.fired.store(true, Ordering::Relaxed);
        }
        self.here += read as u64;
        self.route.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}
