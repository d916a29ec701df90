//! Files from web servers.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use sha2::Digest;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::remote::{ContentHash, HttpFile};
use url::Url;

use super::{Gather, GatherError, Hosts, wrong};
use crate::exec::outcome::Failure;

/// A server that says nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A host that does not answer for so long is given up.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Redirects followed: a mirror and its storage, with room to spare.
const REDIRECTS_MAX: usize = 5;

/// A client that reaches allowed hosts only, whatever names and redirects say.
pub(super) fn client(hosts: &Arc<Hosts>, ca: Option<&Path>) -> Result<reqwest::Client, GatherError> {
    let failed = |e: &dyn std::fmt::Display| GatherError::Client(e.to_string());
    let of_redirect = Arc::clone(hosts);
    let redirect = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("too many redirects");
        }
        let secure = |url: &Url| url.scheme() == "https";
        let downgrade = attempt.previous().last().is_some_and(secure) && !secure(attempt.url());
        match of_redirect.check(attempt.url()) {
            _ if downgrade => attempt.error("a redirect from https to http"),
            Ok(()) => attempt.follow(),
            Err(failure) => attempt.error(failure),
        }
    });
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("sinew/", env!("CARGO_PKG_VERSION")))
        // A proxy would look names up itself.
        .no_proxy()
        .referer(false)
        .redirect(redirect)
        .dns_resolver(Arc::new(AllowedOnly(Arc::clone(hosts))))
        .connect_timeout(CONNECT_MAX)
        .read_timeout(SILENCE_MAX);
    if let Some(path) = ca {
        let bad = |problem: String| GatherError::Ca { path: path.to_owned(), problem };
        let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| bad(e.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("no certificate in it".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    // The whole process has one implementation of TLS; whoever comes first chooses the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    builder.build().map_err(|e| failed(&e))
}

/// Looks names up, and leaves out addresses that may not be talked to.
#[derive(Debug)]
struct AllowedOnly(Arc<Hosts>);

impl Resolve for AllowedOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let hosts = Arc::clone(&self.0);
        Box::pin(async move {
            let found = hosts.resolve(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

enum Hasher {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    fn new(hash: ContentHash) -> Self {
        match hash {
            ContentHash::Sha256(_) => Self::Sha256(sha2::Sha256::new()),
            ContentHash::Blake3(_) => Self::Blake3(Box::new(blake3::Hasher::new())),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    fn finish(self) -> ContentHash {
        match self {
            Self::Sha256(hasher) => ContentHash::Sha256(hasher.finalize().into()),
            Self::Blake3(hasher) => ContentHash::Blake3(sinew_crdt_state::ids::Hash(*hasher.finalize().as_bytes())),
        }
    }
}

impl Gather {
    /// Fetches a file into an unnamed one in `dir`, and gives it back ready to be read.
    ///
    /// # Errors
    /// `E_DENY` for a host that is not allowed here, `E_FETCH` when it cannot be had (for good where nobody else would fare better) or is
    /// not what it should be, `E_STORAGE` when the disk refuses.
    pub async fn http(&self, file: &HttpFile, dir: &Path) -> Result<File, Failure> {
        let shown = &file.url;
        let url: Url = file.url.parse().map_err(|e| wrong(format!("`{shown}` is no address: {e}")))?;
        self.hosts.check(&url)?;
        let too_long = || wrong(format!("`{shown}` has more than {} bytes: raise size_max", file.size_max));
        let mut response = self.client.get(url).send().await.map_err(|e| failed(shown, &e))?;
        let status = response.status();
        if !status.is_success() {
            let failure = Failure::new(ErrorCode::Fetch, format!("`{shown}` cannot be had: the server says {status}"));
            // What it does not have or give to this node it would not give to another.
            let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
            return Err(if passing { failure } else { failure.for_good() });
        }
        if response.content_length().is_some_and(|len| len > file.size_max) {
            return Err(too_long());
        }
        let storage = |e: std::io::Error| Failure::storage("write a fetched input", &e);
        std::fs::create_dir_all(dir).map_err(storage)?;
        let mut target = tempfile::tempfile_in(dir).map_err(storage)?;
        let (mut hasher, mut len) = (Hasher::new(file.hash), 0_u64);
        while let Some(bytes) = response.chunk().await.map_err(|e| failed(shown, &e))? {
            len = len.saturating_add(bytes.len() as u64);
            if len > file.size_max {
                return Err(too_long());
            }
            hasher.update(&bytes);
            target.write_all(&bytes).map_err(storage)?;
        }
        let found = hasher.finish();
        if found != file.hash {
            return Err(wrong(format!("`{shown}` is not what it should be: its hash is {found}, not {}", file.hash)));
        }
        target.rewind().map_err(storage)?;
        Ok(target)
    }
}

/// What became of a request: our own refusal where there was one, however deep the client has wrapped it.
fn failed(shown: &str, error: &reqwest::Error) -> Failure {
    let (mut why, mut code) = (error.to_string(), ErrorCode::Fetch);
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Failure>() {
            (why, code) = (refusal.message.clone(), refusal.code);
            break;
        }
        why = inner.to_string();
        cause = inner.source();
    }
    Failure::new(code, format!("`{shown}` cannot be had: {why}"))
}
