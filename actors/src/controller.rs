//! The controller: knows the agents, gives them their identity, and turns their facts into the labeler's snapshot.
//!
//! Role: answers `Sync`. Input: Hello, Facts and Heartbeat of agents. Output: replies; a new [`Snapshot`] at most every
//! [`Config::publish_interval`] while facts change. Bound: [`CALLS_MAX`] calls in the mailbox, each of one gRPC message at most; what is kept
//! of an agent is bounded in [`facts`], the number of agents by [`Config::agents_max`]. On failure of the disk the call fails and the agent
//! comes again. Facts are on disk before they are answered, so names survive a restart.
//!
//! Leaves out: sockets (`node`), which node an agent belongs to, and what it is to run with (`groups`).

mod agents;
mod facts;
mod greeter;
mod persist;
#[cfg(test)]
mod tests;
mod view;

use std::{sync::Arc, time::Duration};

use metaflow_wire as wire;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, rpc::CallResult};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use tracing::{error, info};

use crate::{
    dictionary::{self, Dictionary},
    disk::{self, Disk},
    labeler::{Published, Snapshot},
};
pub use agents::{AgentSummary, Introduction, Refusal};
use agents::{Agents, Greeting};
use greeter::Greeter;

/// Calls that wait or are served at a time: bounds the mailbox.
const CALLS_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the VPC that all agents of this node are in.
    pub vpc: String,
    pub node_version: String,
    pub agents_max: usize,
    pub publish_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vpc: "default".to_owned(),
            node_version: env!("CARGO_PKG_VERSION").to_owned(),
            agents_max: 100_000,
            publish_interval: Duration::from_millis(100),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the controller does not take the agent: {0}")]
    Refused(#[from] Refusal),
    #[error("the controller cannot keep facts")]
    Disk(#[from] disk::Error),
    #[error("the controller cannot name what an agent runs")]
    Dictionary(#[from] dictionary::Error),
    #[error("the controller could not take the agents that came at this time")]
    Together(#[source] Arc<Error>),
    #[error("the controller stopped")]
    Stopped,
}

/// Answer to Hello: who the agent is.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    pub welcome: wire::Welcome,
}

/// The id of an agent that says Hello; a new one where it has none. Blocks for the disk when it is new.
pub fn identify(dictionary: &Dictionary, introduction: Introduction) -> Result<u32, Error> {
    let found = Greeting::find_all(dictionary, vec![introduction])?.pop();
    Ok(found.ok_or(Error::Stopped)??.agent_id)
}

/// What became of an agent's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactsReply {
    Kept,
    /// Versions are missing: the agent must send all (`ResendFacts`).
    Resend,
}

type Reply<T> = RpcReplyPort<Result<T, Error>>;

/// Messages of the actor.
enum Msg {
    Hello(Vec<Result<Greeting, Refusal>>, Reply<Vec<Result<Admission, Refusal>>>),
    Facts(u32, Box<wire::Facts>, Reply<FactsReply>),
    Heartbeat(u32, wire::Heartbeat, Reply<()>),
    /// One that nobody waits for.
    Beat(u32, wire::Heartbeat, OwnedSemaphorePermit),
    /// Agents behind this one, by id.
    List(u32, Reply<Vec<AgentSummary>>),
    Publish,
}

/// Calls the controller; clones call the same.
#[derive(Clone)]
pub struct Controller {
    actor: ActorRef<Msg>,
    calls: Arc<Semaphore>,
    greeter: Greeter,
    snapshot: Published,
}

impl Controller {
    /// Loads what the disk knows of agents, publishes it, and starts. The handle ends when the actor has stopped.
    pub async fn start(
        config: Config,
        disk: Disk,
        dictionary: Dictionary,
    ) -> Result<(Self, JoinHandle<()>), Error> {
        let snapshot = Published::default();
        let arguments = (config, disk, dictionary.clone(), Arc::clone(&snapshot));
        let core = spawn_blocking(move || Core::open(arguments.0, arguments.1, arguments.2, arguments.3))
            .await
            .map_err(|_| Error::Stopped)??;
        let (actor, handle) =
            Actor::spawn(None, ControllerActor, Box::new(core)).await.map_err(|_| Error::Stopped)?;
        let greeter = Greeter::start(dictionary, actor.clone());
        Ok((Self { actor, calls: Arc::new(Semaphore::new(CALLS_MAX)), greeter, snapshot }, handle))
    }

    /// What the labeler reads.
    pub fn snapshot(&self) -> Published {
        Arc::clone(&self.snapshot)
    }

    pub async fn hello(&self, introduction: impl Into<Introduction>) -> Result<Admission, Error> {
        self.greeter.hello(introduction.into()).await
    }

    pub async fn facts(&self, agent_id: u32, facts: wire::Facts) -> Result<FactsReply, Error> {
        self.call(|reply| Msg::Facts(agent_id, Box::new(facts), reply)).await
    }

    /// Notes that the agent lives, and how it is.
    pub async fn heartbeat(&self, agent_id: u32, heartbeat: wire::Heartbeat) -> Result<(), Error> {
        self.call(|reply| Msg::Heartbeat(agent_id, heartbeat, reply)).await
    }

    /// The same without waiting: false when the controller is busy with others. A node that could not answer heartbeats at such a time would
    /// lose its agents, and have still more to do.
    pub fn try_heartbeat(&self, agent_id: u32, heartbeat: &wire::Heartbeat) -> bool {
        let Ok(call) = Arc::clone(&self.calls).try_acquire_owned() else { return false };
        self.actor.cast(Msg::Beat(agent_id, heartbeat.clone(), call)).is_ok()
    }

    /// Every agent that is known, by id.
    pub async fn agents(&self) -> Result<Vec<AgentSummary>, Error> {
        let mut agents: Vec<AgentSummary> = Vec::new();
        loop {
            let after = agents.last().map_or(0, |agent| agent.agent_id);
            let page = self.call(|reply| Msg::List(after, reply)).await?;
            if page.is_empty() {
                return Ok(agents);
            }
            agents.extend(page);
        }
    }

    /// Stops after the call that is being served.
    pub fn stop(&self) {
        self.actor.stop(None);
    }

    async fn call<T: Send + 'static>(&self, message: impl FnOnce(Reply<T>) -> Msg) -> Result<T, Error> {
        let _call = self.calls.acquire().await.map_err(|_| Error::Stopped)?;
        match self.actor.call(message, None).await {
            Ok(CallResult::Success(reply)) => reply,
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(Error::Stopped),
        }
    }
}

