//! Many agents in one process, for what happens when there are very many: each has a connection and streams of its own, sends
//! heartbeats, takes configurations, follows the servers that it is told and finds the next one when its own dies.
//!
//! The bytes are real TCP and gRPC; which server to try and when to move is the agent's own code (`metaflow_agent::sender`). Leaves out
//! what agents send: rows and facts.

pub mod crew;
mod frames;
mod session;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use metaflow_agent::sender::{self, Servers};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use session::Session;

#[derive(Debug, Clone)]
pub struct Config {
    /// Number of the first agent: its identity and its source address are made of it.
    pub first: u32,
    pub agents: u32,
    /// Agents that start in a second.
    pub starts_a_second: u32,
    /// Whether agents open their stream for batches as well, as real ones do.
    pub batches: bool,
    /// All nodes that there may be, in any order; and how agents behave.
    pub sender: sender::Config,
}

impl Config {
    pub fn new(agents: u32, servers: Vec<String>) -> Self {
        let sender = sender::Config::new(servers);
        Self { first: 0, agents, starts_a_second: 5_000, batches: true, sender }
    }
}

/// What agents share.
#[derive(Debug)]
struct Shared {
    config: Config,
    /// Agents that are served, by server.
    places: Vec<(String, AtomicU32)>,
    /// Agents by the version of their configuration; those without one are left out.
    versions: Mutex<BTreeMap<u64, u32>>,
    lost: AtomicU32,
    away: AtomicU32,
    heartbeats: AtomicU64,
    replies: AtomicU64,
    breaks: AtomicU64,
    silences: AtomicU64,
}

impl Shared {
    fn configured(&self, before: u64, now: u64) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = versions.get_mut(&before) {
            *count -= 1;
        }
        *versions.entry(now).or_default() += 1;
        versions.retain(|_, count| *count > 0);
    }
}

/// What a herd is at a moment; sums of several are a larger herd's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Agents that are served, by server.
    pub served: BTreeMap<String, u32>,
    /// Agents by the version of their configuration.
    pub versions: BTreeMap<u64, u32>,
    /// Agents whose node was lost and that no other has welcomed since.
    pub lost: u32,
    /// Of those that are served: by a node that is not on their list.
    pub away: u32,
    pub heartbeats: u64,
    /// Answers to heartbeats.
    pub replies: u64,
    /// Connections that broke or could not be made.
    pub breaks: u64,
    /// Of those, the ones given up because the node said nothing.
    pub silences: u64,
}

impl Count {
    pub fn total(&self) -> u32 {
        self.served.values().sum()
    }

    /// The most loaded of these servers against their mean.
    pub fn spread<'a>(&self, servers: impl IntoIterator<Item = &'a String>) -> f64 {
        let loads: Vec<u32> =
            servers.into_iter().map(|server| self.served.get(server).copied().unwrap_or(0)).collect();
        let sum: u32 = loads.iter().sum();
        let most = loads.iter().max().copied().unwrap_or(0);
        f64::from(most) * loads.len() as f64 / f64::from(sum.max(1))
    }

    pub fn add(&mut self, other: &Self) {
        let Self { served, versions, lost, away, heartbeats, replies, breaks, silences } = other;
        for (server, count) in served {
            *self.served.entry(server.clone()).or_default() += count;
        }
        for (version, count) in versions {
            *self.versions.entry(*version).or_default() += count;
        }
        self.lost += lost;
        self.away += away;
        self.heartbeats += heartbeats;
        self.replies += replies;
        self.breaks += breaks;
        self.silences += silences;
    }
}

/// Agents that run until this is dropped.
pub struct Herd {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Herd {
    pub fn start(config: Config) -> Self {
        let places = config.sender.servers.iter().map(|server| (server.clone(), AtomicU32::new(0))).collect();
        let shared = Arc::new(Shared {
            config,
            places,
            versions: Mutex::default(),
            lost: AtomicU32::new(0),
            away: AtomicU32::new(0),
            heartbeats: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            breaks: AtomicU64::new(0),
            silences: AtomicU64::new(0),
        });
        let Config { first, agents, starts_a_second, ref sender, .. } = shared.config;
        let mut tasks = JoinSet::new();
        for index in 0..agents {
            // Their configurations name the nodes in differing orders.
            let mut servers = sender.servers.clone();
            let turns = (first + index) as usize % servers.len().max(1);
            servers.rotate_left(turns);
            let session = Session {
                index: first + index,
                shared: Arc::clone(&shared),
                servers: Servers::new(servers),
                agent_id: 0,
                proof: Vec::new(),
                config_version: 0,
                is_lost: false,
            };
            let after = Duration::from_secs_f64(f64::from(index) / f64::from(starts_a_second.max(1)));
            tasks.spawn(session.run(after));
        }
        Self { shared, _tasks: tasks }
    }

    pub fn count(&self) -> Count {
        let shared = &self.shared;
        let places = shared.places.iter();
        Count {
            served: places.map(|(server, count)| (server.clone(), count.load(Ordering::Relaxed))).collect(),
            versions: shared.versions.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            lost: shared.lost.load(Ordering::Relaxed),
            away: shared.away.load(Ordering::Relaxed),
            heartbeats: shared.heartbeats.load(Ordering::Relaxed),
            replies: shared.replies.load(Ordering::Relaxed),
            breaks: shared.breaks.load(Ordering::Relaxed),
            silences: shared.silences.load(Ordering::Relaxed),
        }
    }
}
