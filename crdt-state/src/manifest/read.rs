//! From tree to draft: one function per table of the manifest. Notes every mistake and goes on with a value that causes no
//! further one; the draft is handed out only when none was noted.

use super::check::{ATTEMPTS, COPIES, PARTITIONS, TASKS};
use super::draft::{DraftBatch, DraftRound, DraftWork, JobDraft, PARTITIONS_DEFAULT, Split, TASKS_DEFAULT};
use super::fields::{Fields, Item, stand_in};
use super::inputs::read_files;
use super::problem::{Problem, Problems};
use super::programs::{of_batch, read_program};
use super::secrets::read_secrets;
use super::tree::Node;
use super::units::parse_split;
use crate::program::ProgramOf;
use crate::spec::{Builtin, Limits, Resources, Retry, Strategy};
use crate::volume::Volume;

/// The values of `type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Batch,
    MapReduce,
    /// A word of later versions.
    Later,
}

const KINDS: [(&str, Kind); 6] = [
    ("batch", Kind::Batch),
    ("map_reduce", Kind::MapReduce),
    ("service", Kind::Later),
    ("system", Kind::Later),
    ("sysbatch", Kind::Later),
    ("parameter_server", Kind::Later),
];

const STRATEGIES: [(&str, Strategy); 2] = [("binpack", Strategy::Binpack), ("spread", Strategy::Spread)];

const MEND_TYPE: &str = "write type = \"batch\" or type = \"map_reduce\"";
const MEND_COMMAND: &str = "write the program and its arguments, such as [\"python3\", \"x.py\"]";

/// Reads a whole manifest.
pub(super) fn read(tree: &Node) -> Result<JobDraft, Problems> {
    let mut out = Vec::new();
    let root = Item { path: String::new(), node: tree };
    let draft = if *tree == Node::Null {
        out.push(Problem::new("", None, "empty", MEND_TYPE));
        None
    } else {
        Fields::open(&root, "", &mut out).map(|top| read_top(&top, &mut out))
    };
    if let Some(draft) = &draft {
        out.extend(super::check::check(draft).0);
    }
    match draft {
        Some(draft) if out.is_empty() => Ok(draft),
        _ => {
            super::fields::sort(&mut out);
            Err(Problems(out))
        }
    }
}

fn read_top(top: &Fields<'_>, out: &mut Vec<Problem>) -> JobDraft {
    let mut draft = JobDraft::batch(ProgramOf::Builtin(Builtin::Noop));
    draft.name = top.get("name").and_then(|item| item.text(out)).map(str::to_owned);
    draft.key = top.get("key").and_then(|item| item.text(out)).map(str::to_owned);
    let defaults = Resources::default();
    draft.resources = Resources {
        cpu_milli: top.get("cpus").and_then(|item| item.cpus(out)).unwrap_or(defaults.cpu_milli),
        memory_bytes: top.get("memory").and_then(|item| item.size(out)).unwrap_or(defaults.memory_bytes),
        disk_bytes: top.get("disk").and_then(|item| item.size(out)).unwrap_or(defaults.disk_bytes),
    };
    if let Some(strategy) = top.get("strategy").and_then(|item| item.choice(&STRATEGIES, out)) {
        draft.strategy = strategy;
    }
    let copies = top.get("copies").and_then(|item| item.count(&COPIES, out));
    draft.copies = copies.and_then(|n| u8::try_from(n).ok()).unwrap_or(draft.copies);
    draft.labels = top.get("labels").map(|item| item.text_table(out)).unwrap_or_default();
    // What a task reserves it may use.
    let defaults = match draft.resources.disk_bytes {
        0 => Limits::default(),
        output_bytes_max => Limits { output_bytes_max, ..Limits::default() },
    };
    draft.limits = top.get("limits").map_or(defaults, |item| read_limits(&item, defaults, out));
    draft.retry = top.get("retry").map(|item| read_retry(&item, out)).unwrap_or_default();
    draft.env = top.get("env").map(|item| item.text_table(out)).unwrap_or_default();
    draft.network = top.get("network").map(|item| super::network::read(&item, out)).unwrap_or_default();
    draft.secrets = top.get("secrets").map(|item| read_secrets(&item, out)).unwrap_or_default();
    draft.volumes = top.get("volumes").map(|item| read_volumes(&item, out)).unwrap_or_default();
    if let Some(work) = read_work(top, out) {
        draft.work = work;
    }
    draft
}

fn read_limits(item: &Item<'_>, defaults: Limits, out: &mut Vec<Problem>) -> Limits {
    let Some(fields) = Fields::open(item, "limits", out) else { return defaults };
    Limits {
        timeout_ms: fields.get("timeout").and_then(|item| item.duration(out)).or(defaults.timeout_ms),
        output_bytes_max: fields.get("output_max").and_then(|item| item.size(out)).unwrap_or(defaults.output_bytes_max),
    }
}

