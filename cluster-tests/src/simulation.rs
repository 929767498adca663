//! The cluster under a seeded simulation: one thread, one clock, every fault a number drawn from the seed.
//!
//! It drives the code that nodes and agents run (placement, dictionary, ingester, log, labeler, writer; spool, session, choice of servers)
//! on disks in memory and a model of the store. Every node may see any set of live nodes at any moment; messages are late or lost,
//! connections break, processes die, are stopped in the middle of a step or an insert, come back with an old disk or over and over again;
//! answers of the store are lost after the insert was done, clocks are set. Agents go from node to node, and take along what the node
//! before still holds. Checked all the time and at the end: [`check`]. The same seed is the same run.
//!
//! Leaves out: gossip itself (its result is drawn), sockets, and the engine.

mod agent;
mod calls;
mod check;
mod faults;
mod names;
mod node;
mod random;
mod store;
mod streams;
mod trace;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
};

use metaflow_actors::{
    dictionary::NodeId,
    placement::{self, Placement},
};
use metaflow_wire::LearnRequest;

use agent::Agent;
use faults::Fault;
use names::Net;
use node::{Place, Running};
pub(crate) use random::Random;
use store::{Call, Office, Store, lock};
use streams::Connection;
use trace::Trace;

/// What is taken out of the system on purpose, to see that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Batches that may be stored are taken for new.
    NoLookUp,
    /// Batches are acknowledged before they are on the disk.
    AckBeforeSync,
    /// A node gives out ids above those that it finds in the store, without a claim.
    NoClaimOfIds,
    /// Inserts of what another node may have are not fenced.
    NoFence,
    /// The id that a node hears first stays the canonical one.
    FirstIdStays,
    /// Rows are stored before the names of their ids.
    RowsBeforeNames,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub mutation: Option<Mutation>,
    /// Prints every step.
    pub trace: bool,
}

/// A run that kept every invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub steps: u64,
    /// Of all steps: the same seed gives the same.
    pub hash: u64,
    pub batches: u64,
    pub aliases: u64,
}

/// A run that did not.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
    /// The last steps.
    pub steps: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, what, steps } = self;
        write!(f, "{steps}\nseed {seed}: {what}")
    }
}

/// Faults happen until then.
const CHAOS_MS: u64 = 25_000;
/// From the end of faults to the end.
const SETTLE_MS: u64 = 70_000;
/// Within this every agent is served again.
const SERVED_WITHIN_MS: u64 = 10_000;
/// Nodes compare names at this pace, half of the real one: a round costs the simulation as much as everything else in this time.
const ROUND_MS: u64 = 2_000;
const AGENTS: usize = 4;
/// Who is stopped: nodes by their places, agents from this on, the store.
const STOPPED_AGENTS: usize = 1_000;
const STOPPED_STORE: usize = usize::MAX;
const ZONES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug)]
enum Event {
    Fault,
    Mend(Fault),
    Heal,
    /// The cluster is seen as it is.
    SeeAll,
    Served,
    Settled,
    SharedId,
    Rest,
    /// A node that flaps dies, and comes back at once.
    Flap(usize),
    View(usize),
    Produce(usize),
    Flush(usize),
    Try(usize, u64),
    GiveUp(usize, u64),
    Tick(usize),
    Up(u64),
    Down(u64),
    Logged(usize, u64),
    Label(usize, u64),
    Round(usize, u64),
    Wake(usize),
    Come(Call),
    Perform(Call),
    Answer(Call, Result<store::Answer, metaflow_actors::store::Error>),
    Learn(usize, LearnRequest),
    Start(usize),
}

