//! Where the agent goes next, and when: pure, with the time and a random number handed in.
//!
//! Order: the list that a node named, then the configuration's. What is lost or not reached is followed by the next of the list; pauses
//! grow with whole rounds through it, so that one dead server among many costs no more than its own try.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Config;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The agent belongs to another node.
    Moves,
    /// It was welcome, and then the connection broke or was closed.
    Lost,
    NotReached,
    /// It was connected, and no welcome came in time: the server has more to do than it can, and each try makes that worse.
    Late,
}

/// The servers in order of preference, and which one is in use.
#[derive(Debug)]
pub struct Servers {
    configured: Vec<String>,
    pub(super) list: Vec<String>,
    pub(super) at: usize,
    /// So many of the list were named by a node; the order of the configuration's is no reason to move.
    named: usize,
    /// Servers of the list that could not be reached from here: until when each is left alone, and how often it failed.
    avoided: BTreeMap<String, (Instant, u32)>,
    /// Tries without a welcome since the last one.
    failures: u32,
    /// How many of those were late.
    late: u32,
    /// Within which agents return when the node that they are with is lost, see [`Servers::spread`].
    spread: Duration,
}

/// A server that cannot be reached is tried again after this, doubled up to [`AVOID_MAX`]: others may reach it, so they go on
/// telling the agent to go there.
const AVOID_MIN: Duration = Duration::from_secs(10);
const AVOID_MAX: Duration = Duration::from_secs(600);

/// Pause when one server after another is late, doubled up to [`LATE_MAX`]. A few servers that return to a hundred thousand agents must
/// not be kept busy with connections that are given up before their turn comes.
const LATE_MIN: Duration = Duration::from_secs(1);
const LATE_MAX: Duration = Duration::from_secs(30);

/// Most that a node can ask for: who lost a node is served again within seconds.
const SPREAD_MAX: Duration = Duration::from_secs(5);

/// Servers that a node may name.
const SERVERS_MAX: usize = 16;
/// Those and the configured ones, for some lists.
const AVOIDED_SERVERS_MAX: usize = 256;

impl Servers {
    pub fn new(configured: Vec<String>) -> Self {
        Self {
            list: configured.clone(),
            configured,
            at: 0,
            named: 0,
            avoided: BTreeMap::new(),
            failures: 0,
            late: 0,
            spread: Duration::ZERO,
        }
    }

    pub fn current(&self) -> Option<String> {
        self.list.get(self.at).cloned()
    }

    /// Whether the server in use is one that a node named, if any has named some.
    pub fn is_named(&self) -> bool {
        self.named == 0 || self.at < self.named
    }

    /// Takes the list of a node: its order counts, the configured ones stay as the last resort.
    pub fn welcome(&mut self, current: &str, named: &[String]) {
        let mut list: Vec<String> = Vec::new();
        let mut add = |servers: &[String]| {
            for server in servers {
                if !server.is_empty() && !list.contains(server) {
                    list.push(server.clone());
                }
            }
            list.len()
        };
        self.named = add(&named[..named.len().min(SERVERS_MAX)]);
        add(&self.configured);
        // Reached by another address than nodes know: it stays a last resort, too.
        self.at = list.iter().position(|server| server == current).unwrap_or_else(|| {
            list.push(current.to_owned());
            list.len() - 1
        });
        self.list = list;
    }

    /// A node says how many milliseconds its agents shall take to go elsewhere, all together, when it is lost: the more it has, the longer,
    /// so that the others are not run over.
    pub fn spread(&mut self, milliseconds: u32) {
        self.spread = Duration::from_millis(milliseconds.into()).min(SPREAD_MAX);
    }

    /// Chooses the next server; the answer is the pause before it is tried.
    pub fn next(&mut self, ended: Ended, now: Instant, config: &Config, random: u64) -> Duration {
        match ended {
            Ended::Moves => {
                (self.at, self.failures, self.late) = (self.better(now).unwrap_or(0), 0, 0);
                Duration::ZERO
            }
            Ended::Lost => {
                self.fail(now, true);
                (self.failures, self.late) = (0, 0);
                let spread = u64::try_from(self.spread.as_micros()).unwrap_or(u64::MAX).max(1);
                // Other bits than those of the pause.
                let late = Duration::from_micros((random >> 20) % spread);
                late + backoff(0, config.backoff_min, config.backoff_max, random)
            }
            Ended::NotReached | Ended::Late => {
                self.fail(now, false);
                self.failures = self.failures.saturating_add(1);
                if ended == Ended::Late {
                    self.late = self.late.saturating_add(1);
                    // The first may be one that hangs alone: the next is tried at once.
                    if self.late > 1 {
                        return backoff(self.late - 2, LATE_MIN, LATE_MAX, random);
                    }
                }
                let rounds = self.failures / u32::try_from(self.list.len()).unwrap_or(u32::MAX).max(1);
                backoff(rounds, config.backoff_min, config.backoff_max, random)
            }
        }
    }

    /// Whether the agent belongs to another server than the one in use, and may try it.
    pub fn belongs_elsewhere(&self, now: Instant) -> bool {
        self.better(now).is_some()
    }

    /// The server to go to from the one in use: the first of those that a node named. Who is with none of them goes to any, for who serves
    /// it now does so only until it has found one.
    fn better(&self, now: Instant) -> Option<usize> {
        let wanted = if self.at < self.named { self.at.min(1) } else { self.named };
        let is_left_alone = |server: &String| self.avoided.get(server).is_some_and(|(until, _)| now < *until);
        self.list[..wanted].iter().position(|server| !is_left_alone(server))
    }

    /// The one in use failed: the next, and after the last the first again. `was_welcome` says that it had served.
    pub(super) fn fail(&mut self, now: Instant, was_welcome: bool) {
        if let Some(server) = self.list.get(self.at) {
            let times = match self.avoided.get(server) {
                // Tries that fail one after another, as they do while a node is started anew, are one failure.
                Some((until, times)) if !was_welcome => times + u32::from(now >= *until),
                _ => 0,
            };
            let pause = AVOID_MIN.saturating_mul(1 << times.min(16)).min(AVOID_MAX);
            if self.avoided.len() >= AVOIDED_SERVERS_MAX {
                // Who is of no list any more is left alone for the shortest time.
                let first = self
                    .avoided
                    .iter()
                    .min_by_key(|(_, (until, _))| *until)
                    .map(|(server, _)| server.clone());
                first.and_then(|server| self.avoided.remove(&server));
            }
            self.avoided.insert(server.clone(), (now + pause, times));
        }
        self.at = (self.at + 1) % self.list.len().max(1);
    }
}

/// Pause before the next try: doubles from `min` to `max`, and is drawn from its upper half so that agents do not come all at once.
pub(super) fn backoff(failures: u32, min: Duration, max: Duration, random: u64) -> Duration {
    let full = min.saturating_mul(1 << failures.min(16)).min(max);
    let half = full / 2;
    let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(random % spread)
}
