//! Inputs in object stores: where they are, as a spec says it, and what such an address may look like. Names in it become parts of
//! host names and paths of requests, so everything odd is refused here, before any node asks anybody.

use serde::{Deserialize, Serialize};

use crate::remote::{ContentHash, URL_LEN_MAX, Wrong, check_url};
use crate::secret::check_name;

/// Longest key of an object, in bytes: what S3 and GCS take.
const KEY_LEN_MAX: usize = 1_024;
/// Longest name of a bucket: GCS takes the longest, with dots.
const BUCKET_LEN_MAX: usize = 222;
/// Longest name of an account, a region or a secret.
const NAME_LEN_MAX: usize = 64;

/// An object in a store, or a file in a directory that a node's operator offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectFile {
    /// `s3://BUCKET/KEY`, `az://CONTAINER/PATH`, `gs://BUCKET/KEY` or `file:///PATH`, literally: nothing in it is percent-encoded.
    pub url: String,
    /// Of the content.
    pub hash: ContentHash,
    /// Most bytes it may have.
    pub size_max: u64,
    /// Where the store's API is, when not at its provider's own place: `http://` or `https://`.
    pub endpoint: Option<String>,
    /// The bucket's region, for S3.
    pub region: Option<String>,
    /// The storage account, for Azure.
    pub account: Option<String>,
    /// The job's secret that opens it; the object must be public without.
    pub credentials: Option<String>,
}

/// Where an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectPlace<'a> {
    /// In S3, or what speaks like it.
    S3 {
        /// The bucket.
        bucket: &'a str,
        /// The object's key.
        key: &'a str,
    },
    /// In Azure Blob Storage.
    Azure {
        /// The container.
        container: &'a str,
        /// The blob's name.
        key: &'a str,
    },
    /// In Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: &'a str,
        /// The object's name.
        key: &'a str,
    },
    /// On the node itself: an absolute path.
    Local {
        /// Which.
        path: &'a str,
    },
}

/// Whether `url` names an object rather than a web server's file.
#[must_use]
pub fn is_object_url(url: &str) -> bool {
    ["s3://", "az://", "gs://", "file://"].iter().any(|scheme| url.starts_with(scheme))
}

fn plain(name: &str, len_max: usize, more: &[u8]) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(&c);
    (1..=len_max).contains(&name.len()) && name.bytes().all(ok) && !name.contains("..") && !name.starts_with('.')
}

/// The bucket and the key after `SCHEME://`.
fn bucket_and_key(rest: &str) -> Result<(&str, &str), Wrong> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    // Old buckets in us-east-1 may have capitals.
    if !plain(&bucket.to_ascii_lowercase(), BUCKET_LEN_MAX, b"-_.$") {
        return Err((
            "not the name of a bucket or container",
            "write s3://BUCKET/KEY, gs://BUCKET/KEY or az://CONTAINER/PATH",
        ));
    }
    let clean = |part: &str| !matches!(part, "" | "." | "..");
    if key.len() > KEY_LEN_MAX || !key.split('/').all(clean) || key.chars().any(char::is_control) {
        return Err(("not the key of an object", "write a key of up to 1024 bytes, without empty parts, `.` and `..`"));
    }
    Ok((bucket, key))
}