struct World {
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    numbered: u64,
    random: Random,
    options: Options,
    trace: Trace,
    office: Arc<Office>,
    net: Arc<Mutex<Net>>,
    store: Store,
    store_is_down: bool,
    store_is_slow: bool,
    /// How far its clock is from the truth.
    store_clock_ms: i64,
    nodes: Vec<Place>,
    /// Agents and the store, as far as they are stopped.
    stopped: BTreeSet<usize>,
    /// What came for who is stopped.
    deferred: BTreeMap<usize, VecDeque<Event>>,
    agents: Vec<Agent>,
    connections: BTreeMap<u64, Connection>,
    /// Pairs of agent and node that do not reach each other.
    agent_cuts: BTreeSet<(usize, usize)>,
    lives: u64,
    is_healed: bool,
    is_settled: bool,
    /// There are no faults at all.
    is_quiet: bool,
    /// Agents lose their disks, instead of nodes: if both did, there would be nobody left who has a batch.
    agents_are_lost: bool,
    /// By agent: when it was first served by a node of its list after the faults.
    served: Vec<Option<u64>>,
    /// Welcomes of all agents when a quiet cluster had come to rest.
    welcomes: u64,
    wal_bytes_max: u64,
    violation: Option<String>,
}

/// Runs one seed. The folder is for the spools.
pub fn run(seed: u64, options: Options) -> Result<Report, Failure> {
    let folder = tempfile::Builder::new().prefix("simulate").tempdir_in(fast_folder());
    let folder = folder.expect("a temporary folder can be made");
    let mut world = World::new(seed, options, folder.path().to_owned());
    let ended = world.run();
    let (steps, net, office) =
        (world.trace.tail(), Arc::downgrade(&world.net), Arc::downgrade(&world.office));
    drop(world);
    // Thousands of seeds run in one process. Nodes hold the office, the net holds their dictionaries.
    let left = net.strong_count() + office.strong_count();
    let ended = ended.and_then(|report| {
        if left == 0 { Ok(report) } else { Err("the run is over and stays in memory".to_owned()) }
    });
    ended.map_err(|what| Failure { seed, what, steps })
}

/// Where syncs cost nothing, if there is such a place: what a crash would lose is lost by the simulation.
fn fast_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

impl World {
    fn run(&mut self) -> Result<Report, String> {
        while let Some(((at, _), event)) = self.events.pop_first() {
            if at > CHAOS_MS + SETTLE_MS || self.is_settled {
                break;
            }
            self.now = at;
            self.office.set(at);
            self.handle(event);
            if let Some(what) = self.violation.take().or_else(|| self.store.violation.take()) {
                return Err(what);
            }
        }
        self.check_end()?;
        Ok(self.report())
    }

    fn new(seed: u64, options: Options, folder: PathBuf) -> Self {
        let mut random = Random::new(seed);
        let office = Office::new(Random::new(random.next()));
        let net = Net::new(Random::new(random.next()), Arc::clone(&office), options.mutation);
        let nodes = 3 + random.index(3);
        // One in eight is about a second node with the id of the first, one in eight about nothing at all.
        let kind = seed % 8;
        let places = (0..nodes + usize::from(kind == 3)).map(|at| Place {
            node_id: node::node_id(if at == nodes { 0 } else { at }),
            zone: ZONES[at % ZONES.len()],
            disk: Default::default(),
            backup: None,
            life: 0,
            starting: None,
            running: None,
            is_paused: false,
            is_silent: false,
            may_reach_store: true,
            is_gone: at == nodes,
        });
        let places: Vec<_> = places.collect();
        let agents: Vec<Agent> = (0..AGENTS)
            .map(|at| {
                let folder = folder.join(format!("agent-{at}"));
                let servers = (0..2).map(|next| address((at + next) % places.len())).collect();
                Agent::new(at, folder, servers)
            })
            .collect();
        let mut world = Self {
            now: 0,
            events: BTreeMap::new(),
            numbered: 0,
            options,
            trace: Trace::new(options.trace),
            office,
            net,
            store: Store::default(),
            store_is_down: false,
            store_is_slow: false,
            store_clock_ms: 0,
            nodes: places,
            stopped: BTreeSet::new(),
            deferred: BTreeMap::new(),
            agents,
            connections: BTreeMap::new(),
            agent_cuts: BTreeSet::new(),
            lives: 0,
            is_healed: false,
            is_settled: false,
            is_quiet: kind == 7,
            agents_are_lost: kind % 2 == 1,
            served: vec![None; AGENTS],
            welcomes: 0,
            wal_bytes_max: if random.percent(30) { 40_000 } else { 4 << 20 },
            violation: None,
            random,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            let at = self.random.below(300);
            self.at(at, Event::Start(node));
            self.at(at + 400, Event::View(node));
        }
        for agent in 0..self.agents.len() {
            let at = 500 + self.random.below(500);
            self.at(at, Event::Try(agent, 0));
            self.at(at, Event::Tick(agent));
            self.at(at, Event::Produce(agent));
        }
        if self.is_quiet {
            [1_500, 3_000, 7_000].into_iter().for_each(|at| self.at(at, Event::SeeAll));
            self.at(15_000, Event::Rest);
        } else {
            self.at(3_000, Event::Fault);
        }
        self.at(CHAOS_MS, Event::Heal);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.numbered += 1;
        self.events.insert((at.max(self.now), self.numbered), event);
    }

