//! What is said of a task's end goes to the one who submitted it: paths in it are those that programs know, and none of this machine's
//! directories.

use std::path::Path;

use super::cell;

/// What stands for a directory of the daemon that no program sees.
const HIDDEN: &str = "(a directory of this node)";

/// Replaces what is below the data directory `data`, which holds the work directory `work`, by what programs know it as.
pub(super) fn as_programs_know(text: &str, data: &Path, work: &Path) -> String {
    let (Some(data), Some(work)) = (plain(data), plain(work)) else { return text.to_owned() };
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(data) {
        let (before, path) = rest.split_at(at);
        let follows = path[data.len()..].chars().next();
        shown.push_str(before);
        if follows.is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            // Another directory, whose name begins alike.
            shown.push_str(data);
            rest = &path[data.len()..];
            continue;
        }
        let (name, len) = known(path, work).unwrap_or((HIDDEN, data.len()));
        shown.push_str(name);
        rest = &path[len..];
    }
    shown + rest
}

/// A path that can be looked for: one of a single character would be found everywhere.
fn plain(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| path.is_absolute() && text.len() > 1)
}

/// What programs call the directory that `path` begins with, and how many bytes of it that stands for.
fn known(path: &str, work: &str) -> Option<(&'static str, usize)> {
    let inside = path.strip_prefix(work)?.strip_prefix('/')?;
    let end = inside.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')));
    let parts: Vec<&str> = inside[..end.unwrap_or(inside.len())].split('/').take(3).collect();
    let (name, count) = match parts[..] {
        ["slots", _, "job"] => (cell::JOB, 3),
        [_, "input", ..] => (cell::INPUT, 2),
        [_, _, "output"] => (cell::OUTPUT, 3),
        _ => return None,
    };
    // A `/` before each of them.
    Some((name, work.len() + parts[..count].iter().map(|part| 1 + part.len()).sum::<usize>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_daemon_are_said_as_programs_know_them() {
        let say = |text: &str| as_programs_know(text, Path::new("/srv/n1"), Path::new("/srv/n1/work"));
        for (text, said) in [
            ("could not read /srv/n1/work/slots/0/job/work/x: it is gone", "could not read /job/work/x: it is gone"),
            ("`/srv/n1/work/slots/12/job/output`", "`/job/output`"),
            ("/srv/n1/work/slots/0/job", "/job"),
            ("file \"/srv/n1/work/ab34/0-0-1/output/caf\\xE9\" is odd", "file \"/job/output/caf\\xE9\" is odd"),
            ("/srv/n1/work/ab34/input/a, /srv/n1/work/ab34/input/b", "/input/a, /input/b"),
            ("at path \"/srv/n1/work/ab34/gather-x\"", "at path \"(a directory of this node)/work/ab34/gather-x\""),
            ("/srv/n1: no space", "(a directory of this node): no space"),
            ("/srv/n10/x and /srv/n1-old stay, é too", "/srv/n10/x and /srv/n1-old stay, é too"),
            ("nothing of it", "nothing of it"),
        ] {
            assert_eq!(say(text), said);
        }
        let all = as_programs_know("/a/b", Path::new("/"), Path::new("/work"));
        assert_eq!(all, "/a/b", "a data directory that everything is below hides nothing");
    }
}
