//! The world itself: nodes, the clock, and the loop that hands events to cores and their effects to the models.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::Credential;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Outcome, Statement};
use sinew_crdt_state::identity::{Identity, remember_signatures};
use sinew_crdt_state::ids::{Hash, JobId, MeshId, NodeId};
use sinew_scheduler::Setup;
use sinew_scheduler::core::Core;
use sinew_scheduler::io::{Effect, Input, Note, Request, RequestId, Response, SubmitError, SubmitKey};
use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::Message;

use crate::audit::Watch;
use crate::books::Books;
use crate::exec::Execution;
use crate::history::{Asked, History};
use crate::link::Links;
use crate::node::{Node, NodeSetup};
use crate::overlay::Overlay;
use crate::plan::Plan;
use crate::queue::{Event, Index, Life, Queue};
use crate::report::{Counters, Took};
use crate::roll::{Roll, Ticked};
use crate::trace::Trace;
use crate::units::millis;

/// Unix time at the start: any date does.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;
/// Lines kept for the message of a failed assertion.
const LOG_LEN_MAX: usize = 4_000;
/// A condition that is not met by then never will be.
pub(crate) const PATIENCE: Span = Span::ms(120_000);

/// A mesh of nodes in virtual time.
#[derive(Debug)]
pub struct World {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    pub(crate) roll: Roll,
    pub(crate) queue: Queue,
    pub(crate) links: Links,
    pub(crate) overlay: Overlay,
    pub(crate) counters: Counters,
    pub(crate) executions: Vec<Execution>,
    /// Whether each execution had all its inputs.
    pub(crate) gathered: Vec<bool>,
    pub(crate) books: Books,
    pub(crate) notes: Vec<(Time, Index, Note)>,
    pub(crate) took: Vec<Took>,
    /// Machines that stand still now.
    pub(crate) standing_still: usize,
    /// Times in which machines stood still.
    pub(crate) pauses: Vec<crate::pause::Pause>,
    /// How jobs ended, as first seen, and when.
    pub(crate) outcomes: BTreeMap<JobId, (Time, Outcome)>,
    pub(crate) acknowledged: BTreeMap<JobId, Time>,
    pub(crate) answers: BTreeMap<RequestId, (Time, Response)>,
    pub(crate) history: History,
    names: BTreeMap<String, Index>,
    pub(crate) trace: Trace,
    pub(crate) verbose: bool,
    log: std::collections::VecDeque<(Time, Index, Said)>,
    pub(crate) rng: ChaCha8Rng,
    seed: u64,
    /// The admin who let every node in, and its own certificate.
    founder: (Identity, Credential),
    pub(crate) mesh: MeshId,
    pub(crate) setup: NodeSetup,
    pub(crate) machines: Vec<NodeSetup>,
    request_last: u64,
    pub(crate) watch: Watch,
    pub(crate) heard: Option<Vec<crate::hearing::Heard>>,
    /// Nodes that went down at a write of theirs, until somebody sees to them.
    pub(crate) fell: std::collections::BTreeSet<Index>,
    /// Whose core is at work.
    pub(crate) calling: Option<Index>,
}

