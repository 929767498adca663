//! The agents that a node knows: who they are, when they were last heard, what they said of their hosts.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use metaflow_schema::enums::Kind;
use metaflow_wire as wire;
use tokio::time::Instant;

use super::{facts::Facts, view};
use crate::{
    dictionary::{self, Dictionary, Entry, OTHER},
    labeler::{AgentView, HostTags},
};

/// An agent that was silent for so long may be forgotten when room is needed.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
/// Longest text of a Hello that is kept.
const TEXT_BYTES_MAX: usize = 256;
/// Reasons of loss that are kept of a heartbeat.
const LOSSES_MAX: usize = 64;
/// Keys that wait for a restart, and labels, that are kept of an agent.
const PENDING_MAX: usize = 16;
const LABELS_MAX: usize = 16;
/// Agents that are listed at a time: about a third of a millisecond.
const LIST_MAX: usize = 256;

/// Why an agent is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "protocol version {0} is not supported, this release speaks {oldest} to {newest}: update nodes before agents, and by one \
         release at a time",
        oldest = wire::PROTOCOL_VERSION_OLDEST,
        newest = wire::PROTOCOL_VERSION
    )]
    Version(u32),
    #[error("the machine id must have 1 to {TEXT_BYTES_MAX} bytes")]
    MachineId,
    #[error("{0} agents are known, which is the limit")]
    Full(usize),
}

/// A Hello, and whether its sender was given the id that is in it. Who does not know says no.
#[derive(Debug, Clone, PartialEq)]
pub struct Introduction {
    pub hello: wire::Hello,
    pub is_proven: bool,
}

impl From<wire::Hello> for Introduction {
    fn from(hello: wire::Hello) -> Self {
        Self { hello, is_proven: false }
    }
}

/// A Hello with the ids of what it names.
#[derive(Debug)]
pub(super) struct Greeting {
    pub agent_id: u32,
    pub host_id: u32,
    /// The id in the Hello names no agent that is known.
    pub is_stranger: bool,
    pub hello: wire::Hello,
}

impl Greeting {
    /// Names all that came together, with one question to each owner of new names; answers each of them. Blocks.
    pub(super) fn find_all(
        dictionary: &Dictionary,
        introductions: Vec<Introduction>,
    ) -> Result<Vec<Result<Self, Refusal>>, dictionary::Error> {
        let is_proven: Vec<bool> = introductions.iter().map(|introduction| introduction.is_proven).collect();
        let hellos: Vec<_> =
            introductions.into_iter().map(|introduction| checked(introduction.hello)).collect();
        let proven = hellos.iter().zip(is_proven).filter(|(_, is_proven)| *is_proven);
        learn_ids(dictionary, proven.filter_map(|(hello, _)| hello.as_ref().ok()))?;
        let known = known_ids(dictionary, hellos.iter().flatten())?;
        let hosts = hellos.iter().flatten().map(|hello| (Kind::Host, hello.hostname.as_str()));
        // Those that are known already are asked for too, so that places tell who is who; they cost a look into memory.
        let machines = hellos.iter().flatten().zip(&known).map(|(hello, known)| {
            let name = if known.is_some() { "" } else { hello.machine_id.as_str() };
            (Kind::Agent, name)
        });
        let wanted: Vec<(Kind, &str)> = hosts.chain(machines).collect();
        let ids = dictionary.ids(&wanted)?;
        let other = dictionary.lookup(Kind::Agent, OTHER);
        let (hosts, machines) = ids.split_at(known.len());
        let mut named = hosts.iter().zip(machines).zip(&known);
        let greetings = hellos.into_iter().map(|hello| {
            let hello = match hello {
                Ok(hello) => hello,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let Some(((host_id, machine), known)) = named.next() else { return Ok(Err(Refusal::MachineId)) };
            let agent_id = known.unwrap_or(*machine);
            // One id for two agents would mix up their batches.
            if agent_id == 0 || other == Some(agent_id) {
                return Ok(Err(Refusal::Full(1 << 22)));
            }
            let is_stranger = hello.agent_id != 0
                && hello.agent_id != agent_id
                && dictionary.resolve(Kind::Agent, hello.agent_id)?.is_none();
            Ok(Ok(Self { agent_id, host_id: *host_id, is_stranger, hello }))
        });
        greetings.collect()
    }
}

/// Takes what agents were given by other nodes, and can show. Nothing else: an id that got its name by an agent's mere word could be
/// another's, or become another's.
fn learn_ids<'a>(
    dictionary: &Dictionary,
    hellos: impl Iterator<Item = &'a wire::Hello>,
) -> Result<(), dictionary::Error> {
    // An id of this node that it never gave would use up its counter.
    let may_exist = |hello: &&wire::Hello| dictionary.may_exist(Kind::Agent, hello.agent_id);
    let entry =
        |hello: &wire::Hello| Entry { kind: Kind::Agent, id: hello.agent_id, name: hello.machine_id.clone() };
    let told: Vec<Entry> = hellos.filter(may_exist).map(entry).collect();
    if !told.is_empty() {
        dictionary.learn(&told, false)?;
    }
    Ok(())
}

