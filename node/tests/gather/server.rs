//! A web server on loopback that answers as it is told, plainly or over TLS. Ends when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::Answer;

/// What a client asked.
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With what comes after `?`.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answer: Answer) -> Self {
        Self::with(answer, None)
    }

    /// Over TLS, with a certificate of its own for `localhost`, which is written to `ca`.
    pub(crate) fn start_tls(answer: Answer, ca: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
        std::fs::write(ca, made.cert.pem()).expect("ca");
        let key = PrivateKeyDer::try_from(made.key_pair.serialize_der()).expect("key");
        let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("tls");
        Self::with(answer, Some(Arc::new(config)))
    }

    fn with(answer: Answer, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("address");
        let (asked, ending) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&asked), Arc::clone(&ending));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, tls, count) = (Arc::clone(&answer), tls.clone(), Arc::clone(&count));
                std::thread::spawn(move || match tls {
                    Some(config) => {
                        let Ok(connection) = ServerConnection::new(config) else { return };
                        let mut stream = StreamOwned::new(connection, stream);
                        serve(&mut stream, &answer, &count);
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                    }
                    None => {
                        let mut stream = stream;
                        serve(&mut stream, &answer, &count);
                        let _ = stream.shutdown(Shutdown::Write);
                    }
                });
            }
        });
        Self { address, asked, ending, thread: Some(thread) }
    }

    /// How many requests came.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &mut (impl Read + Write), answer: &Answer, count: &AtomicUsize) {
    let Some(asked) = read(stream) else { return };
    count.fetch_add(1, Ordering::SeqCst);
    let _ = stream.write_all(&answer(&asked));
    let _ = stream.flush();
}

fn read(stream: &mut impl Read) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut asked = Asked { method, path, headers, body: Vec::new() };
    let len = asked.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    let chunked = asked.header("transfer-encoding").is_some_and(|how| how.contains("chunked"));
    if chunked {
        loop {
            let mut len = String::new();
            reader.read_line(&mut len).ok()?;
            let len = usize::from_str_radix(len.trim(), 16).ok()?;
            let mut piece = vec![0; len + 2];
            reader.read_exact(&mut piece).ok()?;
            if len == 0 {
                break;
            }
            asked.body.extend_from_slice(&piece[..len]);
        }
    } else {
        let mut body = vec![0; len];
        reader.read_exact(&mut body).ok()?;
        asked.body = body;
    }
    Some(asked)
}

/// A whole answer.
pub(crate) fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