impl ObjectFile {
    /// Where it is.
    ///
    /// # Errors
    /// What is wrong with the address, and what would be right.
    pub fn place(&self) -> Result<ObjectPlace<'_>, Wrong> {
        let Some((scheme, rest)) = self.url.split_once("://").filter(|_| self.url.len() <= URL_LEN_MAX) else {
            return Err((
                "not an address",
                "write s3://BUCKET/KEY, az://CONTAINER/PATH, gs://BUCKET/KEY or file:///PATH",
            ));
        };
        match scheme {
            "s3" => bucket_and_key(rest).map(|(bucket, key)| ObjectPlace::S3 { bucket, key }),
            "az" => bucket_and_key(rest).map(|(container, key)| ObjectPlace::Azure { container, key }),
            "gs" => bucket_and_key(rest).map(|(bucket, key)| ObjectPlace::Gcs { bucket, key }),
            "file" => {
                let parts = rest.strip_prefix('/');
                let clean = |part: &str| !matches!(part, "" | "." | "..");
                let clean = parts.is_some_and(|parts| parts.split('/').all(clean));
                let path = clean && !rest.chars().any(char::is_control);
                let mend = "write file:// and an absolute path without `..`, as in file:///data/x";
                if path { Ok(ObjectPlace::Local { path: rest }) } else { Err(("not the path of a file", mend)) }
            }
            _ => Err(("not an object store", "write s3://, az://, gs:// or file://")),
        }
    }

    /// What is wrong with it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        let place = self.place()?;
        let azure = matches!(place, ObjectPlace::Azure { .. });
        let local = matches!(place, ObjectPlace::Local { .. });
        if self.size_max == 0 {
            return Err(("a size of 0 is no file", "write size_max, such as 1GiB"));
        }
        if local && (self.endpoint.is_some() || self.credentials.is_some()) {
            return Err(("a file has no endpoint and no credentials", "leave them out"));
        }
        if self.account.is_some() != azure {
            let mend = "write account = \"NAME\" with az://, and only there";
            return Err(("the storage account belongs to az://", mend));
        }
        if self.region.is_some() && !matches!(place, ObjectPlace::S3 { .. }) {
            return Err(("only s3:// has a region", "leave it out"));
        }
        if self.account.as_deref().is_some_and(|name| !plain(name, NAME_LEN_MAX, b"")) {
            return Err(("not the name of a storage account", "write its lower-case letters and digits only"));
        }
        if self.region.as_deref().is_some_and(|name| !plain(name, NAME_LEN_MAX, b"-")) {
            return Err(("not a region", "write its name, such as eu-west-1"));
        }
        if let Some(name) = &self.credentials {
            check_name(name)?;
        }
        match &self.endpoint {
            Some(endpoint) if endpoint.contains(['?', '#']) => {
                Err(("an endpoint has no query", "write https://HOST or https://HOST/PATH"))
            }
            Some(endpoint) => check_url(endpoint),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(url: &str) -> ObjectFile {
        ObjectFile {
            url: url.to_owned(),
            hash: ContentHash::Sha256([1; 32]),
            size_max: 1,
            endpoint: None,
            region: None,
            account: url.starts_with("az://").then(|| "acct".to_owned()),
            credentials: None,
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        let place = |url: &str| format!("{:?}", object(url).place().expect("place"));
        assert_eq!(place("s3://my-bucket/a/b c"), "S3 { bucket: \"my-bucket\", key: \"a/b c\" }");
        assert_eq!(place("az://$web/x%20y"), "Azure { container: \"$web\", key: \"x%20y\" }");
        assert_eq!(place("gs://b.example.org/k"), "Gcs { bucket: \"b.example.org\", key: \"k\" }");
        assert_eq!(place("file:///data/a"), "Local { path: \"/data/a\" }");
        for url in ["s3://b/k", "az://b/k", "gs://b/k", "file:///k"] {
            assert_eq!(object(url).check(), Ok(()), "{url}");
        }
    }

    #[test]
    fn what_would_lead_a_request_astray_is_refused() {
        let long = format!("s3://b/{}", "k".repeat(KEY_LEN_MAX + 1));
        for wrong in [
            "s3://b",
            "s3://b/",
            "s3:///k",
            "s3://../k",
            "s3://a..b/k",
            "s3://b/../../c/k",
            "s3://b/./k",
            "s3://b//k",
            "s3://b/k/",
            "s3://u:p@b/k",
            "s3://b?x/k",
            "s3://b#/k",
            "s3://b:80/k",
            "s3://b/k\n",
            "http://b/k",
            "file://host/x",
            "file:///",
            "file:///a/../b",
            "file:///a//b",
            "x",
            &long,
        ] {
            assert!(object(wrong).check().is_err(), "{wrong}");
        }
        let some = |text: &str| Some(text.to_owned());
        let s3 = || object("s3://b/k");
        for (what, wrong) in [
            ("size", ObjectFile { size_max: 0, ..s3() }),
            ("a region leads to a host", ObjectFile { region: some("x.evil.example/"), ..s3() }),
            ("an account leads to a host", ObjectFile { account: some("a.evil.example#"), ..object("az://b/k") }),
            ("no account", ObjectFile { account: None, ..object("az://b/k") }),
            ("an account elsewhere", ObjectFile { account: some("acct"), ..s3() }),
            ("a region elsewhere", ObjectFile { region: some("eu-west-1"), ..object("gs://b/k") }),
            ("a name in the endpoint", ObjectFile { endpoint: some("https://u:p@h/"), ..s3() }),
            ("a query in the endpoint", ObjectFile { endpoint: some("https://h/?a=b"), ..s3() }),
            ("another scheme", ObjectFile { endpoint: some("ftp://h/"), ..s3() }),
            ("no name of a secret", ObjectFile { credentials: some("../x"), ..s3() }),
            ("a secret for a file", ObjectFile { credentials: some("x"), ..object("file:///k") }),
            ("an endpoint for a file", ObjectFile { endpoint: some("http://h"), ..object("file:///k") }),
        ] {
            assert!(wrong.check().is_err(), "{what}");
        }
        let whole = ObjectFile {
            endpoint: some("http://127.0.0.1:9000"),
            region: some("eu-west-1"),
            credentials: some("S3_KEYS"),
            ..s3()
        };
        assert_eq!(whole.check(), Ok(()));
    }
}
