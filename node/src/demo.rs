//! `sinew demo`: three daemons on this machine count the words of real texts, and prove that they counted right.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::manifest::{DraftProgram, JobDraft, Split};
use sinew_crdt_state::spec::Builtin;
use sinew_crdt_state::state::Event;
use sinew_scheduler::view::{JobView, PlacementView};

use crate::api::Request;
use crate::api::client::Client;
use crate::cli::{show_watch, show_watch_of};
use crate::local_mesh::{LocalMesh, LocalMeshOptions};

/// Bytes of a chunk: small enough that three nodes share a few MB fairly.
const CHUNK: u64 = 128 * 1024;
/// Most bytes taken from the system's texts.
const TEXTS_MAX: u64 = 16 << 20;
/// Most files taken: each is a chunk of its own at least, and tiny chunks show nothing but overhead.
const FILES_MAX: usize = 200;
/// Largest file taken: what is larger is data rather than text.
const FILE_MAX: u64 = 1 << 20;
/// Less than this is not worth three nodes' while: then a text is made up.
const TEXTS_MIN: u64 = 1 << 20;
/// Words shown.
const TOP: usize = 15;
/// Lines of the timeline shown.
const TIMELINE: usize = 40;

/// What the demo is asked for.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How many nodes.
    pub nodes: usize,
    /// Files and directories to count; empty takes what is at hand.
    pub inputs: Vec<PathBuf>,
    /// Print one JSON object instead of text.
    pub json: bool,
}

/// Runs the demo; returns the exit code.
///
/// # Errors
/// Whatever went wrong, in words. Nothing is left behind either way.
pub async fn run(options: DemoOptions) -> anyhow::Result<u8> {
    let say = |text: &str| {
        if !options.json {
            println!("{text}");
        }
    };
    let scratch = tempfile::Builder::new().prefix("sinew-demo-").tempdir()?;
    let inputs = if options.inputs.is_empty() { texts(scratch.path())? } else { absolute(&options.inputs)? };
    let began = Instant::now();
    let exe = std::env::current_exe()?;
    let cpus = 1.0;
    let mesh = LocalMesh::start(&LocalMeshOptions { exe, nodes: options.nodes, cpus, args: Vec::new() }).await?;
    say(&format!("{} daemons formed a mesh in {:.1} s:", options.nodes, began.elapsed().as_secs_f64()));
    for (i, node) in mesh.nodes.iter().enumerate() {
        let status = node.client().status().await?;
        let pid = status.pid;
        say(&format!("  node {i}  {}  pid {pid}  {}", node.id.short(), status.listen.join(" ")));
    }
    let client = mesh.nodes[0].client();
    let outcome = count(&client, &inputs, scratch.path(), options.json).await?;
    report(&options, &mesh, &outcome)
}

struct Counted {
    view: JobView,
    timeline: Vec<Event>,
    counts: HashMap<Vec<u8>, u64>,
    direct: HashMap<Vec<u8>, u64>,
    bytes: u64,
    mesh_s: f64,
    direct_s: f64,
}

async fn count(client: &Client, inputs: &[PathBuf], scratch: &Path, json: bool) -> anyhow::Result<Counted> {
    let texts: Vec<String> = inputs.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let builtin = DraftProgram::Builtin;
    let mut draft = JobDraft::map_reduce(texts, builtin(Builtin::Wordcount), builtin(Builtin::Sum));
    draft.name = Some("demo word count".to_owned());
    if let sinew_crdt_state::manifest::DraftWork::MapReduce(round) = &mut draft.work {
        round.combine = Some(builtin(Builtin::Sum));
        round.split = Split::Bytes(CHUNK);
    }
    let began = Instant::now();
    let job = client.submit(draft, |_, _, _| {}).await?.to_string();
    show_watch(json, &format!("\njob {job} accepted: it survives the loss of any one node from here on"));
    show_watch_of(client, &job, json).await?;
    let mesh_s = began.elapsed().as_secs_f64();
    let out = scratch.join("out");
    client.act(&Request::Get { job: job.clone(), out: out.clone() }).await?;
    let view = sealed(client, &job).await?;
    let counts = read_counts(&out)?;
    let (inputs, began) = (inputs.to_vec(), Instant::now());
    let (direct, bytes) = tokio::task::spawn_blocking(move || count_directly(&inputs)).await??;
    let direct_s = began.elapsed().as_secs_f64();
    Ok(Counted { view: view.0, timeline: view.1, counts, direct, bytes, mesh_s, direct_s })
}

