//! A job's secret as the credentials of a store. Nothing of a secret gets into a message, not even the names of its keys.

use std::collections::BTreeMap;

use object_store::aws::AwsCredential;
use object_store::azure::{AzureAccessKey, AzureCredential, split_sas};
use serde::Deserialize;
use sinew_crdt_state::object::{ObjectFile, ObjectPlace};

use super::invalid;
use crate::exec::outcome::Failure;

/// What opens a store.
pub(super) enum Keys {
    S3(AwsCredential),
    Azure(AzureCredential),
    /// A service account's JSON, of what is needed only.
    Gcs(String),
}

/// What is used of the file that Google gives out for a service account; where tokens come from is not.
#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key: String,
    private_key_id: String,
}

impl Keys {
    /// Those of `file`, if it names some.
    pub(super) fn of(
        file: &ObjectFile,
        place: ObjectPlace<'_>,
        secret: Option<&[u8]>,
    ) -> Result<Option<Self>, Failure> {
        let Some(name) = &file.credentials else { return Ok(None) };
        let bad = |what: &str| invalid(format!("`{}`: secret `{name}` {what}", file.url));
        let text = secret.ok_or_else(|| bad("is not there"))?;
        let text = std::str::from_utf8(text).map_err(|_| bad("is not text"))?;
        let keys = match place {
            ObjectPlace::S3 { .. } => s3(text),
            ObjectPlace::Azure { .. } => azure(text),
            ObjectPlace::Gcs { .. } => gcs(text),
            ObjectPlace::Local { .. } => Err("opens no file"),
        };
        let keys = keys.map_err(bad)?;
        // A signature is worth nothing to who overhears it; these are the credentials themselves.
        let told = matches!(keys, Self::Gcs(_) | Self::Azure(AzureCredential::SASToken(_)));
        if told && file.endpoint.as_deref().is_some_and(|endpoint| !endpoint.starts_with("https://")) {
            return Err(bad("would be sent in the clear: write an https:// endpoint"));
        }
        Ok(Some(keys))
    }
}

/// A TOML text with texts under these keys, and no others.
fn table<const N: usize>(
    text: &str,
    keys: [&str; N],
    expected: &'static str,
) -> Result<[Option<String>; N], &'static str> {
    let mut table: BTreeMap<String, String> = toml::from_str(text).map_err(|_| expected)?;
    let found = keys.map(|key| table.remove(key).filter(|value| !value.is_empty()));
    if table.is_empty() { Ok(found) } else { Err(expected) }
}

fn s3(text: &str) -> Result<Keys, &'static str> {
    let expected =
        "is no credentials for S3: write a TOML text with access_key_id, secret_access_key and perhaps session_token";
    let keys = table(text, ["access_key_id", "secret_access_key", "session_token"], expected)?;
    let [Some(key_id), Some(secret_key), token] = keys else { return Err(expected) };
    // They become parts of headers.
    let plain = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain(&key_id) || !token.as_ref().is_none_or(plain) {
        return Err(expected);
    }
    Ok(Keys::S3(AwsCredential { key_id, secret_key, token }))
}

fn azure(text: &str) -> Result<Keys, &'static str> {
    let expected = "is no credentials for Azure: write a TOML text with either account_key or sas_token";
    match table(text, ["account_key", "sas_token"], expected)? {
        [Some(key), None] => {
            let key = AzureAccessKey::try_new(&key).map_err(|_| "has an account_key that is not Base64")?;
            Ok(Keys::Azure(AzureCredential::AccessKey(key)))
        }
        [None, Some(token)] => {
            let pairs = split_sas(&token).map_err(|_| "has a sas_token that is none")?;
            Ok(Keys::Azure(AzureCredential::SASToken(pairs)))
        }
        _ => Err(expected),
    }
}

fn gcs(text: &str) -> Result<Keys, &'static str> {
    let expected = "is no credentials for GCS: give the JSON of a service account's key";
    let account: ServiceAccount = serde_json::from_str(text).map_err(|_| expected)?;
    let ServiceAccount { client_email, private_key, private_key_id } = account;
    let needed = serde_json::json!({
        "client_email": client_email, "private_key": private_key, "private_key_id": private_key_id,
    });
    Ok(Keys::Gcs(needed.to_string()))
}