/// Everything the actor holds; its methods that touch the disk run on threads for blocking work.
struct Core {
    config: Config,
    disk: Disk,
    dictionary: Dictionary,
    snapshot: Published,
    agents: Agents,
    vpc_id: u32,
    published: Instant,
    publishing_took: Duration,
}

impl Core {
    fn open(config: Config, disk: Disk, dictionary: Dictionary, snapshot: Published) -> Result<Self, Error> {
        let vpc_id = dictionary.id(metaflow_schema::enums::Kind::Vpc, &config.vpc)?;
        let agents = persist::load(&disk, config.agents_max)?;
        let mut core = Self {
            config,
            disk,
            dictionary,
            snapshot,
            agents,
            vpc_id,
            published: Instant::now(),
            publishing_took: Duration::ZERO,
        };
        core.publish()?;
        info!(agents = core.agents.len(), "agents are known from before");
        Ok(core)
    }

    /// Takes agents that came together, with one write.
    fn hello(
        &mut self,
        greetings: Vec<Result<Greeting, Refusal>>,
        now: Instant,
    ) -> Result<Vec<Result<Admission, Refusal>>, Error> {
        let mut changes = disk::Changes::default();
        let mut answers = Vec::with_capacity(greetings.len());
        for greeting in greetings {
            answers.push(match greeting {
                Ok(greeting) => self.admit(greeting, now, &mut changes)?,
                Err(refusal) => Err(refusal),
            });
        }
        if let Err(error) = self.disk.write(changes, disk::Durability::Written) {
            // What memory has more than the disk comes with the next Hello of the agent, which is told to come again.
            return Err(error.into());
        }
        Ok(answers)
    }

    fn admit(
        &mut self,
        greeting: Greeting,
        now: Instant,
        changes: &mut disk::Changes,
    ) -> Result<Result<Admission, Refusal>, Error> {
        let agent_id = greeting.agent_id;
        let (spoken, agent_id_unknown) = (greeting.hello.protocol_version, greeting.is_stranger);
        let forgotten = match self.agents.make_room(agent_id, self.config.agents_max, now) {
            Ok(forgotten) => forgotten,
            Err(refusal) => return Ok(Err(refusal)),
        };
        persist::greeted(&self.disk, &greeting, forgotten, changes)?;
        self.agents.greet(greeting, now);
        let welcome = wire::Welcome {
            // The agent's own, since it may know no later one.
            protocol_version: spoken,
            agent_id,
            vpc_id: self.vpc_id,
            // Which nodes an agent belongs to is not known here.
            servers: Vec::new(),
            node_version: self.config.node_version.clone(),
            // Nor what the cluster's secret is.
            agent_id_proof: Vec::new(),
            agent_id_unknown,
        };
        Ok(Ok(Admission { welcome }))
    }

