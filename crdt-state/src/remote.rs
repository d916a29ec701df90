//! Inputs that are neither in the spec nor in the blob store: each node that runs the job fetches them itself, once, and checks
//! them against what the spec says they are.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};

use crate::ids::Hash;
use crate::secret;
use crate::spec::is_safe_relative;

/// Longest URL: what servers commonly take.
pub const URL_LEN_MAX: usize = 8 * 1024;

/// The hash of a file's content, as publishers give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentHash {
    /// SHA-256.
    Sha256([u8; 32]),
    /// BLAKE3, like that of a blob.
    Blake3(Hash),
}

/// A text that is no [`ContentHash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a content hash: write sha256: or blake3: and 64 hexadecimal digits, or blake3: and a blob's hash")]
pub struct BadContentHash;

impl FromStr for ContentHash {
    type Err = BadContentHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, hex) = text.split_once(':').ok_or(BadContentHash)?;
        if kind == "blake3" {
            // Also as this mesh prints it.
            return hex.parse().map(Self::Blake3).map_err(|_| BadContentHash);
        }
        let bytes = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map_err(|_| BadContentHash)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| BadContentHash)?;
        match kind {
            "sha256" => Ok(Self::Sha256(bytes)),
            _ => Err(BadContentHash),
        }
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bytes) = match self {
            Self::Sha256(bytes) => ("sha256", bytes),
            Self::Blake3(hash) => ("blake3", &hash.0),
        };
        write!(f, "{kind}:{}", data_encoding::HEXLOWER.encode(bytes))
    }
}

/// A file on a web server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpFile {
    /// `http://` or `https://`.
    pub url: String,
    /// Of the content.
    pub hash: ContentHash,
    /// Most bytes it may have.
    pub size_max: u64,
}

/// The files of a git repository, or of one of its directories, at one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitTree {
    /// `http://` or `https://`.
    pub url: String,
    /// The commit's id: 40 hexadecimal digits, or 64.
    pub revision: String,
    /// The directory; all of it, when not set.
    pub subdir: Option<String>,
    /// The secret that the server wants as a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Most bytes that its files may have together, and the repository's own on the way.
    pub size_max: u64,
}

/// What is wrong with a remote input, and its mend.
pub type Wrong = (&'static str, &'static str);

pub(crate) fn check_url(url: &str) -> Result<(), Wrong> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next());
    let plain = url.len() <= URL_LEN_MAX && url.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain || host.is_none_or(str::is_empty) {
        return Err(("not an address", "write https://HOST/PATH, with anything odd in it percent-encoded"));
    }
    if host.is_some_and(|host| host.contains('@')) {
        // Every node of the mesh reads a spec.
        return Err(("a name or password is in it", "leave it out: every node could read it"));
    }
    Ok(())
}

/// Whether an address is one of the machine that fetches: nothing sent there can be overheard on the way.
fn is_own_machine(url: &str) -> bool {
    let rest = url.strip_prefix("http://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.split_once(']') {
        Some((v6, _)) => v6.trim_start_matches('['),
        None => authority.split(':').next().unwrap_or_default(),
    };
    matches!(host, "localhost" | "127.0.0.1" | "::1")
}

impl HttpFile {
    /// What is wrong with it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        check_url(&self.url)?;
        if self.size_max == 0 { Err(("a size of 0 is no file", "write size_max, such as 1GiB")) } else { Ok(()) }
    }
}

impl GitTree {
    /// What is wrong with it.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        check_url(&self.url)?;
        let lower_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if !matches!(self.revision.len(), 40 | 64) || !self.revision.bytes().all(lower_hex) {
            return Err((
                "the revision is not a commit's id",
                "write all its digits, as git rev-parse HEAD prints them: a branch may mean another commit tomorrow",
            ));
        }
        if self.subdir.as_deref().is_some_and(|dir| !is_safe_relative(dir)) {
            return Err(("the subdir is no path inside the repository", "write a relative path without `..`"));
        }
        if let Some(token) = &self.token {
            secret::check_name(token)?;
            if !self.url.starts_with("https://") && !is_own_machine(&self.url) {
                return Err(("the token would travel in clear", "write https://"));
            }
        }
        if self.size_max == 0 { Err(("a size of 0 is no tree", "write size_max, such as 1GiB")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_and_printed_alike() {
        for text in [format!("sha256:{}", "0a".repeat(32)), format!("blake3:{}", "f3".repeat(32))] {
            assert_eq!(text.parse::<ContentHash>().expect("hash").to_string(), text);
        }
        let hash = Hash([7; 32]);
        assert_eq!(format!("blake3:{hash}").parse(), Ok(ContentHash::Blake3(hash)));
        for wrong in ["", "sha256:", "md5:00", &"0a".repeat(32), &format!("sha256:{}", "0a".repeat(31)), "sha256:zz"] {
            assert_eq!(wrong.parse::<ContentHash>(), Err(BadContentHash), "{wrong}");
        }
    }

    #[test]
    fn what_no_node_should_fetch_is_refused() {
        let file = |url: &str, size_max| HttpFile { url: url.to_owned(), hash: ContentHash::Sha256([1; 32]), size_max };
        assert_eq!(file("https://example.org/a?b=c", 1).check(), Ok(()));
        for wrong in ["ftp://a/b", "file:///etc/passwd", "https://", "https:///x", "http://a b/", "http://me:pw@host/x"]
        {
            assert!(file(wrong, 1).check().is_err(), "{wrong}");
        }
        assert!(file("https://a/b", 0).check().is_err());
        let tree = |url: &str, revision: &str, subdir: Option<&str>| {
            let (url, revision, subdir) = (url.to_owned(), revision.to_owned(), subdir.map(str::to_owned));
            GitTree { url, revision, subdir, token: None, size_max: 1 }.check()
        };
        let id = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(tree("https://a/b.git", id, Some("x/y")), Ok(()));
        for (url, revision, subdir) in [
            ("ssh://a/b", id, None),
            ("ext::sh -c x", id, None),
            ("https://a/b", "main", None),
            ("https://a/b", "--upload-pack=x", None),
            ("https://a/b", id, Some("../x")),
            ("https://a/b", id, Some("")),
        ] {
            assert!(tree(url, revision, subdir).is_err(), "{url} {revision} {subdir:?}");
        }
    }

    #[test]
    fn tokens_do_not_travel_in_clear() {
        let tree = |url: &str, token: &str| GitTree {
            url: url.to_owned(),
            revision: "1".repeat(40),
            subdir: None,
            token: Some(token.to_owned()),
            size_max: 1,
        };
        for url in ["https://a/b", "http://127.0.0.1:8080/b", "http://localhost/b", "http://[::1]:1/b"] {
            assert_eq!(tree(url, "deploy").check(), Ok(()), "{url}");
        }
        for url in ["http://a/b", "http://127.0.0.1.example.org/b", "http://localhost.example.org/", "http://[::2]/b"] {
            assert!(tree(url, "deploy").check().is_err_and(|(_, mend)| mend.contains("https")), "{url}");
        }
        assert!(tree("https://a/b", "no name").check().is_err());
    }
}
