//! The programs of a manifest: a command, or a table that names another runner.

use data_encoding::BASE64;

use super::check::empty_command;
use super::draft::{DraftContent, DraftProgram, ProgramError, program_from_argv, program_from_text};
use super::fields::{Fields, Item};
use super::problem::{Problem, quoted};
use super::tree::Node;
use crate::program::{ContainerOf, HealthCheck, ImageOf, Params, ProgramOf, PythonCall, WasmOf};

const MEND_COMMAND: &str = "write the program and its arguments, such as [\"python3\", \"x.py\"]";
const MEND_ONE: &str = "write exactly one of command, docker, python and wasm";
/// The keys that name a program by its runner.
const RUNNERS: [&str; 3] = ["docker", "python", "wasm"];

/// The program of a batch.
pub(super) fn of_batch(fields: &Fields<'_>, out: &mut Vec<Problem>) -> Option<DraftProgram> {
    let others: Vec<(&str, Item<'_>)> = RUNNERS.iter().filter_map(|key| Some((*key, fields.get(key)?))).collect();
    if others.is_empty() {
        return read_program(fields.require("command", MEND_COMMAND, out), out);
    }
    one_of(fields.get("command").as_ref(), others, out)
}

/// The program of a phase: a command (a list of words, or one text to split), or a table with another runner's program. `None`
/// when there is none or it was noted as wrong.
pub(super) fn read_program(item: Option<Item<'_>>, out: &mut Vec<Problem>) -> Option<DraftProgram> {
    let item = item?;
    let noted = out.len();
    let program = match item.node {
        Node::List(_) => program_from_argv(item.texts(out)),
        Node::Text(text) => program_from_text(text),
        Node::Table(_) => {
            let fields = Fields::open(&item, "program", out)?;
            let others = RUNNERS.iter().filter_map(|key| Some((*key, fields.get(key)?))).collect();
            return one_of(None, others, out).or_else(|| missing(&item, noted, out));
        }
        other => {
            out.push(Problem::new(&item.path, other.describe(), "not a command", MEND_COMMAND));
            return None;
        }
    };
    if out.len() > noted {
        return None;
    }
    let error = match program {
        Ok(program) => return Some(program),
        Err(error) => error,
    };
    let found = item.node.describe();
    out.push(match error {
        ProgramError::Empty => empty_command(&item.path),
        ProgramError::Quote => {
            Problem::new(&item.path, found, "a quote is not closed", "close it, or write a list of words")
        }
        ProgramError::Builtin(_) => {
            let mend = "use sinew:wordcount, sinew:sum, sinew:grep PATTERN or sinew:noop";
            Problem::new(&item.path, found, "not a built-in, or not its arguments", mend)
        }
    });
    None
}

fn missing(item: &Item<'_>, noted: usize, out: &mut Vec<Problem>) -> Option<DraftProgram> {
    if out.len() == noted {
        out.push(Problem::new(&item.path, None, "no program", MEND_ONE));
    }
    None
}

fn one_of(command: Option<&Item<'_>>, others: Vec<(&str, Item<'_>)>, out: &mut Vec<Problem>) -> Option<DraftProgram> {
    if let Some((_, second)) = others.get(1) {
        out.push(Problem::new(&second.path, None, "a second program", MEND_ONE));
    } else if let (Some(command), false) = (command, others.is_empty()) {
        out.push(Problem::new(&command.path, None, "a second program", MEND_ONE));
    }
    let (runner, item) = others.into_iter().next()?;
    let fields = Fields::open(&item, runner, out)?;
    match runner {
        "docker" => read_container(&item, &fields, out),
        "python" => read_python(&fields, out),
        _ => read_wasm(&fields, out),
    }
}

fn read_container(item: &Item<'_>, fields: &Fields<'_>, out: &mut Vec<Problem>) -> Option<DraftProgram> {
    let (image, archive) = (fields.get("image"), fields.get("archive"));
    if image.is_some() == archive.is_some() {
        let mend = "write image = \"NAME@sha256:…\" or archive = \"FILE\" from docker save";
        out.push(Problem::new(&item.path, None, "one of image and archive is needed", mend));
    }
    let entrypoint = fields.get("entrypoint").map(|item| item.texts(out));
    let argv = fields.get("args").map(|item| item.texts(out)).unwrap_or_default();
    let gpus = fields.get("gpus").and_then(|item| item.count(&(0..=1_024), out)).unwrap_or(0);
    let health = fields.get("health").and_then(|item| read_health(&item, out)).map(Box::new);
    let image = match (image, archive) {
        (Some(image), _) => ImageOf::Digest(image.text(out)?.to_owned()),
        (None, archive) => ImageOf::Archive(DraftContent::Path(archive?.text(out)?.to_owned())),
    };
    Some(ProgramOf::Container(ContainerOf { image, entrypoint, argv, gpus, health }))
}