    fn facts(&mut self, agent_id: u32, facts: wire::Facts, now: Instant) -> Result<FactsReply, Error> {
        let Some(known) = self.agents.facts_of(agent_id, now) else { return Ok(FactsReply::Resend) };
        let Ok(edits) = known.apply(facts) else { return Ok(FactsReply::Resend) };
        let changes = persist::edited(agent_id, known, &edits);
        if let Err(error) = self.disk.write(changes, disk::Durability::Written) {
            // Memory is ahead of the disk now: only all facts make them equal again.
            known.expect_all();
            return Err(error.into());
        }
        self.agents.note_change(agent_id);
        Ok(FactsReply::Kept)
    }

    /// Rebuilds the views of agents that changed and swaps the snapshot.
    fn publish(&mut self) -> Result<(), Error> {
        self.published = Instant::now();
        let changed = self.agents.take_changed();
        let mut views = Vec::with_capacity(changed.len());
        for agent_id in &changed {
            match self.agents.view(*agent_id, self.vpc_id, &self.dictionary) {
                Ok(view) => views.extend(view.map(|view| (*agent_id, Arc::new(view)))),
                Err(error) => {
                    // Tried again with the next publication.
                    changed.iter().for_each(|agent_id| self.agents.note_change(*agent_id));
                    return Err(error.into());
                }
            }
        }
        let removed = changed.iter().filter(|agent_id| !self.agents.contains(**agent_id)).copied();
        let next: Snapshot = self.snapshot.load().with(views).without(removed);
        self.snapshot.store(Arc::new(next));
        self.publishing_took = self.published.elapsed();
        Ok(())
    }
}

struct ControllerActor;

/// The core, and whether a publication is on its way. The core is away only while a thread works with it.
struct State {
    core: Option<Box<Core>>,
    is_publishing: bool,
}

#[ractor::async_trait]
impl Actor for ControllerActor {
    type Msg = Msg;
    type State = State;
    type Arguments = Box<Core>;

    async fn pre_start(&self, _myself: ActorRef<Msg>, core: Box<Core>) -> Result<State, ActorProcessingErr> {
        Ok(State { core: Some(core), is_publishing: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        match message {
            Msg::Hello(hello, reply) => {
                answer(reply, state.blocking(move |core| core.hello(hello, now)).await?);
                state.schedule(&myself)?;
            }
            Msg::Facts(agent_id, facts, reply) => {
                answer(reply, state.blocking(move |core| core.facts(agent_id, *facts, now)).await?);
                state.schedule(&myself)?;
            }
            Msg::Heartbeat(agent_id, heartbeat, reply) => {
                state.core()?.agents.heartbeat(agent_id, heartbeat, now);
                answer(reply, Ok(()));
            }
            Msg::Beat(agent_id, heartbeat, _call) => {
                state.core()?.agents.heartbeat(agent_id, heartbeat, now);
            }
            Msg::List(after, reply) => answer(reply, Ok(state.core()?.agents.list(after, now))),
            Msg::Publish => {
                state.is_publishing = false;
                if let Err(failure) = state.blocking(Core::publish).await? {
                    error!(error = &failure as &dyn std::error::Error, "names of agents wait for the disk");
                    state.schedule(&myself)?;
                }
            }
        }
        Ok(())
    }
}

impl State {
    fn core(&mut self) -> Result<&mut Core, ActorProcessingErr> {
        self.core.as_deref_mut().ok_or_else(|| "the controller's state was lost in a defect".into())
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, ActorProcessingErr> {
        let mut core = self.core.take().ok_or("the controller's state was lost in a defect")?;
        let (core, result) = spawn_blocking(move || {
            let result = work(&mut core);
            (core, result)
        })
        .await?;
        self.core = Some(core);
        Ok(result)
    }

    /// Publishes changes one interval after the last time, at once if that is over; with very many agents a snapshot takes a while, and the
    /// interval grows so that most of the time is left for other work.
    fn schedule(&mut self, myself: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        let is_publishing = self.is_publishing;
        let core = self.core()?;
        if is_publishing || !core.agents.has_changes() {
            return Ok(());
        }
        let interval = core.config.publish_interval.max(core.publishing_took * 10);
        let wait = interval.saturating_sub(core.published.elapsed());
        self.is_publishing = true;
        myself.send_after(wait, || Msg::Publish);
        Ok(())
    }
}

/// Who asked may be gone: then nobody needs the answer.
fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    reply.send(result).ok();
}
