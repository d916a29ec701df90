//! Names inside a collection: what is allowed. Touches no file.

use std::collections::BTreeSet;

use crate::error::NameError;

/// Linux' `PATH_MAX` less the room an export root needs: a longer name could never be exported.
const NAME_LEN_MAX: usize = 2048;
/// Linux' `NAME_MAX`.
const PART_LEN_MAX: usize = 255;

/// Checks one name: relative, `/`-separated, no `.`/`..`, nothing a terminal or file system trips over.
pub(crate) fn check(name: &str) -> Result<(), NameError> {
    if name.starts_with('/') {
        return Err(NameError::Absolute);
    }
    if name.len() > NAME_LEN_MAX {
        return Err(NameError::Long);
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::Control);
    }
    for part in name.split('/') {
        match part {
            "" => return Err(NameError::Empty),
            "." | ".." => return Err(NameError::Dots),
            part if part.len() > PART_LEN_MAX => return Err(NameError::Long),
            _ => {}
        }
    }
    Ok(())
}

/// Checks that no name appears twice and none is both a file and a directory; returns the offender.
pub(crate) fn check_distinct<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), &'a str> {
    let mut files = BTreeSet::new();
    for name in names {
        if !files.insert(name) {
            return Err(name);
        }
    }
    for name in &files {
        if name.match_indices('/').any(|(at, _)| files.contains(&name[..at])) {
            return Err(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_names_pass() {
        for good in ["a", "a/b.txt", "..a", "a b/ü", "a\\b"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check("/etc/passwd"), Err(NameError::Absolute));
        assert_eq!(check("a/../b"), Err(NameError::Dots));
        assert_eq!(check("./a"), Err(NameError::Dots));
        assert_eq!(check("a\0b"), Err(NameError::Control));
        assert_eq!(check("a//b"), Err(NameError::Empty));
        assert_eq!(check(""), Err(NameError::Empty));
        assert_eq!(check(&"x".repeat(255)), Ok(()));
        assert_eq!(check(&"x".repeat(256)), Err(NameError::Long));
    }

    #[test]
    fn a_name_is_used_once() {
        assert_eq!(check_distinct(["a", "b/c"].into_iter()), Ok(()));
        assert_eq!(check_distinct(["a", "a"].into_iter()), Err("a"));
        assert_eq!(check_distinct(["a/b", "a"].into_iter()), Err("a/b"));
    }
}