fn read_health(item: &Item<'_>, out: &mut Vec<Problem>) -> Option<HealthCheck> {
    let fields = Fields::open(item, "health", out)?;
    let command = fields.require("command", "write the program and its arguments", out);
    let usual = HealthCheck::new(command?.texts(out));
    let mut time = |key, usual| fields.get(key).and_then(|item| item.duration(out)).unwrap_or(usual);
    Some(HealthCheck {
        interval_ms: time("interval", usual.interval_ms),
        timeout_ms: time("timeout", usual.timeout_ms),
        start_ms: time("start", usual.start_ms),
        retries: fields
            .get("retries")
            .and_then(|item| item.count(&(1..=HealthCheck::RETRIES_MAX), out))
            .unwrap_or(usual.retries),
        ..usual
    })
}

fn read_python(fields: &Fields<'_>, out: &mut Vec<Problem>) -> Option<DraftProgram> {
    let call = fields.require("call", "write MODULE:FUNCTION, such as tasks.resize:run", out);
    let params = match (fields.get("params"), fields.get("params_cbor")) {
        (Some(_), Some(second)) => {
            out.push(Problem::new(&second.path, None, "parameters twice", "write one of params and params_cbor"));
            return None;
        }
        (Some(item), None) => item.table(out).map(|_| Params::Json(to_json(&item, out).to_string()))?,
        (None, Some(item)) => read_cbor(&item, out)?,
        (None, None) => Params::Json("{}".to_owned()),
    };
    let call = call?.text(out)?.to_owned();
    Some(ProgramOf::Python(PythonCall { call, params }))
}

fn read_cbor(item: &Item<'_>, out: &mut Vec<Problem>) -> Option<Params> {
    let text = item.text(out)?;
    let wrong = ("not base64", "write the bytes of a CBOR map in base64, with its padding");
    let read = BASE64.decode(text.as_bytes()).map_err(|_| wrong).and_then(|bytes| Params::from_cbor(&bytes));
    read.map_err(|(problem, mend)| out.push(Problem::new(&item.path, None, problem, mend))).ok()
}

fn read_wasm(fields: &Fields<'_>, out: &mut Vec<Problem>) -> Option<DraftProgram> {
    let module = fields.require("module", "name the .wasm file", out);
    let argv = fields.get("args").map(|item| item.texts(out)).unwrap_or_default();
    let fuel = fields.get("fuel").and_then(|item| match item.node {
        Node::Int(fuel) if u64::try_from(*fuel).is_ok_and(|fuel| fuel > 0) => u64::try_from(*fuel).ok(),
        other => {
            let mend = "write a whole number from 1, without quotes, or leave it out";
            out.push(Problem::new(&item.path, other.describe(), "not an amount of fuel", mend));
            None
        }
    });
    let deterministic = fields.get("deterministic").and_then(|item| item.flag(out)).unwrap_or(false);
    let module = DraftContent::Path(module?.text(out)?.to_owned());
    Some(ProgramOf::Wasm(WasmOf { module, argv, fuel, deterministic }))
}

/// A value as JSON; what JSON cannot say is noted.
fn to_json(item: &Item<'_>, out: &mut Vec<Problem>) -> serde_json::Value {
    use serde_json::Value;
    let below = |key: String, node| Item { path: key, node };
    match item.node {
        Node::Null => Value::Null,
        Node::Bool(value) => Value::Bool(*value),
        Node::Text(text) => Value::String(text.clone()),
        Node::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
            (Ok(value), _) => value.into(),
            (_, Ok(value)) => value.into(),
            _ => {
                out.push(Problem::new(&item.path, value.to_string(), "too large a number", "write it as text"));
                Value::Null
            }
        },
        Node::Float(value) => serde_json::Number::from_f64(*value).map_or_else(
            || {
                out.push(Problem::new(&item.path, value.to_string(), "no number of JSON", "write it as text"));
                Value::Null
            },
            Value::Number,
        ),
        Node::Date(text) => {
            out.push(Problem::new(&item.path, quoted(text), "no value of JSON", "put the date in quotes"));
            Value::Null
        }
        Node::List(items) => {
            let items = items.iter().enumerate();
            Value::Array(items.map(|(i, node)| to_json(&below(format!("{}[{i}]", item.path), node), out)).collect())
        }
        Node::Table(_) => {
            let entries = item.table(out).unwrap_or_default().into_iter();
            let of_key = |(key, node): (&str, _)| {
                (key.to_owned(), to_json(&below(super::check::join(&item.path, key), node), out))
            };
            Value::Object(entries.map(of_key).collect())
        }
    }
}