/// The ids that agents have already, where they are known to be theirs.
///
/// Batches are known by the id of their agent, so it must stay, even where the canonical id of the machine is another one.
fn known_ids<'a>(
    dictionary: &Dictionary,
    hellos: impl Iterator<Item = &'a wire::Hello>,
) -> Result<Vec<Option<u32>>, dictionary::Error> {
    hellos
        .map(|hello| {
            if hello.agent_id == 0 {
                return Ok(None);
            }
            let name = dictionary.resolve(Kind::Agent, hello.agent_id)?;
            Ok(name.filter(|name| *name == hello.machine_id).map(|_| hello.agent_id))
        })
        .collect()
}

/// What an operator wants to know of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSummary {
    pub agent_id: u32,
    pub machine_id: String,
    pub host: String,
    pub version: String,
    pub kernel_release: String,
    pub architecture: String,
    pub os: String,
    pub region: String,
    pub zone: String,
    pub labels: BTreeMap<String, String>,
    /// Connections to this node since its start.
    pub connections: u64,
    /// Since the node last heard of it; none when that was before the node's start.
    pub silent_for: Option<Duration>,
    pub config_version: u64,
    /// Keys of its configuration that wait for a restart.
    pub config_pending: Vec<String>,
    pub config_error: String,
    /// What its guard sheds, 0 to 3.
    pub shedding: u32,
    pub last_error: String,
    pub spool_bytes: u64,
    pub memory_bytes: u64,
    pub cpu_percent: u32,
    /// Rows lost on the agent since its start, by reason.
    pub losses: Vec<(String, u64)>,
    pub processes: usize,
    pub listeners: usize,
    pub facts_version: u64,
    /// Facts that exceeded a limit.
    pub facts_refused: u64,
}

#[derive(Debug)]
struct Agent {
    greeting: Greeting,
    facts: Facts,
    heartbeat: wire::Heartbeat,
    heard: Option<Instant>,
    connections: u64,
}

#[derive(Debug, Default)]
pub(super) struct Agents {
    agents: BTreeMap<u32, Agent>,
    /// Agents whose view must be built anew.
    changed: BTreeSet<u32>,
}

impl Agents {
    /// Adds an agent as the disk remembers it.
    pub(super) fn restore(&mut self, greeting: Greeting, facts: Facts) {
        self.changed.insert(greeting.agent_id);
        let agent =
            Agent { facts, heartbeat: wire::Heartbeat::default(), heard: None, connections: 0, greeting };
        self.agents.insert(agent.greeting.agent_id, agent);
    }

    /// Makes room for an agent; answers whom it forgot for it.
    pub(super) fn make_room(
        &mut self,
        agent_id: u32,
        agents_max: usize,
        now: Instant,
    ) -> Result<Option<u32>, Refusal> {
        if self.agents.contains_key(&agent_id) || self.agents.len() < agents_max {
            return Ok(None);
        }
        let oldest = self.agents.values().min_by_key(|agent| agent.heard);
        let is_old = |agent: &&Agent| {
            agent.heard.is_none_or(|heard| now.saturating_duration_since(heard) >= FORGET_AFTER)
        };
        let Some(forgotten) = oldest.filter(is_old).map(|agent| agent.greeting.agent_id) else {
            return Err(Refusal::Full(agents_max));
        };
        self.agents.remove(&forgotten);
        self.changed.insert(forgotten);
        Ok(Some(forgotten))
    }

    pub(super) fn greet(&mut self, greeting: Greeting, now: Instant) {
        let agent_id = greeting.agent_id;
        match self.agents.get_mut(&agent_id) {
            Some(agent) => {
                if agent.greeting.host_id != greeting.host_id {
                    self.changed.insert(agent_id);
                }
                agent.greeting = greeting;
                agent.heard = Some(now);
                agent.connections += 1;
                // A new connection begins with all facts.
                agent.facts.expect_all();
            }
            None => {
                self.restore(greeting, Facts::default());
                if let Some(agent) = self.agents.get_mut(&agent_id) {
                    agent.heard = Some(now);
                    agent.connections = 1;
                }
            }
        }
    }

