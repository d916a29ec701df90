//! Programs whose jobs name hosts: what they reach, and that they reach nothing else. The hosts are servers of the test on
//! loopback, where an operator's explicit rule puts their names.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::Network;

use crate::rig::{Rig, all_refused, all_refused_with, all_worked, both, policy, runtime};

/// A server on loopback. Ends when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Says what it hears, in upper case, to the end, and then `.`.
    pub(crate) fn shouting() -> Self {
        Self::start(|stream| {
            let mut part = [0; 4_096];
            while let Ok(len @ 1..) = stream.read(&mut part) {
                if stream.write_all(&part[..len].to_ascii_uppercase()).is_err() {
                    return;
                }
            }
            let _ = stream.write_all(b".");
        })
    }

    /// Calls `serve` with each connection, on a thread of its own.
    pub(crate) fn start(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("address");
        let (open, most, ending) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::default());
        let (now, peak, end) = (Arc::clone(&open), Arc::clone(&most), Arc::<AtomicBool>::clone(&ending));
        let serve = Arc::new(serve);
        let thread = std::thread::spawn(move || {
            for mut stream in listener.incoming().filter_map(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (serve, now) = (Arc::clone(&serve), Arc::clone(&now));
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    serve(&mut stream);
                    let _ = stream.shutdown(Shutdown::Both);
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, open, most, ending, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections that it has now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// The most that it has had at a time.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().map(JoinHandle::join);
    }
}

/// The address that this machine would send from, if it has one besides loopback. Nothing is sent.
fn own_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("socket");
    let from = socket.connect("203.0.113.1:9").and_then(|()| socket.local_addr());
    from.map_or_else(|_| "127.0.0.1".to_owned(), |from| from.ip().to_string())
}

#[test]
fn a_listed_host_is_reached_under_its_name_and_nothing_else_is() {
    let (runtime, server, other) = (runtime(), Server::shouting(), Server::shouting());
    let (port, closed) = (server.port(), other.port());
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["*", "there.test=127.0.0.1"]);
    rig.network = policy(&[&format!("there.test:{port}"), "pypi.example"]);
    let talk = format!(
        "
def talk():
    s = socket.create_connection(('there.test', {port}), 20)
    s.sendall(b'hello'); s.shutdown(socket.SHUT_WR)
    return s.makefile().read()
print(talk(), socket.gethostbyname('there.test'), socket.gethostbyname('pypi.example'))
"
    );
    assert_eq!(rig.python(&talk).text(), "HELLO. 127.77.0.2 127.77.0.1");
    // A resolver that asks for the families that the machine has, and one that asks for all.
    let asked = format!(
        "print([a[4][0] for flags in (0, socket.AI_ADDRCONFIG) for a in socket.getaddrinfo('there.test', {port}, type=socket.SOCK_STREAM, flags=flags)])"
    );
    assert_eq!(rig.python(&asked).text(), "['127.77.0.2', '127.77.0.2']");
    let own = own_address();
    let connect = "def go(host, port): attempt((host, port), lambda: socket.create_connection((host, port), 5) and 1)";
    all_worked(Rig::bare().python(&format!("{connect}\ngo('127.0.0.1', {port})")).text());
    let script = format!(
        "{connect}
for host in ('127.0.0.1', '{own}', 'localhost'): go(host, {port}); go(host, {closed})
go('there.test', {closed}); go('there.test', 80); go('127.77.0.2', {closed})
go('127.77.0.1', {port}); go('127.77.0.3', {port})
go('203.0.113.1', 80); go('93.184.215.14', 443); go('2606:4700::1111', 443); go('::ffff:127.0.0.1', {port})
go('other.test', {port}); go('example.org', 443); go('1.1.1.1', 53)
"
    );
    let text = rig.python(&script).text().to_owned();
    all_refused(&text);
    assert_eq!((text.lines().count(), other.most()), (18, 0), "{text}");
    let odd = format!(
        "
S = socket
for family in (S.AF_INET, S.AF_INET6):
    attempt('udp', lambda: S.socket(family, S.SOCK_DGRAM).sendto(b'x', ('127.77.0.1', {port})))
    attempt('raw', lambda: S.socket(family, S.SOCK_RAW, 1) and 1)
attempt('packet', lambda: S.socket(S.AF_PACKET, S.SOCK_RAW, 0) and 1)
attempt('sctp', lambda: S.socket(S.AF_INET, S.SOCK_STREAM, 132) and 1)
"
    );
    all_refused_with("ENOSYS", rig.python(&odd).text());
    // The program's own ports are its own, and the daemon's are out of reach.
    let inside = "
l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); print('inside')
";
    assert_eq!(rig.python(inside).text(), "inside");
}

