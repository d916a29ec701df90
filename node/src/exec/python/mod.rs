//! The `python` runner: functions of Python modules, called in warm workers. A worker is an interpreter in a sandbox of its own,
//! the same that programs of the `process` runner have. It takes the calls of one job on one slot, one after another, and ends
//! with the job, with a call that does not end well or leaves something running, or when it has had nothing to do for a while.
//! No worker ever sees two jobs.
//!
//! Entry points: [`PythonRunner`] (which worker a call gets), `call` (one call), `worker` (one worker and what is said to it),
//! `worker.py` (its other side), `interpreter` (what is started).

pub mod bench;
mod call;
mod interpreter;
mod start;
mod worker;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Params, Program, PythonCall, Runners};

use super::allowlist::{Allowlist, Caps};
use super::control::Shared;
use super::outcome::Failure;
use super::process::{Pipe, ProcessRunner, check_env, lacking};
use super::runner::{Execution, Health, Launch, Prepared, Runner, View};
use super::stop::Bound;
pub(in crate::exec) use call::Call;
use call::StartedCall;
pub use interpreter::PythonOptions;
pub(crate) use interpreter::is_name;
use start::Starter;
use worker::Worker;

/// A worker without a call ends after this. Longer than a job's next call takes to come, if there is one.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Calls Python functions.
#[derive(Debug)]
pub struct PythonRunner {
    starter: Arc<Starter>,
    allowlist: Option<Allowlist>,
    known: Arc<Mutex<Known>>,
    workers: Arc<Workers>,
}

/// An interpreter that does not work is looked at again after this: somebody may have installed or mended it.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What is known of the interpreter.
#[derive(Debug)]
struct Known {
    health: Health,
    /// When it is tried out again, unless it works.
    again: Instant,
}

/// A worker that waits for its job's next call.
#[derive(Debug)]
struct Idle {
    worker: Worker,
    since: Instant,
}

/// The workers that have nothing to do, by slot.
#[derive(Debug, Default)]
struct Workers(Mutex<HashMap<u32, Idle>>);

impl Workers {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, slot: u32, worker: Worker) {
        let before = self.lock().insert(slot, Idle { worker, since: Instant::now() });
        // Outside the lock: the end of a worker takes a moment.
        drop(before);
    }

    /// The slot's worker, if it can take this call. Any other that is there ends.
    fn take(&self, launch: &Launch<'_>) -> Option<Worker> {
        let worker = self.lock().remove(&launch.place.slot)?.worker;
        let fits = worker.fit.fits(&launch.place) && worker.env == *launch.env;
        (fits && worker.is_quiet()).then_some(worker)
    }

    fn end(&self, which: impl Fn(u32, &Idle) -> bool) {
        let ended: Vec<_> = self.lock().extract_if(|slot, idle| which(*slot, idle)).collect();
        drop(ended);
    }
}

impl PythonRunner {
    /// A runner whose workers run as `process` runs programs: in the same sandbox, or bare, or not at all. It is not ready
    /// before it has been [tried out](Self::try_out).
    #[must_use]
    pub fn new(options: PythonOptions, process: &ProcessRunner) -> Self {
        let why = process.refusal().unwrap_or("it is being tried out");
        let health = Health::Unavailable(why.to_owned());
        let known = Arc::new(Mutex::new(Known { health, again: Instant::now() + TRY_AGAIN }));
        let allowlist = process.allowlist().cloned();
        let starter = Arc::new(Starter::new(options, process, allowlist.is_none()));
        Self { starter, allowlist, known, workers: Arc::default() }
    }

    /// Starts an interpreter as calls will have it and sees whether it answers. Takes as long as that: a fraction of a second
    /// where it works, some seconds where it does not.
    pub fn try_out(&self) {
        try_out(&self.starter, &self.known);
    }

    /// Tries an interpreter that did not work out again, when it is time for that, on a thread of its own.
    fn try_again(&self) {
        {
            let mut known = lock(&self.known);
            if known.health == Health::Ready || Instant::now() < known.again {
                return;
            }
            known.again = Instant::now() + TRY_AGAIN;
        }
        let (starter, known) = (Arc::clone(&self.starter), Arc::clone(&self.known));
        let tried =
            std::thread::Builder::new().name("sinew-python".to_owned()).spawn(move || try_out(&starter, &known));
        if let Err(error) = tried {
            tracing::debug!(%error, "Python is tried out later");
        }
    }

    /// A new worker. That the node cannot start one concerns the next calls too.
    fn start_worker(&self, launch: &Launch<'_>) -> Result<Worker, Failure> {
        let started = self.starter.start(launch);
        if let Err(why) = &started
            && why.code == ErrorCode::Lost
            && self.starter.trouble().is_none()
        {
            let mut known = lock(&self.known);
            (known.health, known.again) = (Health::Unavailable(why.message.clone()), Instant::now());
        }
        started
    }