impl World {
    /// An empty world in which everything follows from `seed`.
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        remember_signatures();
        let (mesh, admin) = (Identity::from_seed([77; 32]), Identity::from_seed([78; 32]));
        let credential = Credential::found(&mesh, admin.id(), EPOCH_MS, u64::MAX);
        let founder = (admin, credential);
        Self {
            now: Time(1_000_000),
            nodes: Vec::new(),
            roll: Roll::default(),
            queue: Queue::default(),
            links: Links::default(),
            overlay: Overlay::default(),
            counters: Counters::default(),
            executions: Vec::new(),
            gathered: Vec::new(),
            books: Books::default(),
            notes: Vec::new(),
            took: Vec::new(),
            standing_still: 0,
            pauses: Vec::new(),
            outcomes: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            answers: BTreeMap::new(),
            history: History::default(),
            names: BTreeMap::new(),
            trace: Trace::default(),
            verbose: false,
            log: std::collections::VecDeque::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
            founder,
            mesh: MeshId(mesh.id().0),
            setup: NodeSetup::default(),
            machines: Vec::new(),
            request_last: 0,
            watch: Watch::default(),
            heard: None,
            fell: std::collections::BTreeSet::new(),
            calling: None,
        }
    }

    /// What nodes that are made from here on have.
    #[must_use]
    pub const fn with(mut self, setup: NodeSetup) -> Self {
        self.setup = setup;
        self
    }

    /// Logs every message too.
    #[must_use]
    pub const fn verbose(mut self) -> Self {
        self.verbose = true;
        self
    }

    /// Starts these nodes, connected to each other and acquainted.
    #[must_use]
    pub fn nodes<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Vec<&str> = names.into_iter().collect();
        self.links.expected = self.nodes.len() + names.len();
        for name in names {
            let setup = self.machine();
            self.join_as(name, setup);
        }
        self.run_for(millis(1_500));
        self
    }

    /// A node joins, while everything goes on.
    pub fn join_as(&mut self, name: &str, setup: NodeSetup) {
        self.join_with(name, setup, None);
    }

    /// A node joins and dials the nodes that it has met, or those that it would.
    pub(crate) fn join_with(&mut self, name: &str, setup: NodeSetup, met: Option<Vec<Index>>) {
        let known = self.names.insert(name.to_owned(), self.nodes.len());
        assert!(known.is_none(), "{name} is there already");
        let identity = Identity::from_seed(self.rng.random());
        let (admin, own) = &self.founder;
        let credential = own.issue(admin, identity.id(), setup.roles, EPOCH_MS, u64::MAX);
        let node = self.roll.add(identity.id());
        self.nodes.push(Node::new(name, identity, credential, setup));
        self.boot(node);
        for peer in met.unwrap_or_else(|| self.choose_peers(node)) {
            self.links.keep(node, peer);
            self.connect_soon(node, peer, true);
        }
    }

    pub(crate) fn boot(&mut self, node: Index) {
        let seed: [u8; 32] = self.rng.random();
        let now = self.clock(node);
        self.roll.begin_life(node);
        self.note_start_of_aged(node, nonce_of(&seed));
        let n = &mut self.nodes[node];
        let incarnation = n.disk.count_start();
        let setup = Setup {
            identity: n.identity.clone(),
            mesh: self.mesh,
            roles: n.setup.roles,
            incarnation,
            disk: n.disk.id(),
            nonce: nonce_of(&seed),
            seed,
            config: n.config.clone(),
        };
        n.core = Some(Core::new(setup, n.disk.stored(), now));
        n.has_left = false;
        self.links.bans.forget(node);
        n.batch = crate::batch::Batch::default();
        self.input(node, Input::Tick);
    }

    /// Asks a node to take a job and does not wait.
    pub fn submit_later(&mut self, name: &str, plan: &Plan) -> RequestId {
        let job_name = self.books.submit(plan);
        self.submit_named(name, plan, &job_name, None)
    }

    /// Asks a node to take a job under a key, once more if it was asked before, and does not wait. The same key stands for the
    /// same plan.
    pub fn submit_keyed(&mut self, name: &str, plan: &Plan, key: &str) -> RequestId {
        let job_name = format!("{name} {key}");
        self.books.submit_as(&job_name, plan);
        self.submit_named(name, plan, &job_name, Some(key))
    }

    fn submit_named(&mut self, name: &str, plan: &Plan, job_name: &str, key: Option<&str>) -> RequestId {
        let node = self.index(name);
        let inputs = plan.inputs(job_name);
        for blob in &inputs {
            self.nodes[node].disk.import(*blob);
        }
        let mut new = plan.new_job(job_name);
        let own = self.nodes[node].id();
        new.key = key.map(|text| {
            let ended = self.nodes[node].disk.job_of_key(own, text);
            SubmitKey { text: text.to_owned(), ended }
        });
        self.input(node, Input::BlobsCame(inputs.iter().map(|b| b.hash).collect()));
        let asked = Asked::Submit { name: job_name.to_owned(), key: key.map(str::to_owned) };
        self.request(node, Request::Submit(Box::new(new)), asked)
    }

    pub(crate) fn request(&mut self, node: Index, request: Request, asked: Asked) -> RequestId {
        self.request_last += 1;
        let id = RequestId(self.request_last);
        self.note_call(node, id, asked);
        self.input(node, Input::Request { id, request });
        id
    }

    /// Submits a job and waits for the verdict.
    ///
    /// # Errors
    /// What the node answered.
    pub fn try_submit(&mut self, name: &str, plan: &Plan) -> Result<JobId, SubmitError> {
        let id = self.submit_later(name, plan);
        match self.answer(id) {
            Response::Submitted(verdict) => verdict,
            Response::Cancelled(_) | Response::Holders(_) => unreachable!("a submit is answered as one"),
        }
    }

    /// Submits a job that must be taken.
    ///
    /// # Panics
    /// When it is refused.
    pub fn submit(&mut self, name: &str, plan: &Plan) -> JobId {
        self.try_submit(name, plan).expect("the job is taken")
    }

    /// Asks a node to cancel a job and does not wait.
    pub fn cancel_later(&mut self, name: &str, job: JobId) -> RequestId {
        let node = self.index(name);
        self.request(node, Request::Cancel { job, reason: "asked to".to_owned() }, Asked::Cancel { job })
    }

    /// Cancels a job at a node and waits for the verdict.
    ///
    /// # Errors
    /// What the node answered.
    pub fn cancel(&mut self, name: &str, job: JobId) -> Result<(), sinew_scheduler::io::CancelError> {
        let id = self.cancel_later(name, job);
        match self.answer(id) {
            Response::Cancelled(verdict) => verdict,
            Response::Submitted(_) | Response::Holders(_) => unreachable!("a cancel is answered as one"),
        }
    }

    fn answer(&mut self, id: RequestId) -> Response {
        let deadline = self.now + PATIENCE;
        while !self.answers.contains_key(&id) {
            assert!(self.now < deadline && self.step(), "no answer to {id:?}\n{}", self.log_tail());
        }
        self.answers[&id].1.clone()
    }

    /// Handles the next event. `false` when there is none.
    pub fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = at;
        self.counters.events += 1;
        self.trace.add(&at.0.to_le_bytes());
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        let Some(event) = self.unless_frozen(event) else { return };
        match event {
            Event::Frame { from, to, messages } => self.frame_arrived(from, to, messages),
            Event::Tick(life) => match self.roll.ticked(life, self.now) {
                Ticked::Void => {}
                Ticked::Due => self.input(life.node, Input::Tick),
                Ticked::Later(at) => self.queue.push(at, Event::Tick(life)),
            },
            Event::Disk(life) => {
                if self.is_alive(life) {
                    self.disk_synced(life.node);
                }
            }
            Event::Flush(life) => self.flush_due(life),
            Event::TaskGone { life, run } => self.task_gone(life, run),
            Event::Switch { life, run } => self.switch_due(life, run),
            Event::Connect { a, b } => self.try_connect(a, b),
            Event::Closed { life, peer } => self.closed(life, peer),
            Event::Model(event) => self.model(event),
            Event::CutTimeout { a, b, cut } => self.cut_timed_out(a, b, cut),
            Event::TaskEnd { life, .. }
            | Event::Fetched { life, .. }
            | Event::Loaded { life, .. }
            | Event::Answered { life, .. } => {
                self.fetched_due(life, event);
            }
        }
    }

    pub(crate) fn is_alive(&self, life: Life) -> bool {
        self.roll.is_current(life) && self.nodes[life.node].is_up()
    }

    pub(crate) fn schedule_tick(&mut self, node: Index) {
        let n = &self.nodes[node];
        let Some(core) = &n.core else { return };
        // A core that wants to be called at once would stop the clock; for ever, it is caught in `busy`.
        let at = n.clock.when(core.poll_timeout()).max(self.now + Span(1));
        if self.roll.call_at(node, at, self.now) {
            let life = self.roll.life(node);
            self.queue.push(at, Event::Tick(life));
        }
    }

    pub(crate) fn effect(&mut self, node: Index, effect: Effect) {
        match effect {
            Effect::Send { to, class, messages } => {
                if let Some(to) = self.index_of(to) {
                    self.send(node, to, class, messages);
                }
            }
            Effect::Publish { topic, payload } => self.publish_advert_or_load(node, topic, &payload),
            Effect::Persist { ticket, records, urgent } => self.persist(node, ticket, records, urgent),
            Effect::Start(start) => {
                self.start_task(node, start);
            }
            Effect::Stop { run, why } => self.stop_task(node, run, why),
            Effect::Lease { runs, until } => self.lease_moved(node, &runs, until),
            Effect::Drain(run) => self.drain_task(node, run),
            Effect::Left => self.has_left(node),
            // Connections here lead where they lead, or are known to be gone.
            Effect::Reach(_) => {}
            Effect::Fetch { id, job, blobs, providers } => self.start_fetch(node, id, job, blobs, providers),
            Effect::EndJob { job, keep, outcome } => {
                self.nodes[node].disk.end_job(&job, &keep);
                self.note_end(node, job);
                self.watch.sealed.entry(job).or_insert(self.now);
                self.saw_outcome(job, outcome);
            }
            Effect::Forgot { job } => self.nodes[node].disk.forgot(job),
            Effect::Look { id, blobs } => self.look(node, id, blobs),
            Effect::NoteHolders { job, blobs, add, remove } => {
                self.nodes[node].disk.note_holders(job, &blobs, &add, &remove);
            }
            Effect::ListShared { id, nodes, also } => self.list_shared(node, id, &nodes, &also),
            Effect::ReadEntry { job } => self.read_entry(node, job),
            Effect::Load { job, to } => {
                let facts = self.nodes[node].disk.facts(&job);
                let life = self.roll.life(node);
                self.queue.push(self.now + Span::ms(1), Event::Loaded { life, job, to, facts });
            }
            Effect::Answer { id, response } => {
                if let Response::Submitted(Ok(job)) = &response {
                    self.acknowledged.insert(*job, self.now);
                    self.note_set(node, *job);
                }
                self.say(node, format!("answers {id:?}: {response:?}"));
                self.note_answer(node, id, &response);
                self.answers.insert(id, (self.now, response));
            }
            Effect::Learned(_) => {}
            Effect::Changed(job) => {
                let live = self.nodes[node].core.as_ref().and_then(|c| c.ledger().live(&job));
                // A verdict counts once it is sealed: before, its brain may be the only one to have it.
                if let Some(outcome) = live.filter(|l| l.state.seal.is_some()).and_then(|l| l.state.outcome().cloned())
                {
                    self.saw_outcome(job, outcome);
                }
            }
            Effect::Offence { peer, what } => {
                if self.watch.liars.contains(&peer) {
                    self.counters.lies_refused += 1;
                } else {
                    self.counters.offences += 1;
                }
                self.say(node, format!("OFFENCE by {}: {what}", self.name_of_node(peer)));
                if let Some(peer) = self.index_of(peer) {
                    self.ban(node, peer);
                }
            }
            Effect::Note(note) => self.note(node, note),
        }
    }

    fn saw_outcome(&mut self, job: JobId, outcome: Outcome) {
        let at = self.now;
        self.outcomes.entry(job).or_insert((at, outcome));
    }

    fn note(&mut self, node: Index, note: Note) {
        match &note {
            Note::Took { job, term } => {
                self.took.push(Took { at: self.now, node, job: *job, term: *term });
            }
            Note::Lost { lease, .. } => {
                self.counters.lost_leases += 1;
                self.watch.lost.insert(*lease, node);
            }
            Note::Fenced { .. } => self.counters.fenced += 1,
            Note::Overdue { .. } => self.counters.overdue += 1,
            Note::MadeAnew { tasks, .. } => self.counters.made_anew += tasks.len() as u64,
            Note::Stale { .. } => self.counters.stale_results += 1,
            Note::TwoSeals { .. } => self.counters.two_seals += 1,
            Note::Speculated { .. }
            | Note::Back { .. }
            | Note::Peer { .. }
            | Note::OldDisk { .. }
            | Note::SerialTwice { .. } => {}
        }
        self.notes.push((self.now, node, note));
        self.log_line(node, Said::Note(self.notes.len() - 1));
    }

    pub(crate) fn dice(&mut self, sides: u64) -> u64 {
        self.rng.random_range(0..sides.max(1))
    }

    /// A random choice for a scenario, in `0..sides`, from the world's seed.
    pub fn pick(&mut self, sides: usize) -> usize {
        self.rng.random_range(0..sides)
    }

    pub(crate) fn index(&self, name: &str) -> Index {
        self.names.get(name).copied().unwrap_or_else(|| panic!("no node is called {name}"))
    }

    pub(crate) fn index_of(&self, id: NodeId) -> Option<Index> {
        self.roll.index_of(id)
    }

    pub(crate) fn name_of_node(&self, id: NodeId) -> String {
        self.index_of(id).map_or_else(|| id.short(), |node| self.nodes[node].name.clone())
    }

    /// Attempts of all jobs' tasks.
    #[must_use]
    pub const fn executions_of_all(&self) -> usize {
        self.executions.len()
    }

    /// Ledger entries in memory, node by node in order of joining; 0 for nodes that are down.
    #[must_use]
    pub fn entries(&self) -> Vec<usize> {
        self.nodes.iter().map(|n| n.core.as_ref().map_or(0, |c| c.ledger().index().len())).collect()
    }

    /// How often any node that is up looked at a single job.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.nodes.iter().filter_map(|n| n.core.as_ref()).map(Core::looks).sum()
    }

    /// Offers that brains count as not answered, over all nodes.
    #[must_use]
    pub fn offers_out(&self) -> u64 {
        self.nodes.iter().filter_map(|n| n.core.as_ref()).map(|core| core.peers().offers_out()).sum()
    }

    /// Jobs that were acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Jobs whose end some node knows.
    #[must_use]
    pub fn ended_jobs(&self) -> usize {
        self.outcomes.len()
    }

    /// What happened so far, in numbers.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A hash over everything that happened: equal for equal seeds and scenarios.
    #[must_use]
    pub fn trace(&self) -> Hash {
        self.trace.hash()
    }

    /// The virtual time.
    #[must_use]
    pub const fn now(&self) -> Time {
        self.now
    }

    pub(crate) fn say(&mut self, node: Index, what: String) {
        self.log_line(node, Said::Text(what));
    }

    fn log_line(&mut self, node: Index, said: Said) {
        if self.log.len() == LOG_LEN_MAX {
            self.log.pop_front();
        }
        if self.verbose {
            println!("{}", self.line(self.now, node, &said));
        }
        self.log.push_back((self.now, node, said));
    }

    fn line(&self, at: Time, node: Index, said: &Said) -> String {
        let name = self.nodes.get(node).map_or("-", |n| &n.name);
        let what = match said {
            Said::Text(text) => text,
            Said::Note(number) => &format!("{:?}", self.notes[*number].2),
        };
        format!("{:>10.4} {name:>6} {what}", at.0 as f64 / 1e6)
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let lines = self.log.iter().map(|(at, node, said)| self.line(*at, *node, said)).collect::<Vec<_>>().join("\n");
        format!("{lines}\nseed {}", self.seed)
    }
}