/// The job's last view: once it is sealed, or after a moment without.
async fn sealed(client: &Client, job: &str) -> anyhow::Result<(JobView, Vec<Event>)> {
    let deadline = Instant::now() + std::time::Duration::from_secs(3);
    loop {
        let (view, timeline) = client.job(job).await?;
        if view.status == sinew_crdt_state::state::Status::Sealed || Instant::now() >= deadline {
            return Ok((view, timeline));
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn report(options: &DemoOptions, mesh: &LocalMesh, done: &Counted) -> anyhow::Result<u8> {
    let equal = done.counts == done.direct;
    let mut top: Vec<(&Vec<u8>, &u64)> = done.counts.iter().collect();
    top.sort_by_key(|(word, count)| (std::cmp::Reverse(**count), (*word).clone()));
    let total: u64 = done.counts.values().sum();
    if options.json {
        let words: Vec<_> = top.iter().take(TOP).map(|(w, c)| (String::from_utf8_lossy(w), **c)).collect();
        println!(
            "{}",
            json!({
                "job": done.view, "timeline": done.timeline, "top": words, "words": total, "distinct": done.counts.len(),
                "input_bytes": done.bytes, "mesh_s": done.mesh_s, "direct_s": done.direct_s, "equal": equal,
            })
        );
        return Ok(u8::from(!equal));
    }
    println!("\ntop words:");
    for (word, count) in top.iter().take(TOP) {
        println!("  {count:>9}  {}", String::from_utf8_lossy(word));
    }
    println!("\nwhere each chunk was mapped:");
    for (i, node) in mesh.nodes.iter().enumerate() {
        println!("  node {i}  {}  chunks {}", node.id.short(), chunks_of(&done.view.placements, 0, node.id));
        println!("                      partitions {}", chunks_of(&done.view.placements, 1, node.id));
    }
    print_timeline(&done.timeline);
    println!("\nproof: {} words, {} different, in {} bytes of input", total, done.counts.len(), done.bytes);
    println!("  by the mesh         {:.2} s (taking inputs in, copies and fsyncs included)", done.mesh_s);
    println!("  directly, 1 process {:.2} s", done.direct_s);
    println!("  the counts are {}", if equal { "equal" } else { "DIFFERENT" });
    Ok(u8::from(!equal))
}

fn print_timeline(timeline: &[Event]) {
    println!("\ntimeline:");
    let start = timeline.first().map_or(0, |e| e.at_ms);
    let skipped = timeline.len().saturating_sub(TIMELINE);
    for (i, event) in timeline.iter().enumerate() {
        if skipped > 0 && i == TIMELINE / 2 {
            println!("  ... {skipped} more ...");
        }
        if i < TIMELINE / 2 || i >= TIMELINE / 2 + skipped {
            let at = event.at_ms.saturating_sub(start);
            println!("  +{at:>6} ms  {:<7} {}  {}", event.what, event.author.short(), event.detail);
        }
    }
}

/// Task numbers as people write them: `0-3, 7`.
fn chunks_of(placements: &[PlacementView], phase: u8, node: NodeId) -> String {
    let mine = placements.iter().filter(|p| p.phase == phase && p.node == node);
    let runs: Vec<String> = mine
        .map(|p| if p.len == 1 { p.start.to_string() } else { format!("{}-{}", p.start, p.start + p.len - 1) })
        .collect();
    if runs.is_empty() { "none".to_owned() } else { runs.join(", ") }
}

fn read_counts(out: &Path) -> anyhow::Result<HashMap<Vec<u8>, u64>> {
    let mut counts = HashMap::new();
    for entry in std::fs::read_dir(out)? {
        let mut reader = BufReader::new(File::open(entry?.path())?);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let tab = text.iter().position(|b| *b == b'\t');
            let (word, count) = text.split_at(tab.ok_or_else(|| anyhow::anyhow!("a result line without a tab"))?);
            let count: u64 = std::str::from_utf8(&count[1..])?.parse()?;
            anyhow::ensure!(counts.insert(word.to_vec(), count).is_none(), "a word in two partitions");
            line.clear();
        }
    }
    Ok(counts)
}

/// The same count without a mesh, written independently of the built-in: words are runs of ASCII letters and digits and of
/// bytes beyond ASCII, in lower case.
fn count_directly(inputs: &[PathBuf]) -> anyhow::Result<(HashMap<Vec<u8>, u64>, u64)> {
    let mut counts: HashMap<Vec<u8>, u64> = HashMap::new();
    let mut bytes = 0;
    for file in crate::exec::walk::walk(inputs)?.files {
        let mut content = Vec::new();
        File::open(&file.path)?.read_to_end(&mut content)?;
        bytes += content.len() as u64;
        content.make_ascii_lowercase();
        for word in content.split(|b| b.is_ascii() && !b.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => drop(counts.insert(word.to_vec(), 1)),
            }
        }
    }
    Ok((counts, bytes))
}

fn absolute(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    paths.iter().map(|p| Ok(std::path::absolute(p)?)).collect()
}

/// The texts at hand: the repository when run from one, the system's licences and documentation; made up if there are few.
fn texts(scratch: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut roots: Vec<PathBuf> = Vec::new();
    // Cargo says where the source is that it runs.
    roots.extend(std::env::var_os("CARGO_MANIFEST_DIR").and_then(|d| PathBuf::from(d).parent().map(Path::to_owned)));
    roots.extend(["/usr/share/common-licenses", "/usr/share/doc"].map(PathBuf::from));
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for root in roots.iter().filter(|r| r.is_dir()) {
        let visible = |e: &walkdir::DirEntry| {
            let name = e.file_name().to_string_lossy();
            e.depth() == 0 || !(name.starts_with('.') || name == "target" || name == "node_modules")
        };
        for entry in walkdir::WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(visible).flatten() {
            let size = entry.metadata().map(|m| m.len()).unwrap_or(0);
            if entry.file_type().is_file() && (1..=FILE_MAX).contains(&size) && is_text(entry.path()) {
                found.push((size, entry.into_path()));
            }
        }
    }
    // The longest texts: chunks worth sending around.
    found.sort_by_key(|(size, path)| (std::cmp::Reverse(*size), path.clone()));
    found.truncate(FILES_MAX);
    let mut total = 0;
    let mut found: Vec<PathBuf> = found
        .into_iter()
        .take_while(|(size, _)| {
            total += size;
            total <= TEXTS_MAX
        })
        .map(|(_, path)| path)
        .collect();
    if total < TEXTS_MIN {
        found.push(made_up(scratch)?);
    }
    Ok(found)
}

fn is_text(path: &Path) -> bool {
    let mut beginning = [0; 4096];
    let read = File::open(path).and_then(|mut f| f.read(&mut beginning));
    read.is_ok_and(|n| {
        n > 0
            && !beginning[..n].contains(&0)
            && std::str::from_utf8(&beginning[..n]).map_or_else(|e| e.error_len().is_none(), |_| true)
    })
}

/// A text of 4 MB from a few dozen words, the same every time.
fn made_up(scratch: &Path) -> anyhow::Result<PathBuf> {
    use std::io::Write;
    const WORDS: [&str; 32] = [
        "every",
        "node",
        "runs",
        "the",
        "same",
        "daemon",
        "and",
        "any",
        "of",
        "them",
        "can",
        "be",
        "brain",
        "a",
        "job",
        "is",
        "advertised",
        "bid",
        "on",
        "claimed",
        "through",
        "ledger",
        "losing",
        "one",
        "loses",
        "nothing",
        "blob",
        "moves",
        "by",
        "its",
        "hash",
        "steward",
    ];
    let path = scratch.join("text");
    let mut out = std::io::BufWriter::new(File::create(&path)?);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for i in 0..800_000u32 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = WORDS[(state >> 59) as usize];
        write!(out, "{word}{}", if i % 12 == 11 { "\n" } else { " " })?;
    }
    out.flush()?;
    Ok(path)
}