#[test]
fn both_directions_pass_whole_and_their_ends_too() {
    let (runtime, server) = (runtime(), Server::shouting());
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["there.test=127.0.0.1"]);
    rig.network = policy(&[&format!("there.test:{}", server.port())]);
    let script = format!(
        "
import hashlib, threading
data = bytes(97 + i % 26 for i in range(1 << 16)) * 128
s = socket.create_connection(('there.test', {}), 60)
def feed():
    s.sendall(data); s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=feed); t.start()
got = b''.join(iter(lambda: s.recv(1 << 16), b''))
t.join()
print(got == data.upper() + b'.', len(got))
",
        server.port()
    );
    assert_eq!(rig.python(&script).text(), format!("True {}", (8 << 20) + 1));
    // A host that is not there shows as a connection that is reset, and not as one that ended well.
    let free = TcpListener::bind("127.0.0.1:0").expect("listen").local_addr().expect("address").port();
    rig.network = policy(&[&format!("there.test:{free}")]);
    let script = format!("attempt('gone', lambda: socket.create_connection(('there.test', {free}), 20).recv(1))");
    all_refused_with("ECONNRESET", rig.python(&script).text());
}

#[test]
fn a_reader_that_does_not_read_slows_the_writer_down() {
    let (runtime, ended) = (runtime(), Arc::new(AtomicBool::new(false)));
    let end = Arc::clone(&ended);
    // It waits for the test's end without reading.
    let server = Server::start(move |stream| {
        while !end.load(Ordering::SeqCst) {
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        let _ = stream.shutdown(Shutdown::Both);
    });
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["there.test=127.0.0.1"]);
    rig.network = policy(&[&format!("there.test:{}", server.port())]);
    let script = format!(
        "
s = socket.create_connection(('there.test', {}), 20)
s.settimeout(3)
sent = 0
try:
    while sent < 1 << 29: sent += s.send(bytes(1 << 20))
except TimeoutError: pass
print(sent < 1 << 27)
",
        server.port()
    );
    assert_eq!(rig.python(&script).text(), "True");
    ended.store(true, Ordering::SeqCst);
}

#[test]
fn without_the_operators_word_no_host_is_reached() {
    let (runtime, server) = (runtime(), Server::shouting());
    let there = format!("there.test:{}", server.port());
    let refused = |rig: &mut Rig, words: &[&str]| {
        let ran = rig.run(&["true"]);
        ran.fails_with(ErrorCode::Deny);
        let failure = ran.failure();
        assert!(failure.retryable, "another node may");
        assert!(words.iter().all(|word| failure.message.contains(word)), "{failure:?}");
    };
    // No rules; others; a public host's rule for a name that leads to this machine; and no sandbox.
    let mut rig = Rig::sandboxed();
    rig.network = policy(&[&there]);
    refused(&mut rig, &["job_hosts"]);
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["*.example.org", "db.lab=127.0.0.1"]);
    rig.network = policy(&["a.example.org", &there]);
    refused(&mut rig, &["there.test", "job_hosts"]);
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["*"]);
    rig.network =
        serde_json::from_str::<Network>(r#"{"localhost":[80]}"#).expect("a policy that no reader lets through");
    refused(&mut rig, &["localhost", "inside its own network", "job_hosts"]);
    let mut rig = Rig::bare();
    rig.network = policy(&[&there]);
    refused(&mut rig, &["sandbox is off"]);
    assert_eq!(server.most(), 0);
}

#[test]
fn a_sandbox_with_a_network_serves_no_task_with_another() {
    let (runtime, server, other) = (runtime(), Server::shouting(), Server::shouting());
    let mut rig = Rig::sandboxed();
    rig.let_out(&runtime, &["there.test=127.0.0.1"]);
    let at = |server: &Server| policy(&[&format!("there.test:{}", server.port())]);
    let script = format!(
        "for port in ({}, {}): attempt(port, lambda: socket.create_connection(('there.test', port), 5) and 1)",
        server.port(),
        other.port()
    );
    let worked = |text: &str| text.lines().map(|line| line.contains(" worked: ")).collect::<Vec<_>>();
    for (network, works) in [
        (Network::default(), [false, false]),
        (at(&server), [true, false]),
        (at(&other), [false, true]),
        (Network::default(), [false, false]),
        (at(&server), [true, false]),
    ] {
        rig.network = network;
        assert_eq!(worked(rig.python(&script).text()), works);
    }
    // Nor one of another job.
    rig.network = Network::default();
    assert!(!rig.run_as("another", &["grep", "there.test", "/etc/hosts"]).stdout.contains("there"));
    let [_, plain] = both(
        "print(open('/etc/hosts').read().split(), 'nsswitch', 'hosts: files\\n' in open('/etc/nsswitch.conf').read())",
    );
    assert_eq!(plain, "['127.0.0.1', 'localhost', 'cell', '::1', 'localhost', 'cell'] nsswitch True");
}