    fn after(&mut self, pause: u64, event: Event) {
        self.at(self.now + pause, event);
    }

    fn soon(&mut self, first: u64, last: u64, event: Event) {
        let pause = self.random.between(first, last);
        self.after(pause, event);
    }

    fn step(&mut self, what: &'static str, about: [u64; 3]) {
        self.trace.step(self.now, what, about);
    }

    fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn handle(&mut self, event: Event) {
        if let Some(node) = self.stopped(&event) {
            self.deferred.entry(node).or_default().push_back(event);
            return;
        }
        match event {
            Event::Fault => self.fault(),
            Event::Mend(fault) => self.mend(fault),
            Event::Heal => self.heal(),
            Event::SeeAll => self.see_all(),
            Event::Served => self.check_served(),
            Event::Settled => self.look_whether_settled(),
            Event::Rest => self.welcomes = self.all_welcomes(),
            Event::Flap(node) => self.flap(node),
            Event::SharedId => self.look_at_shared_id(),
            Event::View(node) => self.view(node),
            Event::Produce(agent) => self.produce(agent),
            Event::Flush(agent) => self.agents[agent].flush(),
            Event::Try(agent, number) => self.try_server(agent, number),
            Event::GiveUp(agent, number) => self.give_up(agent, number),
            Event::Tick(agent) => self.tick(agent),
            Event::Up(connection) => self.up(connection),
            Event::Down(connection) => self.down(connection),
            Event::Logged(node, life) => self.logged(node, life),
            Event::Label(node, life) => self.label(node, life),
            Event::Round(node, life) => self.round(node, life),
            Event::Wake(node) => self.work(node),
            Event::Come(call) => self.come(call),
            Event::Perform(call) => self.perform(&call),
            Event::Answer(call, answer) => {
                call.answer(answer);
                self.work(call.node);
            }
            Event::Learn(node, request) => lock(&self.net).learn(node, request),
            Event::Start(node) => self.start(node),
        }
    }

    /// Who would handle an event and is stopped now.
    fn stopped(&self, event: &Event) -> Option<usize> {
        let (node, agent) = match event {
            Event::View(node)
            | Event::Logged(node, _)
            | Event::Label(node, _)
            | Event::Round(node, _)
            | Event::Wake(node)
            | Event::Learn(node, _) => (*node, None),
            Event::Answer(call, _) => (call.node, None),
            Event::Come(_) | Event::Perform(_) if self.stopped.contains(&STOPPED_STORE) => {
                return Some(STOPPED_STORE);
            }
            Event::Come(call) | Event::Perform(call) if call.is_slow => (call.node, None),
            Event::Up(connection) => (self.connections.get(connection)?.node, None),
            Event::Down(connection) => (0, Some(self.connections.get(connection)?.agent)),
            Event::Produce(agent)
            | Event::Flush(agent)
            | Event::Tick(agent)
            | Event::Try(agent, _)
            | Event::GiveUp(agent, _) => (0, Some(*agent)),
            _ => return None,
        };
        match agent {
            Some(agent) => Some(STOPPED_AGENTS + agent).filter(|at| self.stopped.contains(at)),
            None => self.nodes[node].is_paused.then_some(node),
        }
    }