/// A line of the log. Nearly all are overwritten before anybody reads them, so they are put into words only then.
#[derive(Debug)]
enum Said {
    Text(String),
    /// By its number in the world's list.
    Note(usize),
}

/// A message in a few words, for the log; facts are decoded.
pub(crate) fn brief(message: &Message) -> String {
    let mut text = match message {
        Message::Facts(facts) => format!("Facts[{}]", facts.iter().map(brief_fact).collect::<Vec<_>>().join(" ")),
        other => cut(format!("{other:?}"), 160),
    };
    text = cut(text, 1_600);
    text
}

fn brief_fact(envelope: &Envelope) -> String {
    let (entry, author) = (envelope.entry, envelope.author);
    match cbor::from_slice::<Statement>(&envelope.payload) {
        Ok(said) => cut(format!("{entry} {author} at {}: {:?}", said.at_ms, said.fact), 240),
        Err(_) => format!("{entry} {author}: no statement"),
    }
}

fn cut(mut text: String, chars: usize) -> String {
    let end = text.char_indices().nth(chars).map_or(text.len(), |(i, _)| i);
    text.truncate(end);
    text
}

/// A start's nonce, from its seed: never 0.
fn nonce_of(seed: &[u8; 32]) -> u64 {
    seed.first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes)).max(1)
}
