//! Inputs from object stores: S3 and what speaks like it, Azure Blob Storage, Google Cloud Storage, and directories of this node
//! that its operator offers.
//!
//! `object_store` makes and signs the requests; a client of ours carries them, to allowed hosts only. Credentials come from the
//! job or there are none: this node's environment, files and metadata services are never asked. No redirect is followed.

mod client;
mod local;
mod secret;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, AwsCredential};
use object_store::azure::{AzureCredential, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GcpSigningCredential, GoogleCloudStorageBuilder};
use object_store::{BackoffConfig, GetOptions, ObjectStore, RetryConfig, StaticCredentialProvider};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::object::{ObjectFile, ObjectPlace};

use super::receive::Receiving;
use super::{Gather, wrong};
use crate::exec::outcome::Failure;

use client::{Carrier, Seen};
use secret::Keys;

/// Further tries of a request whose failure may pass, and of a body that breaks off, together.
const TRIES_MORE: usize = 3;
/// Wait before the first of them; each further one waits up to twice as long.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// Longest wait between two.
const TRY_AGAIN_MAX: Duration = Duration::from_secs(5);
/// A transfer that has taken this long is not taken up again.
const TRANSFER_MAX: Duration = Duration::from_secs(3_600);
/// Where S3 looks for buckets whose region nobody names.
const REGION: &str = "us-east-1";

impl Gather {
    /// Fetches an object into an unnamed file in `dir`, and gives it back ready to be read. `secret` is the value of the job's
    /// secret that `file.credentials` names: for S3 and Azure a TOML text with `access_key_id`, `secret_access_key` and perhaps
    /// `session_token`, or with `account_key` or `sas_token`; for GCS a service account's JSON.
    ///
    /// # Errors
    /// `E_DENY` for a host or a directory that is not allowed here, `E_INVALID` for a secret that is none of that store, `E_FETCH` when the
    /// object cannot be had (for good where nobody else would fare better) or is not what it should be, `E_STORAGE` when the
    /// disk refuses.
    pub async fn object(&self, file: &ObjectFile, secret: Option<&[u8]>, dir: &Path) -> Result<File, Failure> {
        let place = file.place().map_err(|(problem, mend)| invalid(format!("`{}`: {problem}: {mend}", file.url)))?;
        if let ObjectPlace::Local { path } = place {
            return local::copy(&self.object_dirs, path, Receiving::new(&file.url, file.hash, file.size_max, dir)?);
        }
        let keys = Keys::of(file, place, secret)?;
        let seen = Arc::new(Seen::default());
        let carrier = Carrier::new(self.direct.clone(), Arc::clone(&self.hosts), Arc::clone(&seen));
        let signed = keys.is_some();
        let (store, key) = open(file, place, keys, carrier)?;
        let failed = || seen.failure(&file.url, signed);
        let key = object_store::path::Path::parse(key).map_err(|_| invalid(format!("`{}`: no key", file.url)))?;
        let found = store.get_opts(&key, GetOptions::default()).await.map_err(|_| failed())?;
        let mut receiving = Receiving::new(&file.url, file.hash, file.size_max, dir)?;
        receiving.announced(found.meta.size)?;
        let mut content = found.into_stream();
        while let Some(bytes) = content.next().await {
            receiving.take(&bytes.map_err(|_| seen.broke_off(&file.url, signed))?)?;
        }
        receiving.finish()
    }
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: TRY_AGAIN, max_backoff: TRY_AGAIN_MAX, base: 2.0 };
    RetryConfig { backoff, max_retries: TRIES_MORE, retry_timeout: TRANSFER_MAX }
}

/// The store of an object, and the object's key. What a builder would look for elsewhere, it is given here, even when it is nothing.
fn open<'a>(
    file: &'a ObjectFile,
    place: ObjectPlace<'a>,
    keys: Option<Keys>,
    carrier: Carrier,
) -> Result<(Box<dyn ObjectStore>, &'a str), Failure> {
    // What a builder says may hold what it was given.
    let refused = || invalid(format!("`{}`: the endpoint or the credentials are none for this store", file.url));
    match place {
        ObjectPlace::S3 { bucket, key } => {
            Ok((Box::new(s3(file, bucket, keys, carrier).build().map_err(|_| refused())?), key))
        }
        ObjectPlace::Azure { container, key } => {
            Ok((Box::new(azure(file, container, keys, carrier).build().map_err(|_| refused())?), key))
        }
        ObjectPlace::Gcs { bucket, key } => {
            Ok((Box::new(gcs(file, bucket, keys, carrier).build().map_err(|_| refused())?), key))
        }
        ObjectPlace::Local { .. } => Err(refused()),
    }
}

fn s3(file: &ObjectFile, bucket: &str, keys: Option<Keys>, carrier: Carrier) -> AmazonS3Builder {
    let anonymous = keys.is_none();
    let credential = match keys {
        Some(Keys::S3(credential)) => credential,
        _ => AwsCredential { key_id: String::new(), secret_key: String::new(), token: None },
    };
    let region = file.region.as_deref().unwrap_or(REGION);
    let builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_credentials(Arc::new(StaticCredentialProvider::new(credential)))
        .with_skip_signature(anonymous)
        .with_retry(retry())
        .with_http_connector(carrier);
    match &file.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    }
}

fn azure(file: &ObjectFile, container: &str, keys: Option<Keys>, carrier: Carrier) -> MicrosoftAzureBuilder {
    let anonymous = keys.is_none();
    let credential = match keys {
        Some(Keys::Azure(credential)) => credential,
        _ => AzureCredential::SASToken(Vec::new()),
    };
    let builder = MicrosoftAzureBuilder::new()
        .with_account(file.account.as_deref().unwrap_or_default())
        .with_container_name(container)
        .with_credentials(Arc::new(StaticCredentialProvider::new(credential)))
        .with_skip_signature(anonymous)
        .with_retry(retry())
        .with_http_connector(carrier);
    match &file.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint.clone()),
        None => builder,
    }
}

fn gcs(file: &ObjectFile, bucket: &str, keys: Option<Keys>, carrier: Carrier) -> GoogleCloudStorageBuilder {
    let builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_base_url(file.endpoint.as_deref().unwrap_or("https://storage.googleapis.com").trim_end_matches('/'))
        .with_retry(retry())
        .with_http_connector(carrier);
    match keys {
        Some(Keys::Gcs(account)) => builder.with_service_account_key(account),
        _ => {
            let nobody = GcpCredential { bearer: String::new() };
            let signs_nothing = GcpSigningCredential { email: String::new(), private_key: None };
            builder
                .with_credentials(Arc::new(StaticCredentialProvider::new(nobody)))
                .with_signing_credentials(Arc::new(StaticCredentialProvider::new(signs_nothing)))
                .with_skip_signature(true)
        }
    }
}

/// The job is at fault, wherever it runs.
fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Invalid, message).for_good()
}