    pub(super) fn heartbeat(&mut self, agent_id: u32, mut heartbeat: wire::Heartbeat, now: Instant) {
        let Some(agent) = self.agents.get_mut(&agent_id) else { return };
        heartbeat.losses.truncate(LOSSES_MAX);
        heartbeat.losses.retain(|loss| loss.reason.len() <= TEXT_BYTES_MAX);
        heartbeat.config_pending.truncate(PENDING_MAX);
        heartbeat.config_pending.retain(|key| key.len() <= TEXT_BYTES_MAX);
        for text in [&mut heartbeat.config_error, &mut heartbeat.last_error] {
            shorten(text);
        }
        // Told once; it stays the last one.
        if heartbeat.last_error.is_empty() {
            heartbeat.last_error = std::mem::take(&mut agent.heartbeat.last_error);
        }
        agent.heartbeat = heartbeat;
        agent.heard = Some(now);
    }

    /// Facts of an agent that sends some now.
    pub(super) fn facts_of(&mut self, agent_id: u32, now: Instant) -> Option<&mut Facts> {
        let agent = self.agents.get_mut(&agent_id)?;
        agent.heard = Some(now);
        Some(&mut agent.facts)
    }

    pub(super) fn note_change(&mut self, agent_id: u32) {
        self.changed.insert(agent_id);
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    pub(super) fn take_changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn contains(&self, agent_id: u32) -> bool {
        self.agents.contains_key(&agent_id)
    }

    pub(super) fn len(&self) -> usize {
        self.agents.len()
    }

    pub(super) fn view(
        &self,
        agent_id: u32,
        vpc_id: u32,
        dictionary: &Dictionary,
    ) -> Result<Option<AgentView>, dictionary::Error> {
        let Some(agent) = self.agents.get(&agent_id) else { return Ok(None) };
        let host = HostTags { host_id: agent.greeting.host_id, vpc_id };
        view::build(&agent.facts, host, dictionary).map(Some)
    }

    /// The next ones behind an id: a part of them, so that others are not kept waiting.
    pub(super) fn list(&self, after: u32, now: Instant) -> Vec<AgentSummary> {
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        self.agents.range(behind).take(LIST_MAX).map(|(_, agent)| summary(agent, now)).collect()
    }
}

fn summary(agent: &Agent, now: Instant) -> AgentSummary {
    let Agent {
        greeting: Greeting { agent_id, host_id: _, is_stranger: _, hello },
        facts,
        heartbeat,
        heard,
        connections,
    } = agent;
    AgentSummary {
        agent_id: *agent_id,
        machine_id: hello.machine_id.clone(),
        host: hello.hostname.clone(),
        version: hello.agent_version.clone(),
        kernel_release: hello.kernel_release.clone(),
        architecture: hello.architecture.clone(),
        os: hello.os.clone(),
        region: hello.region.clone(),
        zone: hello.zone.clone(),
        labels: hello.labels.clone().into_iter().collect(),
        connections: *connections,
        silent_for: heard.map(|heard| now.saturating_duration_since(heard)),
        config_version: heartbeat.config_version,
        config_pending: heartbeat.config_pending.clone(),
        config_error: heartbeat.config_error.clone(),
        shedding: heartbeat.shedding,
        last_error: heartbeat.last_error.clone(),
        spool_bytes: heartbeat.spool_bytes,
        memory_bytes: heartbeat.memory_bytes,
        cpu_percent: heartbeat.cpu_percent,
        losses: heartbeat.losses.iter().map(|loss| (loss.reason.clone(), loss.rows)).collect(),
        processes: facts.running(),
        listeners: facts.listeners().len(),
        facts_version: facts.version(),
        facts_refused: facts.refused(),
    }
}

fn shorten(text: &mut String) {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

/// A Hello whose texts are safe to keep; a host without a name is called by its machine id.
pub(super) fn checked(mut hello: wire::Hello) -> Result<wire::Hello, Refusal> {
    if !wire::is_spoken(hello.protocol_version) {
        return Err(Refusal::Version(hello.protocol_version));
    }
    if hello.machine_id.is_empty() || hello.machine_id.len() > TEXT_BYTES_MAX {
        return Err(Refusal::MachineId);
    }
    let wire::Hello {
        agent_version, hostname, kernel_release, architecture, os, region, zone, labels, ..
    } = &mut hello;
    let are_sound = |text: &str| text.len() <= TEXT_BYTES_MAX;
    if labels.len() > LABELS_MAX || !labels.iter().all(|(name, value)| are_sound(name) && are_sound(value)) {
        labels.clear();
    }
    for text in [agent_version, hostname, kernel_release, architecture, os, region, zone] {
        if text.len() > TEXT_BYTES_MAX {
            text.clear();
        }
    }
    if hello.hostname.is_empty() {
        hello.hostname.clone_from(&hello.machine_id);
    }
    Ok(hello)
}
