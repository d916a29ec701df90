//! The bounds of a draft, whoever made it. Collects every problem; says the same as the manifest reader where both look.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;

use super::draft::{DraftContent, DraftFile, DraftProgram, DraftSource, DraftWork, JobDraft, Split};
use super::outputs::plain_output;
use super::problem::{Problem, Problems, quoted};
use super::units::format_size;
use crate::cbor;
use crate::program::ProgramOf;
use crate::remote::Wrong;
use crate::spec::{Builtin, PARTITIONS_MAX, SPEC_LEN_MAX, TASKS_MAX, is_safe_relative};
use crate::volume::check_volumes;

/// Longest job name, in characters: one column of a table on a terminal, with room to spare.
pub(super) const NAME_LEN_MAX: usize = 128;
/// Longest label key or value, bytes: labels travel in every node's digest.
const LABEL_LEN_MAX: usize = 63;
/// Longest inline file, bytes: specs are replicated to every node, and a quarter of one is plenty.
const INLINE_LEN_MAX: usize = SPEC_LEN_MAX / 4;
/// Bytes of a spec that a draft does not have yet: the ids of mesh, submitter and brain set, the chunk table, field names.
const SPEC_EXTRA_LEN: usize = 1_024;
/// Bytes of a blob reference in a spec, with its field names: what a local path turns into.
const BLOB_REF_LEN: usize = 80;
/// The start of the variables that the runner sets itself.
pub(super) const RESERVED_ENV_PREFIX: &str = "SINEW_";

/// Accepted values of `copies`.
pub(super) const COPIES: RangeInclusive<u32> = 1..=2;
/// Accepted values of `batch.tasks`.
pub(super) const TASKS: RangeInclusive<u32> = 1..=TASKS_MAX;
/// Accepted values of `map_reduce.partitions`.
pub(super) const PARTITIONS: RangeInclusive<u32> = 1..=PARTITIONS_MAX;
/// Accepted values of `retry.attempts`.
pub(super) const ATTEMPTS: RangeInclusive<u32> = 0..=u32::MAX;

/// What a program is used for; built-ins fit only their own place.
#[derive(Clone, Copy)]
enum Place {
    Task,
    Map,
    Fold,
}

/// Every problem of `draft`.
pub(super) fn check(draft: &JobDraft) -> Problems {
    let mut out = Vec::new();
    check_name(draft.name.as_deref(), &mut out);
    check_key(draft.key.as_deref(), &mut out);
    check_amounts(draft, &mut out);
    check_labels(&draft.labels, &mut out);
    check_env(&draft.env, &mut out);
    super::network::check(draft, &mut out);
    super::secrets::check_secrets(draft, &mut out);
    match &draft.work {
        DraftWork::Batch(batch) => {
            check_program(batch_key(&batch.program), &batch.program, Place::Task, &mut out);
            check_range("batch.tasks", batch.tasks, TASKS, &mut out);
            check_files("batch.inputs", &batch.inputs, &mut out);
            check_gather(batch.gather.as_deref(), &mut out);
            check_outputs(&batch.outputs, &mut out);
        }
        DraftWork::MapReduce(round) => {
            check_round_inputs(&round.inputs, &mut out);
            if matches!(round.split, Split::Lines(0) | Split::Bytes(0)) {
                let mend = "write at least lines:1 or bytes:1";
                out.push(Problem::new("map_reduce.split", "0".to_owned(), "chunks of nothing never end", mend));
            }
            check_program("map_reduce.map", &round.map, Place::Map, &mut out);
            if let Some(combine) = &round.combine {
                check_program("map_reduce.combine", combine, Place::Fold, &mut out);
            }
            check_program("map_reduce.reduce", &round.reduce, Place::Fold, &mut out);
            check_range("map_reduce.partitions", round.partitions, PARTITIONS, &mut out);
            check_files("map_reduce.files", &round.files, &mut out);
        }
    }
    if let Err((i, (problem, mend))) = check_volumes(&draft.volumes) {
        let found = draft.volumes.get(i).map(|volume| format!("{} at {}", quoted(&volume.name), quoted(&volume.path)));
        out.push(Problem::new(format!("volumes[{i}]"), found, problem, mend));
    }
    check_len(draft, &mut out);
    Problems(out)
}

/// The problem of a number outside `range`.
pub(super) fn out_of_range(path: &str, found: impl Display, range: &RangeInclusive<u32>) -> Problem {
    let (low, high) = (range.start(), range.end());
    Problem::new(path, found.to_string(), "out of range", format!("write a whole number from {low} to {high}"))
}

fn check_range(path: &str, value: u32, range: RangeInclusive<u32>, out: &mut Vec<Problem>) {
    if !range.contains(&value) {
        out.push(out_of_range(path, value, &range));
    }
}

