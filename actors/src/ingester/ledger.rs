//! What is known of each batch: on its way to the log, in the log, or in the store. Pure decisions, no IO.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{PLACE_BYTES, Reply};
use crate::{
    memory::Permit,
    rows::BatchId,
    wal::{Committed, Left},
};

/// Streams that wait for the same batch: the one that brought it and those that sent it again. The oldest goes first: its stream is
/// probably broken.
const REPLIES_MAX: usize = 4;

/// Refusals that are remembered for who asks what became of a batch; older ones are in the agent's log.
const REFUSALS_MAX: usize = 1_024;

/// Batches that are remembered because another node asked for them: many more than it asks for while what lies in this node's sockets waits
/// to be read.
const ASKED_MAX: usize = 65_536;

/// Where a batch is, as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Never seen here, or so long ago that it is forgotten.
    Unknown,
    /// On its way into the log, since so long.
    Logging(Duration),
    /// In the log, and not yet in the store.
    Logged(Duration),
    /// In the store.
    Committed,
    /// Refused for good.
    Refused(String),
}

/// What to do with a batch that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// New: log it.
    Accept,
    /// New, and the log is full.
    NoRoom,
    /// It is on its way into the log.
    Logging,
    /// It is in the log.
    Logged,
    /// It is in the store.
    Committed,
}

#[derive(Debug)]
struct InFlight {
    entry: Left,
    logged: bool,
    replies: Vec<Reply>,
    /// When it came, or when the node started that found it in its log.
    since: Instant,
    /// Memory for this, as long as it is here.
    place: Permit,
}

pub(super) struct Ledger {
    in_flight: HashMap<BatchId, InFlight>,
    committed: Committed,
    /// The latest refusals, the oldest first.
    refused: VecDeque<(BatchId, String)>,
    /// Batches that another node may have stored, the oldest question first.
    asked: VecDeque<BatchId>,
    asked_for: HashSet<BatchId>,
}

impl Ledger {
    /// Starts with what a previous run left in the log.
    pub(super) fn new(committed: Committed, left: &[Left], now: Instant) -> Self {
        let known = |entry: &Left| InFlight {
            entry: *entry,
            logged: true,
            replies: Vec::new(),
            since: now,
            place: Permit::default(),
        };
        let in_flight = left.iter().map(|entry| (entry.key.id(), known(entry))).collect();
        Self {
            in_flight,
            committed,
            refused: VecDeque::new(),
            asked: VecDeque::new(),
            asked_for: HashSet::new(),
        }
    }

    /// Shares memory out among what is here.
    pub(super) fn place(&mut self, mut places: Permit) {
        for known in self.in_flight.values_mut() {
            known.place = places.split(PLACE_BYTES);
        }
    }

    /// Where a batch is.
    pub(super) fn find(&self, id: BatchId, now: Instant) -> Found {
        if let Some(known) = self.in_flight.get(&id) {
            let age = now.saturating_duration_since(known.since);
            return if known.logged { Found::Logged(age) } else { Found::Logging(age) };
        }
        if self.committed.contains(id) {
            return Found::Committed;
        }
        let refused = self.refused.iter().rfind(|(refused, _)| *refused == id);
        refused.map_or(Found::Unknown, |(_, reason)| Found::Refused(reason.clone()))
    }

    /// Age of the oldest batch that waits for the store; none when none waits.
    pub(super) fn oldest(&self, now: Instant) -> Option<Duration> {
        let since = self.in_flight.values().map(|known| known.since).min()?;
        Some(now.saturating_duration_since(since))
    }

    /// Remembers that a batch was refused, and why.
    pub(super) fn refuse(&mut self, id: BatchId, reason: &str) {
        if self.refused.len() >= REFUSALS_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back((id, reason.to_owned()));
    }

    /// Another node may have stored it.
    pub(super) fn ask_for(&mut self, id: BatchId) {
        if !self.asked_for.insert(id) {
            return;
        }
        self.asked.push_back(id);
        if self.asked.len() > ASKED_MAX
            && let Some(oldest) = self.asked.pop_front()
        {
            self.asked_for.remove(&oldest);
        }
    }

    pub(super) fn was_asked_for(&self, id: BatchId) -> bool {
        self.asked_for.contains(&id)
    }

    pub(super) fn offer(&mut self, id: BatchId, reply: &Reply, has_room: bool) -> Decision {
        if let Some(known) = self.in_flight.get_mut(&id) {
            if !known.replies.iter().any(|other| other.is_same_stream(reply)) {
                if known.replies.len() >= REPLIES_MAX {
                    known.replies.remove(0);
                }
                known.replies.push(reply.clone());
            }
            return if known.logged { Decision::Logged } else { Decision::Logging };
        }
        if self.committed.contains(id) {
            return Decision::Committed;
        }
        if has_room { Decision::Accept } else { Decision::NoRoom }
    }

    pub(super) fn accept(&mut self, entry: Left, place: Permit, reply: Reply, now: Instant) {
        let known = InFlight { entry, logged: false, replies: vec![reply], since: now, place };
        self.in_flight.insert(entry.key.id(), known);
    }

    /// Who is to be told that the batch is in the log.
    pub(super) fn logged(&mut self, id: BatchId) -> Vec<Reply> {
        self.in_flight.get_mut(&id).map_or_else(Vec::new, |known| {
            known.logged = true;
            known.replies.clone()
        })
    }

    /// The batch came to its end: its place in the log, and who is to be told.
    pub(super) fn remove(&mut self, id: BatchId) -> Option<(Left, Vec<Reply>)> {
        self.in_flight.remove(&id).map(|known| (known.entry, known.replies))
    }

    /// The record that says so after a start.
    pub(super) fn commit(&mut self, id: BatchId) -> Option<(Vec<u8>, Vec<u8>)> {
        self.committed.insert(id)
    }
}