fn read_volumes(item: &Item<'_>, out: &mut Vec<Problem>) -> Vec<Volume> {
    let items = item.list(out).into_iter().enumerate();
    let read = |(i, item): (usize, Item<'_>)| {
        let (name, path) = (format!("stand_in_{i}"), format!("/stand-in-{i}"));
        let Some(fields) = Fields::open(&item, "volumes", out) else { return Volume { name, path, read_only: true } };
        let given = fields.require("name", "write the name that operators give it", out);
        let name = given.and_then(|item| item.text(out)).map_or(name, str::to_owned);
        let given = fields.require("path", "write where programs are to find it, such as /data", out);
        let path = given.and_then(|item| item.text(out)).map_or(path, str::to_owned);
        let read_only = fields.get("read_only").and_then(|item| item.flag(out)).unwrap_or(true);
        Volume { name, path, read_only }
    };
    items.map(read).collect()
}

fn read_retry(item: &Item<'_>, out: &mut Vec<Problem>) -> Retry {
    let defaults = Retry::default();
    let Some(fields) = Fields::open(item, "retry", out) else { return defaults };
    Retry {
        attempts: fields.get("attempts").and_then(|item| item.count(&ATTEMPTS, out)).unwrap_or(defaults.attempts),
        delay_ms: fields.get("delay").and_then(|item| item.duration(out)).unwrap_or(defaults.delay_ms),
    }
}

/// The work of the type named; when none is, whichever sections are there are still read for their mistakes.
fn read_work(top: &Fields<'_>, out: &mut Vec<Problem>) -> Option<DraftWork> {
    let item = top.require("type", MEND_TYPE, out);
    let kind = item.as_ref().and_then(|item| item.choice(&KINDS, out));
    if let (Some(Kind::Later), Some(item)) = (kind, &item) {
        out.push(Problem::new(&item.path, item.node.describe(), "not available in this version", MEND_TYPE));
    }
    let (batch, round) = (top.get("batch"), top.get("map_reduce"));
    match kind {
        Some(Kind::Batch) => {
            refuse_section(round.as_ref(), "batch", out);
            let section = top.require("batch", "add a [batch] table with the command to run", out);
            section.map(|item| read_batch(&item, out))
        }
        Some(Kind::MapReduce) => {
            refuse_section(batch.as_ref(), "map_reduce", out);
            let section = top.require("map_reduce", "add a [map_reduce] table with inputs, map and reduce", out);
            section.map(|item| read_round(&item, out))
        }
        Some(Kind::Later) | None => {
            let batch = batch.map(|item| read_batch(&item, out));
            round.map(|item| read_round(&item, out)).or(batch)
        }
    }
}

fn refuse_section(section: Option<&Item<'_>>, kind: &str, out: &mut Vec<Problem>) {
    if let Some(item) = section {
        let problem = format!("this table does not go with type = \"{kind}\"");
        out.push(Problem::new(&item.path, None, problem, "leave it out, or change the type"));
    }
}

fn read_batch(item: &Item<'_>, out: &mut Vec<Problem>) -> DraftWork {
    let (mut program, mut tasks) = (ProgramOf::Builtin(Builtin::Noop), TASKS_DEFAULT);
    let (mut inputs, mut gather, mut outputs) = (Vec::new(), None, Vec::new());
    if let Some(fields) = Fields::open(item, "batch", out) {
        program = of_batch(&fields, out).unwrap_or(program);
        tasks = fields.get("tasks").and_then(|item| item.count(&TASKS, out)).unwrap_or(tasks);
        inputs = fields.get("inputs").map(|item| read_files(&item, out)).unwrap_or_default();
        gather = fields.get("gather").and_then(|item| {
            let argv = item.texts(out);
            if argv.is_empty() {
                out.push(Problem::new(&item.path, None, "the command is empty", "write words, or leave it out"));
            }
            Some(argv).filter(|argv| !argv.is_empty())
        });
        outputs = fields.get("outputs").map(|item| item.texts(out)).unwrap_or_default();
    }
    DraftWork::Batch(DraftBatch { program, tasks, inputs, gather, outputs })
}

fn read_round(item: &Item<'_>, out: &mut Vec<Problem>) -> DraftWork {
    let noop = || ProgramOf::Builtin(Builtin::Noop);
    let mut round = DraftRound {
        inputs: vec![stand_in(0)],
        split: Split::default(),
        map: noop(),
        combine: None,
        reduce: noop(),
        partitions: PARTITIONS_DEFAULT,
        files: Vec::new(),
    };
    if let Some(fields) = Fields::open(item, "map_reduce", out) {
        let inputs = fields.require("inputs", "name the files or directories to read, such as [\"data\"]", out);
        if let Some(item) = inputs {
            let is_list = matches!(item.node, Node::List(_));
            let texts = item.texts(out);
            round.inputs = if is_list { texts } else { round.inputs };
        }
        if let Some(item) = fields.get("split") {
            let split = item.text(out).and_then(|text| item.unit(text, parse_split, out));
            round.split = split.unwrap_or_default();
        }
        round.map = read_program(fields.require("map", MEND_COMMAND, out), out).unwrap_or_else(noop);
        round.combine = read_program(fields.get("combine"), out);
        round.reduce = read_program(fields.require("reduce", MEND_COMMAND, out), out).unwrap_or_else(noop);
        let partitions = fields.get("partitions").and_then(|item| item.count(&PARTITIONS, out));
        round.partitions = partitions.unwrap_or(round.partitions);
        round.files = fields.get("files").map(|item| read_files(&item, out)).unwrap_or_default();
    }
    DraftWork::MapReduce(round)
}