    fn start(&mut self, node: usize) {
        let place = &mut self.nodes[node];
        if place.is_up() || place.is_gone {
            return;
        }
        self.lives += 1;
        (place.life, place.is_silent) = (self.lives, false);
        let client = store::Client {
            node,
            node_id: place.node_id,
            life: self.lives,
            office: Arc::clone(&self.office),
        };
        let starting = node::start(
            client,
            &place.disk,
            Arc::clone(&self.net),
            self.wal_bytes_max,
            self.options.mutation,
        );
        place.starting = Some(starting);
        let about = [node as u64, self.lives, 0];
        self.step("node starts", about);
        self.work(node);
    }

    /// Lets a node do what it can now.
    fn work(&mut self, node: usize) {
        if self.nodes[node].is_paused {
            return;
        }
        if let Some(starting) = &mut self.nodes[node].starting
            && let Some(running) = node::poll(starting)
        {
            self.nodes[node].starting = None;
            self.started(node, running);
        }
        if let Some(running) = &mut self.nodes[node].running {
            if let Err(what) = running.write() {
                self.fail(what);
            }
            self.log_and_label(node);
            self.tell_agents(node);
            self.tell_news(node);
        }
        for (woken, at) in self.office.take_wakes() {
            self.at(at, Event::Wake(woken));
        }
        for call in self.office.take_calls() {
            self.send(call);
        }
    }

    fn started(&mut self, node: usize, running: Running) {
        let place = &mut self.nodes[node];
        let member = names::Member {
            node_id: place.node_id,
            dictionary: running.dictionary.clone(),
            placement: None,
            nodes: Vec::new(),
            met: BTreeSet::new(),
            is_paused: false,
        };
        place.running = Some(running);
        let life = place.life;
        lock(&self.net).members.insert(node, member);
        self.step("node runs", [node as u64, life, 0]);
        self.view(node);
        self.soon(200, 1_200, Event::Round(node, life));
        if self.has_second_node() {
            // Gossip shows it by and by.
            self.soon(3_000, 9_000, Event::SharedId);
        }
    }

    fn log_and_label(&mut self, node: usize) {
        let life = self.nodes[node].life;
        let is_early = self.options.mutation == Some(Mutation::AckBeforeSync);
        let Some(running) = &mut self.nodes[node].running else { return };
        if running.group() {
            if is_early {
                running.acknowledge_early();
            }
            // A slow disk, where it shows what an early word is worth.
            self.soon(1, if is_early { 1_500 } else { 15 }, Event::Logged(node, life));
        }
        let Some(running) = &mut self.nodes[node].running else { return };
        if !running.is_labelling && running.has_unlabelled() {
            running.is_labelling = true;
            self.soon(0, 5, Event::Label(node, life));
        }
    }

    fn running(&mut self, node: usize, life: u64) -> Option<&mut Running> {
        let place = &mut self.nodes[node];
        if place.life == life { place.running.as_mut() } else { None }
    }

    fn logged(&mut self, node: usize, life: u64) {
        let is_told = self.options.mutation == Some(Mutation::AckBeforeSync);
        let Some(running) = self.running(node, life) else { return };
        let is_written = running.log(is_told);
        self.step("log", [node as u64, u64::from(is_written), 0]);
        if !is_written {
            self.after(500, Event::Logged(node, life));
        }
        self.work(node);
    }

