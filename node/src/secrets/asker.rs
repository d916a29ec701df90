//! The executing node's side: asks the job's submitter for its secrets, and waits where that node is away. Nothing of what comes
//! is kept anywhere but in memory.

use std::time::{Duration, Instant};

use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Fence;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_scheduler::core::Core;
use sinew_scheduler::io::StartTask;

use super::SecretBytes;
use super::holder::{purpose, values};
use super::seal::open;
use super::wire::{ANSWER_LEN_MAX, Answer, Ask, Refusal, decode_answer, read_message, write_message};
use crate::exec::outcome::Failure;
use crate::exec::stop::StopHandle;
use crate::tasks::TaskHost;

/// A submitter that is away is waited for, before the attempt counts as failed: a restart, or a laptop's way between two networks.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// One question and its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Characters of a refusal that are passed on.
const WORDS_MAX: usize = 200;

type Values = Vec<(String, SecretBytes)>;

/// Why there is no answer yet.
enum NotYet {
    /// It cannot be reached, or does not answer.
    Away(String),
    /// It said no.
    Refused(Refusal),
}

/// The values of the secrets that the task's job names. Blocks, minutes if need be.
///
/// # Errors
/// `E_DENY` when the submitter does not take this node's award, `E_FETCH` when it cannot be reached or has no such secret any more.
pub fn obtain(host: &TaskHost, task: &StartTask, stop: &StopHandle) -> Result<Values, Failure> {
    let submitter = task.spec.submitter;
    if submitter == host.link.mesh().node() {
        let names: Vec<String> = task.spec.secret_names().into_iter().map(str::to_owned).collect();
        return values(&host.means.secrets, &names).map_err(|refusal| refused(submitter, &refusal));
    }
    host.runtime.block_on(stop.unless_stopped(ask_until(host, task, submitter)))
}

/// Asks again and again, until there is an answer or patience is at its end.
async fn ask_until(host: &TaskHost, task: &StartTask, submitter: NodeId) -> Result<Values, Failure> {
    let (began, mut told) = (Instant::now(), false);
    loop {
        let why = match ask(host, task, submitter).await {
            Ok(values) => return Ok(values),
            Err(NotYet::Refused(refusal @ (Refusal::Denied(_) | Refusal::Unknown(_) | Refusal::Broken))) => {
                return Err(refused(submitter, &refusal));
            }
            Err(NotYet::Refused(refusal)) => refusal.to_string(),
            Err(NotYet::Away(why)) => why,
        };
        if !told {
            let job = task.key.lease.job.short();
            tracing::warn!(%job, submitter = %submitter.short(), %why, "waiting for the node that has the job's secrets");
            told = true;
        }
        if began.elapsed() >= PATIENCE {
            let who = submitter.short();
            let message = format!(
                "the job's secrets are on the node {who} that submitted it, and that gave none for {} s ({why}): start its \
                 daemon, or see to its connection",
                PATIENCE.as_secs()
            );
            return Err(Failure::new(ErrorCode::Fetch, message).out_of_reach(Vec::new()));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn refused(submitter: NodeId, refusal: &Refusal) -> Failure {
    let code = if matches!(refusal, Refusal::Denied(_)) { ErrorCode::Deny } else { ErrorCode::Fetch };
    let who = submitter.short();
    Failure::new(code, format!("the node {who}, which submitted the job, gives no secrets: {refusal}"))
}

async fn ask(host: &TaskHost, task: &StartTask, submitter: NodeId) -> Result<Values, NotYet> {
    let away = |why: &dyn std::fmt::Display| NotYet::Away(why.to_string());
    let (job, own) = (task.key.lease.job, host.link.mesh().node());
    let award = host.engine.look(move |core| award_of(core, job, own)).await.map_err(|e| away(&e))?;
    let (fence, award) = award.ok_or(NotYet::Refused(Refusal::Superseded))?;
    let ask = Ask { award, phase: task.key.phase, task: task.key.task };
    let purpose = purpose(job, fence, &ask, own);
    let exchange = async {
        let mut stream = host.link.mesh().open_secret_stream(submitter).await.map_err(|e| away(&e))?;
        write_message(&mut stream, &ask).await.map_err(|e| away(&e))?;
        read_message(&mut stream, ANSWER_LEN_MAX).await.map_err(|e| away(&e))
    };
    let bytes = tokio::time::timeout(ANSWER_MAX, exchange).await.map_err(|_| away(&"it does not answer"))??;
    match decode_answer(&bytes).map_err(|e| away(&e))? {
        Answer::Sealed(sealed) => open(host.means.secrets.identity(), &purpose, &sealed).map_err(|e| away(&e)),
        Answer::Refused(mut refusal) => {
            // Somebody else's words, on their way into this node's log and its report.
            if let Refusal::Denied(text) | Refusal::Unknown(text) = &mut refusal {
                *text = text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
            }
            Err(NotYet::Refused(refusal))
        }
    }
}

/// This node's newest award for a job: a new brain may have renewed the one that the task came under.
fn award_of(core: &Core, job: JobId, own: NodeId) -> Option<(Fence, Envelope)> {
    let live = core.ledger().live(&job)?;
    let mut awards = live.state.awards.iter().rev();
    let (fence, award) = awards.find(|(_, award)| award.node == own && award.revoked.is_none())?;
    Some((*fence, live.facts.get(&award.id)?.clone()))
}