fn check_name(name: Option<&str>, out: &mut Vec<Problem>) {
    let Some(name) = name else { return };
    let len = name.chars().count();
    if !(1..=NAME_LEN_MAX).contains(&len) || name.chars().any(char::is_control) {
        let mend = format!("write 1 to {NAME_LEN_MAX} characters without line breaks or control characters");
        out.push(Problem::new("name", quoted(name), "not a name", mend));
    }
}

fn check_key(key: Option<&str>, out: &mut Vec<Problem>) {
    if let Some((key, Err(problem))) = key.map(|key| (key, crate::submit_key::check(key))) {
        out.push(Problem::new("key", quoted(key), problem, "write a word of your own, such as a date or a UUID"));
    }
}

fn check_amounts(draft: &JobDraft, out: &mut Vec<Problem>) {
    if draft.resources.cpu_milli == 0 {
        let mend = "write at least 0.001, so that nodes have a bound on how many run at once";
        out.push(Problem::new("cpus", "0".to_owned(), "a task must reserve some CPU", mend));
    }
    check_range("copies", draft.copies.into(), COPIES, out);
    if draft.limits.timeout_ms == Some(0) {
        let mend = "write a duration such as 30s, or leave it out for no limit";
        out.push(Problem::new("limits.timeout", "0".to_owned(), "no task ends in no time", mend));
    }
    if draft.limits.output_bytes_max == 0 {
        let mend = "write a size such as 1GiB; there is no way to ask for no limit";
        out.push(Problem::new("limits.output_max", "0".to_owned(), "no output at all could be kept", mend));
    }
    let (disk, output_max) = (draft.resources.disk_bytes, draft.limits.output_bytes_max);
    if disk > 0 && output_max > disk {
        let mend = format!("write at most the {disk} bytes of `disk`, or reserve more there, or leave one of them out");
        out.push(Problem::new("limits.output_max", output_max.to_string(), "more than the task reserves", mend));
    }
}

fn check_labels(labels: &BTreeMap<String, String>, out: &mut Vec<Problem>) {
    let plain =
        |text: &str| text.len() <= LABEL_LEN_MAX && !text.contains(|c: char| c.is_control() || c.is_whitespace());
    for (key, value) in labels {
        let path = join("labels", key);
        if key.is_empty() || key.contains('=') || !plain(key) {
            let mend = format!("use 1 to {LABEL_LEN_MAX} bytes without blanks or `=`");
            out.push(Problem::new(&path, quoted(key), "not the name of a label", mend));
        }
        if !plain(value) {
            let mend = format!("use up to {LABEL_LEN_MAX} bytes without blanks");
            out.push(Problem::new(path, quoted(value), "not the value of a label", mend));
        }
    }
}

fn check_env(env: &BTreeMap<String, String>, out: &mut Vec<Problem>) {
    for (key, value) in env {
        let path = join("env", key);
        let head_ok = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !head_ok || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let mend = "use letters, digits and `_`, not beginning with a digit";
            out.push(Problem::new(&path, quoted(key), "not the name of an environment variable", mend));
        } else if key.starts_with(RESERVED_ENV_PREFIX) {
            let problem = format!("names that begin with {RESERVED_ENV_PREFIX} are reserved");
            out.push(Problem::new(&path, quoted(key), problem, "choose another name"));
        }
        if value.contains('\0') {
            out.push(Problem::new(path, quoted(value), "holds a NUL character", "leave the NUL out"));
        }
    }
}

fn check_program(path: &str, program: &DraftProgram, place: Place, out: &mut Vec<Problem>) {
    match program {
        ProgramOf::Exec(argv) if argv.first().is_none_or(String::is_empty) => out.push(empty_command(path)),
        ProgramOf::Exec(argv) => {
            if argv.iter().any(|arg| arg.contains('\0')) {
                out.push(Problem::new(path, None, "an argument holds a NUL character", "leave the NUL out"));
            }
            if argv[0].starts_with(Builtin::PREFIX) {
                let mend = "use sinew:wordcount, sinew:sum, sinew:grep PATTERN or sinew:noop";
                out.push(Problem::new(path, quoted(&argv[0]), "not a program of a node", mend));
            }
        }
        ProgramOf::Builtin(builtin) => {
            let fits = match builtin {
                Builtin::Noop => true,
                Builtin::Wordcount | Builtin::Grep(_) => matches!(place, Place::Map),
                Builtin::Sum => matches!(place, Place::Fold),
            };
            if !fits {
                let mend =
                    "sinew:wordcount and sinew:grep map, sinew:sum combines and reduces, sinew:noop fits anywhere";
                out.push(Problem::new(path, None, "this built-in does not work here", mend));
            }
        }
        other => {
            if let Some(DraftContent::Path(local)) = other.content() {
                check_local(path, local, out);
            }
            if let Err((problem, mend)) = other.check() {
                out.push(Problem::new(path, None, problem, mend));
            }
        }
    }
}