    fn label(&mut self, node: usize, life: u64) {
        let Some(running) = self.running(node, life) else { return };
        let labelled = running.label();
        if matches!(labelled, Ok(false)) {
            self.after(1_000, Event::Label(node, life));
        } else {
            running.is_labelling = false;
        }
        self.step("label", [node as u64, u64::from(labelled == Ok(true)), 0]);
        if let Err(what) = labelled {
            self.fail(what);
        }
        let late = std::mem::take(&mut lock(&self.net).late);
        for (at, request) in late {
            self.step("late question", [node as u64, at as u64, 0]);
            let member = lock(&self.net).members.get(&at).map(|member| member.dictionary.clone());
            if let Some(dictionary) = member {
                // Nobody waits for the answer.
                dictionary.name(&request).ok();
            }
        }
        self.work(node);
    }

    /// The node compares names with one of the others, as it does each second.
    fn round(&mut self, node: usize, life: u64) {
        if self.running(node, life).is_none() {
            return;
        }
        let others = lock(&self.net).members.get(&node).map_or_else(Vec::new, |member| {
            member.nodes.iter().copied().filter(|other| *other != member.node_id).collect::<Vec<NodeId>>()
        });
        if !others.is_empty() {
            let with = others[(self.now / ROUND_MS) as usize % others.len()];
            self.step("compare names", [node as u64, with.get().into(), 0]);
            lock(&self.net).compare(node, with);
        }
        self.after(ROUND_MS, Event::Round(node, life));
        self.work(node);
    }

    fn tell_news(&mut self, node: usize) {
        let net = lock(&self.net);
        let Some(member) = net.members.get(&node).cloned() else { return };
        drop(net);
        let Some(placement) = &member.placement else { return };
        let others: Vec<NodeId> =
            member.nodes.iter().copied().filter(|other| *other != member.node_id).collect();
        for (to, requests) in member.dictionary.take_news(&others, |partition| placement.owners(partition)) {
            for request in requests {
                let Some(at) = lock(&self.net).reach(node, to) else { continue };
                self.soon(1, 60, Event::Learn(at, request.clone()));
                if self.random.percent(5) {
                    self.soon(1, 3_000, Event::Learn(at, request));
                }
            }
        }
    }

    fn produce(&mut self, agent: usize) {
        // The last batches come some time before the end, or they could not be stored by then.
        if self.now > CHAOS_MS + SERVED_WITHIN_MS {
            return;
        }
        let second = 3_600_000 + self.now / 1_000;
        self.agents[agent].produce(&mut self.random, second);
        self.soon(5, 200, Event::Flush(agent));
        self.soon(100, 1_200, Event::Produce(agent));
    }

    fn report(&self) -> Report {
        let aliases = self.nodes.iter().filter_map(|place| place.running.as_ref());
        Report {
            steps: self.trace.steps(),
            hash: self.trace.hash(),
            batches: self.agents.iter().map(|agent| agent.ledger.len() as u64).sum(),
            aliases: aliases
                .flat_map(|running| running.dictionary.stats())
                .map(|stats| stats.aliases)
                .max()
                .unwrap_or(0),
        }
    }
}

/// As agents and nodes call a node.
fn address(node: usize) -> String {
    format!("node-{node}:20035")
}

/// Placement is a function: what was computed once serves all seeds, and now and then it is computed again from another order.
fn place(view: &placement::View) -> Arc<Placement> {
    static KNOWN: OnceLock<Mutex<BTreeMap<Vec<placement::Member>, Arc<Placement>>>> = OnceLock::new();
    let mut members = view.members.clone();
    members.sort();
    let mut known = lock(KNOWN.get_or_init(Mutex::default));
    if let Some(known) = known.get(&members) {
        return Arc::clone(known);
    }
    let placed = Arc::new(Placement::new(&placement::View { members: members.clone() }));
    known.insert(members, Arc::clone(&placed));
    placed
}
