//! Files from web servers.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::remote::HttpFile;
use url::Url;

use super::receive::Receiving;
use super::{Gather, GatherError, Hosts, wrong};
use crate::exec::outcome::Failure;

/// A server that says nothing for so long is given up.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A host that does not answer for so long is given up.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Redirects followed: a mirror and its storage, with room to spare.
const REDIRECTS_MAX: usize = 5;

/// Redirects to allowed hosts are followed.
pub(super) fn redirects(hosts: &Arc<Hosts>) -> Policy {
    let of_redirect = Arc::clone(hosts);
    Policy::custom(move |attempt| {
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
    })
}

/// A client that reaches allowed hosts only, whatever names and redirects say.
pub(super) fn client(
    hosts: &Arc<Hosts>,
    ca: Option<&Path>,
    redirect: Policy,
    silence_max: Duration,
) -> Result<reqwest::Client, GatherError> {
    let failed = |e: &dyn std::fmt::Display| GatherError::Client(e.to_string());
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("sinew/", env!("CARGO_PKG_VERSION")))
        // A proxy would look names up itself.
        .no_proxy()
        .referer(false)
        .redirect(redirect)
        .dns_resolver(Arc::new(AllowedOnly(Arc::clone(hosts))))
        .connect_timeout(CONNECT_MAX)
        .read_timeout(silence_max);
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
        let mut response = self.client.get(url).send().await.map_err(|e| failed(shown, &e))?;
        let status = response.status();
        if !status.is_success() {
            let failure = Failure::new(ErrorCode::Fetch, format!("`{shown}` cannot be had: the server says {status}"));
            // What it does not have or give to this node it would not give to another.
            let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
            return Err(if passing { failure } else { failure.for_good() });
        }
        let mut receiving = Receiving::new(shown, file.hash, file.size_max, dir)?;
        receiving.announced(response.content_length().unwrap_or(0))?;
        while let Some(bytes) = response.chunk().await.map_err(|e| failed(shown, &e))? {
            receiving.take(&bytes)?;
        }
        receiving.finish()
    }
}

fn failed(shown: &str, error: &reqwest::Error) -> Failure {
    let failure = reason(error);
    Failure { message: format!("`{shown}` cannot be had: {}", failure.message), ..failure }
}

/// What became of a request: our own refusal where there was one, however deep the client has wrapped it.
pub(super) fn reason(error: &reqwest::Error) -> Failure {
    let mut why = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Failure>() {
            return Failure::new(refusal.code, refusal.message.clone());
        }
        why = inner.to_string();
        cause = inner.source();
    }
    Failure::new(ErrorCode::Fetch, why)
}