/// The key that holds a batch's program.
const fn batch_key(program: &DraftProgram) -> &'static str {
    match program {
        ProgramOf::Exec(_) | ProgramOf::Builtin(_) => "batch.command",
        ProgramOf::Container(_) => "batch.docker",
        ProgramOf::Python(_) => "batch.python",
        ProgramOf::Wasm(_) => "batch.wasm",
    }
}

/// The problem of a command without a program.
pub(super) fn empty_command(path: &str) -> Problem {
    Problem::new(
        path,
        None,
        "the command is empty",
        "write the program and its arguments, such as [\"python3\", \"x.py\"]",
    )
}

fn check_files(path: &str, files: &[DraftFile], out: &mut Vec<Problem>) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        let path = format!("{path}[{i}]");
        check_relative(&format!("{path}.to"), &file.to, out);
        if let Some(other) = seen.insert(&file.to, i) {
            let problem = format!("item {other} goes to the same place");
            out.push(Problem::new(format!("{path}.to"), quoted(&file.to), problem, "choose another `to`"));
        }
        match &file.source {
            DraftSource::Path(local) => check_local(&format!("{path}.path"), local, out),
            DraftSource::Inline(text) if text.len() > INLINE_LEN_MAX => {
                let found = format_size(text.len() as u64);
                let mend =
                    format!("put more than {} into a file and name its `path`", format_size(INLINE_LEN_MAX as u64));
                out.push(Problem::new(format!("{path}.inline"), found, "too long to be inline", mend));
            }
            DraftSource::Inline(_) | DraftSource::Blob(_) => {}
            DraftSource::Http(remote) => note(&path, &remote.url, remote.check(), out),
            DraftSource::Git(remote) => note(&path, &remote.url, remote.check(), out),
            DraftSource::Object(remote) => note(&path, &remote.url, remote.check(), out),
        }
    }
    // A file cannot also be a directory.
    for (i, file) in files.iter().enumerate() {
        let parents = file.to.match_indices('/').map(|(at, _)| &file.to[..at]);
        if let Some(other) = parents.filter_map(|parent| seen.get(parent)).next() {
            let problem = format!("item {other} is a file where this needs a directory");
            out.push(Problem::new(format!("{path}[{i}].to"), quoted(&file.to), problem, "choose another `to`"));
        }
    }
}

fn note(path: &str, found: &str, checked: Result<(), Wrong>, out: &mut Vec<Problem>) {
    if let Err((problem, mend)) = checked {
        out.push(Problem::new(path, quoted(found), problem, mend));
    }
}

fn check_gather(gather: Option<&[String]>, out: &mut Vec<Problem>) {
    let Some(argv) = gather else { return };
    if argv.first().is_none_or(String::is_empty) {
        out.push(empty_command("batch.gather"));
    }
    if argv.iter().any(|word| word.contains('\0')) {
        out.push(Problem::new("batch.gather", None, "an argument holds a NUL character", "leave the NUL out"));
    }
}

fn check_outputs(outputs: &[String], out: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for (i, output) in outputs.iter().enumerate() {
        let path = format!("batch.outputs[{i}]");
        let plain = plain_output(output);
        check_relative(&path, if plain.is_empty() { output } else { &plain }, out);
        if !seen.insert(plain) {
            out.push(Problem::new(path, quoted(output), "named twice", "leave one of them out"));
        }
    }
}

fn check_round_inputs(inputs: &[String], out: &mut Vec<Problem>) {
    let path = "map_reduce.inputs";
    if inputs.is_empty() {
        out.push(Problem::new(
            path,
            None,
            "a round without input has nothing to do",
            "name at least one file or directory",
        ));
    }
    for (i, input) in inputs.iter().enumerate() {
        check_local(&format!("{path}[{i}]"), input, out);
    }
}

fn check_relative(path: &str, value: &str, out: &mut Vec<Problem>) {
    if !is_safe_relative(value) {
        let mend = "write a relative path with `/`, without `..`, such as data/a.txt";
        out.push(Problem::new(path, quoted(value), "not a path inside the task's directory", mend));
    }
}

fn check_local(path: &str, value: &str, out: &mut Vec<Problem>) {
    if value.is_empty() || value.contains('\0') {
        out.push(Problem::new(path, quoted(value), "not a path", "name a local file"));
    }
}

fn check_len(draft: &JobDraft, out: &mut Vec<Problem>) {
    let paths = draft.files().iter().filter(|f| matches!(f.source, DraftSource::Path(_))).count();
    let len = cbor::to_vec(draft).len() + paths * BLOB_REF_LEN + SPEC_EXTRA_LEN;
    if len > SPEC_LEN_MAX {
        let (found, most) = (format!("about {len} bytes"), format_size(SPEC_LEN_MAX as u64));
        let mend = "move inline text, long arguments and environment into a few input files";
        out.push(Problem::new("", found, format!("the job's description is longer than {most}"), mend));
    }
}

/// `key` under `path`, quoted where a bare key could be misread.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let key = if !key.is_empty() && key.chars().all(bare) && key.len() <= 60 { key.to_owned() } else { quoted(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
