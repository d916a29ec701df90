//! Carries the requests that `object_store` makes, to allowed hosts only, and remembers what became of the last one: failures are
//! told from that, because the text of an error may hold what a store echoes of a request.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use sinew_crdt_state::error_code::ErrorCode;
use url::Url;

use super::super::Hosts;
use super::super::http::reason;
use crate::exec::outcome::Failure;

/// Most of a refusal that is read: an error's XML is a few hundred bytes.
const REFUSAL_LEN_MAX: usize = 64 * 1024;
/// Longest code or region that is passed on.
const WORD_LEN_MAX: usize = 64;

/// What became of the last request.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Last>);

#[derive(Debug, Default, Clone)]
enum Last {
    /// It was answered as it should be, as far as the status says, or none was made.
    #[default]
    Fine,
    /// The store refused it.
    Refused(Refusal),
    /// It did not get through.
    Trouble(Failure),
}

#[derive(Debug, Default, Clone)]
struct Refusal {
    status: u16,
    /// The store's own word for it, such as `NoSuchKey`.
    code: Option<String>,
    /// Where the bucket is.
    region: Option<String>,
}

impl Seen {
    fn set(&self, last: Last) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// Why its content did not come whole: a store that answered well but does not go on where it broke off is none that is wrong.
    pub(super) fn broke_off(&self, shown: &str, signed: bool) -> Failure {
        if matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Last::Fine) {
            return Failure::new(ErrorCode::Fetch, format!("`{shown}` cannot be had: the transfer broke off"));
        }
        self.failure(shown, signed)
    }

    /// Why the object called `shown` cannot be had; `signed` if it was asked for with credentials.
    pub(super) fn failure(&self, shown: &str, signed: bool) -> Failure {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fetch = |why: &str| Failure::new(ErrorCode::Fetch, format!("`{shown}` cannot be had: {why}"));
        match last {
            Last::Trouble(trouble) => {
                Failure { message: format!("`{shown}` cannot be had: {}", trouble.message), ..trouble }
            }
            Last::Refused(refusal) => {
                let failure = fetch(&refusal.to_string(signed));
                if refusal.passes() { failure } else { failure.for_good() }
            }
            Last::Fine => fetch("what answers is no such store: check the endpoint").for_good(),
        }
    }
}

impl Refusal {
    /// Whether another try, or another node, may fare better.
    fn passes(&self) -> bool {
        self.status >= 500 || matches!(self.status, 408 | 425 | 429) || self.is_late()
    }

    fn is_late(&self) -> bool {
        self.code.as_deref() == Some("RequestTimeTooSkewed")
    }

    fn to_string(&self, signed: bool) -> String {
        let code = self.code.as_ref().map(|code| format!(" {code}")).unwrap_or_default();
        let region = self.region.as_ref().map(|region| format!("; its region is {region}")).unwrap_or_default();
        let said = format!("the store says {}{code}{region}", self.status);
        match self.status {
            300..=399 => format!("{said}: check region and endpoint, since redirects are not followed"),
            404 => format!("{said}: there is no such bucket or object"),
            401 | 403 if self.is_late() => format!("{said}: this node's clock is wrong"),
            401 | 403 if signed => format!("{said}: the credentials do not open it"),
            401 | 403 => format!("{said}: it is not public, and no credentials are named"),
            _ => said,
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Carrier {
    client: reqwest::Client,
    hosts: Arc<Hosts>,
    seen: Arc<Seen>,
}

impl Carrier {
    /// `client` must look names up among `hosts` and follow no redirects.
    pub(super) fn new(client: reqwest::Client, hosts: Arc<Hosts>, seen: Arc<Seen>) -> Self {
        Self { client, hosts, seen }
    }

    async fn carry(self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let none = |_| self.refuse(super::invalid("the endpoint makes no address"));
        let url: Url = parts.uri.to_string().parse().map_err(none)?;
        self.hosts.check(&url).map_err(|denied| self.refuse(denied))?;
        let body = body.as_bytes().cloned().unwrap_or_default();
        let sent = self.client.request(parts.method, url).headers(parts.headers).body(body).send();
        let response = sent.await.map_err(|e| troubled(&self.seen, e))?;
        if !response.status().is_success() {
            return self.refused(response).await;
        }
        self.seen.set(Last::Fine);
        let (parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
        let body = HttpResponseBody::new(body.map_err(move |e| troubled(&self.seen, e)));
        Ok(HttpResponse::from_parts(parts, body))
    }

    /// What may not be asked is not asked again.
    fn refuse(&self, failure: Failure) -> HttpError {
        self.seen.set(Last::Trouble(failure.clone()));
        HttpError::new(HttpErrorKind::Unknown, failure)
    }

    /// Keeps what a refusal says, as far as it can be passed on, and hands it on without its body.
    async fn refused(self, mut response: reqwest::Response) -> Result<HttpResponse, HttpError> {
        let mut said = Vec::new();
        while let Ok(Some(bytes)) = response.chunk().await {
            said.extend_from_slice(&bytes);
            if said.len() > REFUSAL_LEN_MAX {
                break;
            }
        }
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).and_then(word);
        let code = String::from_utf8_lossy(&said).split_once("<Code>").and_then(|(_, rest)| {
            let (code, _) = rest.split_once("</Code>")?;
            word(code)
        });
        let code = code.or_else(|| header("x-ms-error-code"));
        let region = header("x-amz-bucket-region");
        self.seen.set(Last::Refused(Refusal { status: response.status().as_u16(), code, region }));
        let (parts, _) = http::Response::<reqwest::Body>::from(response).into_parts();
        Ok(HttpResponse::from_parts(parts, Vec::new().into()))
    }
}

#[async_trait]
impl HttpService for Carrier {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.clone().carry(request).await
    }
}

impl HttpConnector for Carrier {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// Remembers what is wrong with a transfer, and says whether it is worth another try.
fn troubled(seen: &Seen, error: reqwest::Error) -> HttpError {
    // Addresses hold credentials where a store wants them there.
    let error = error.without_url();
    let failure = reason(&error);
    let kind = match &failure {
        denied if denied.code != ErrorCode::Fetch => HttpErrorKind::Unknown,
        _ if is_about_certificates(&error) => HttpErrorKind::Unknown,
        _ if error.is_timeout() => HttpErrorKind::Timeout,
        _ if error.is_connect() => HttpErrorKind::Connect,
        _ => HttpErrorKind::Interrupted,
    };
    seen.set(Last::Trouble(failure.clone()));
    HttpError::new(kind, failure)
}

fn is_about_certificates(error: &dyn Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if wrapped.is_some_and(|error| error.is::<rustls::Error>()) {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// What a store says, if it is one plain word.
fn word(text: &str) -> Option<String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    ((1..=WORD_LEN_MAX).contains(&text.len()) && text.bytes().all(plain)).then(|| text.to_owned())
}
