//! A job's outputs, written below a directory as its tasks left them. Names and trees come from peers: nothing is written
//! outside, and no link is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sinew_blobs::{Format, TREE_LEN_MAX, Tree, write_tree};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::spec::is_safe_relative;
use sinew_scheduler::view::OutputView;

use super::jobs::fetch_output;
use super::server::Replies;
use super::{ApiError, Reply, forgotten, views};
use crate::daemon::Shared;
use crate::exec::outputs::TREE_OUTPUT;

/// What a log is called where an output has its name; once more for as long as that is taken too.
const LOG_SUFFIX: &str = ".log";

/// Writes a job's outputs under `out`.
pub(super) async fn get(shared: &Arc<Shared>, text: &str, out: &Path, replies: &mut Replies) -> Result<(), ApiError> {
    let id = views::find_job(shared, text).await?;
    let (mut view, history) = views::job(shared, id).await?;
    if !view.is_ended() {
        return Err(ApiError::failed(ErrorCode::Invalid, "the job has not ended yet: `sinew wait` for it first"));
    }
    if forgotten::is_forgotten(&view, &history) && forgotten::has_outputs(&view) {
        forgotten::restore(shared, &mut view, &history).await?;
    }
    let single = view.kind == "batch" && view.phases.first().is_some_and(|p| p.tasks == 1);
    std::fs::create_dir_all(out).map_err(|e| not_written(out, &e))?;
    let mut trees = BTreeMap::new();
    for output in &view.outputs {
        if output.output.name == TREE_OUTPUT {
            trees.insert(output.task, read_tree(shared, output).await?);
        }
    }
    for (output, name) in places(&view.outputs, single) {
        let inner = output.output.name.strip_prefix("output/");
        let tree = trees.get(&output.task);
        let executable = inner.is_some_and(|inner| tree.is_some_and(|tree| tree.executables.contains(inner)));
        let size = write_output(shared, output, out, &name, executable).await?;
        replies.send(&Reply::File { path: out.join(name), size }).await?;
    }
    // After the files, which a link among their directories would keep from being written.
    for (task, tree) in &trees {
        let root = out.join(task_dir(*task, single));
        std::fs::create_dir_all(&root).map_err(|e| not_written(&root, &e))?;
        write_tree(&root, tree).map_err(|e| ApiError::failed(ErrorCode::Storage, e.to_string()))?;
        tell(&root, *task, tree, replies).await?;
    }
    Ok(())
}

fn not_written(path: &Path, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::failed(ErrorCode::Storage, format!("cannot write {}: {error}", path.display()))
}

/// What was written besides files, and what was left out when the task ended.
async fn tell(root: &Path, task: u32, tree: &Tree, replies: &mut Replies) -> Result<(), ApiError> {
    for (name, target) in &tree.links {
        replies.send(&Reply::Link { path: root.join(name), target: PathBuf::from(target) }).await?;
    }
    for name in &tree.empty_dirs {
        replies.send(&Reply::Directory { path: root.join(name) }).await?;
    }
    for (name, what) in &tree.left_out {
        let (name, what) = (name.clone(), what.clone());
        replies.send(&Reply::LeftOut { task: Some(task), name, what }).await?;
    }
    Ok(())
}

/// The directory of a task's outputs below the target directory.
fn task_dir(task: u32, single: bool) -> String {
    if single { String::new() } else { format!("task-{task:05}") }
}

/// Where each output goes below the target directory. No two go to one place: a log makes way for an output of its name.
fn places(outputs: &[OutputView], single: bool) -> Vec<(&OutputView, String)> {
    let below = |task, name: &str| {
        let dir = task_dir(task, single);
        if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
    };
    let (mut placed, mut logs) = (Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    for output in outputs {
        let name = match &*output.output.name {
            TREE_OUTPUT => continue,
            "result" => format!("part-{:05}", output.task),
            name => match name.strip_prefix("output/") {
                Some(inner) => below(output.task, inner),
                None => {
                    logs.push((output, below(output.task, name)));
                    continue;
                }
            },
        };
        if is_safe_relative(&name) {
            // Directories on the way are taken too.
            taken.extend(name.match_indices('/').map(|(at, _)| name[..at].to_owned()));
            taken.insert(name.clone());
            placed.push((output, name));
        }
    }
    for (output, mut name) in logs {
        while taken.contains(&name) {
            name.push_str(LOG_SUFFIX);
        }
        if is_safe_relative(&name) {
            taken.insert(name.clone());
            placed.push((output, name));
        }
    }
    placed
}

async fn read_tree(shared: &Shared, output: &OutputView) -> Result<Tree, ApiError> {
    let blob = output.output.blob;
    let malformed = |e: &dyn std::fmt::Display| {
        let (task, node) = (output.task, output.node.short());
        let text =
            format!("what node {node} says of links and modes of task {task} (blob {}) cannot be used: {e}", blob.hash);
        ApiError::failed(ErrorCode::Fetch, text)
    };
    if blob.size > TREE_LEN_MAX {
        return Err(malformed(&format_args!("it has {} bytes, more than {TREE_LEN_MAX}", blob.size)));
    }
    let _guard = shared.store.temp_tag(blob.hash, Format::Raw).await;
    fetch_output(shared, output).await?;
    let bytes = shared.store.read(blob.hash, TREE_LEN_MAX).await.map_err(|e| malformed(&e))?;
    Tree::decode(&bytes).map_err(|e| malformed(&e))
}

async fn write_output(
    shared: &Shared,
    output: &OutputView,
    root: &Path,
    name: &str,
    executable: bool,
) -> Result<u64, ApiError> {
    let blob = output.output.blob;
    let _guard = shared.store.temp_tag(blob.hash, Format::Raw).await;
    if blob.size > 0 {
        fetch_output(shared, output).await?;
    }
    let written = shared.store.export_below(blob.hash, root, name, executable).await;
    written.map_err(|e| not_written(&root.join(name), &e))
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::fact::Output;
    use sinew_crdt_state::ids::{Hash, NodeId};
    use sinew_crdt_state::spec::BlobRef;

    use super::*;

    fn placed(names: &[&str], single: bool) -> Vec<String> {
        let view = |name: &&str| OutputView {
            task: 7,
            output: Output { name: (*name).to_owned(), blob: BlobRef { hash: Hash([1; 32]), size: 1 } },
            node: NodeId([1; 32]),
            copy: None,
        };
        let outputs: Vec<_> = names.iter().map(view).collect();
        places(&outputs, single).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn an_output_and_a_log_never_go_to_one_place() {
        assert_eq!(placed(&["stdout", "output/x", "tree"], true), ["x", "stdout"]);
        assert_eq!(placed(&["stdout", "output/stdout"], true), ["stdout", "stdout.log"]);
        let names = ["stdout", "stderr", "output/stdout/x", "output/stderr", "output/stderr.log"];
        assert_eq!(placed(&names, true), ["stdout/x", "stderr", "stderr.log", "stdout.log", "stderr.log.log"]);
        assert_eq!(placed(&["stdout", "output/stdout"], false), ["task-00007/stdout", "task-00007/stdout.log"]);
        assert_eq!(placed(&["output/../x", "result"], true), ["part-00007"]);
    }
}