    /// A worker that has taken the request.
    fn ask(&self, launch: &Launch<'_>, request: &str, stdin: Option<&Pipe>) -> Result<(Worker, Bound), Failure> {
        let fd = stdin.map(|pipe| pipe.read.as_fd());
        if let Some(worker) = self.workers.take(launch)
            && let bound = worker.bind(launch.stop)?
            && worker.send(request, fd).is_ok()
        {
            return Ok((worker, bound));
        }
        let worker = self.start_worker(launch)?;
        let bound = worker.bind(launch.stop)?;
        worker.send(request, fd).map_err(|e| lacking("a Python worker that listens", &e.into()))?;
        Ok((worker, bound))
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_out(starter: &Starter, known: &Mutex<Known>) {
    if starter.runs_nothing() {
        return;
    }
    let health = match starter.try_out() {
        Ok(version) => {
            tracing::debug!(%version, interpreter = %starter.shown(), "Python functions can be called");
            Health::Ready
        }
        Err(why) => Health::Unavailable(why),
    };
    let mut known = lock(known);
    if let Health::Unavailable(why) = &health
        && known.health != health
    {
        tracing::info!(%why, "no Python functions are called here");
    }
    known.health = health;
}

impl Runner for PythonRunner {
    fn kind(&self) -> Runners {
        Runners::PYTHON
    }

    fn health(&self) -> Health {
        if let Some(why) = self.starter.trouble() {
            return Health::Unavailable(why);
        }
        lock(&self.known).health.clone()
    }

    fn view(&self, _program: &Program) -> View {
        self.starter.view()
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<Prepared, Failure> {
        let call = call_of(launch)?;
        if let Health::Unavailable(why) = self.health() {
            return Err(Failure::new(ErrorCode::Lost, format!("no Python function can be called here: {why}")));
        }
        check_env(launch.env)?;
        let program = self.starter.program()?;
        let caps = match &self.allowlist {
            // The interpreter must be listed, with the calls that are allowed as its one argument.
            Some(list) => list.check(&program, &[program.display().to_string(), call.call.clone()], launch.env)?,
            None => Caps::default(),
        };
        Ok(Prepared { program, caps })
    }

    fn start(&self, launch: &Launch<'_>, _prepared: Prepared) -> Result<Box<dyn Execution>, Failure> {
        let call = call_of(launch)?;
        let request = request(call, launch.fixed_env)?;
        let stdin = launch.feeds_stdin.then(Pipe::new).transpose().map_err(|e| lacking("pipes", &e))?;
        let (worker, bound) = self.ask(launch, &request, stdin.as_ref())?;
        let shared = Arc::new(Shared::new(worker.who(), launch));
        let call = Box::new(Call::new(worker, bound, Arc::clone(&self.workers), launch.place.slot, &call.call));
        Ok(Box::new(StartedCall { call, stdin: stdin.map(|pipe| pipe.write), shared }))
    }

    fn make_way(&self, slot: u32, job: &str, program: &Program) {
        let stays = |idle: &Idle| program.runner() == Runners::PYTHON && idle.worker.fit.job() == job;
        self.workers.end(|of, idle| of == slot && !stays(idle));
    }

    fn end_job(&self, job: &str) {
        self.workers.end(|_, idle| idle.worker.fit.job() == job);
    }

    fn end_idle(&self) {
        self.workers.end(|_, idle| idle.since.elapsed() >= IDLE_MAX);
        self.try_again();
    }
}

fn call_of<'a>(launch: &Launch<'a>) -> Result<&'a PythonCall, Failure> {
    match launch.program {
        Program::Python(call) => Ok(call),
        _ => Err(Failure::new(ErrorCode::Invalid, "the program is no Python function").for_good()),
    }
}

/// What a worker is told of a call. Parameters in JSON go as they are, once they are known to be that: a peer's spec may hold
/// anything, and this is to be one frame.
fn request(call: &PythonCall, variables: &[(&'static str, String)]) -> Result<String, Failure> {
    call.check().map_err(|(problem, mend)| {
        let message = format!("the call `{}` is wrong: {problem}; {mend}", call.call);
        Failure::new(ErrorCode::Invalid, message).for_good()
    })?;
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let (key, params) = match &call.params {
        Params::Json(json) => ("params", Cow::Borrowed(json.as_str())),
        Params::Cbor(bytes) => ("cbor", Cow::Owned(text(&BASE64.encode(bytes)))),
    };
    let mut request = String::with_capacity(256 + params.len());
    // Writing to a string does not fail.
    let _ = write!(request, r#"{{"call":{},"{key}":{params},"env":{{"#, text(&call.call));
    for (i, (name, value)) in variables.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(request, "{comma}{}:{}", text(name), text(value));
    }
    request.push_str("}}");
    Ok(request)
}
