//! What is known of each batch: on its way to the log, in the log, or in the store. Pure decisions, no IO.

use std::collections::HashMap;

use super::Reply;
use crate::{
    rows::BatchId,
    wal::{Committed, Left},
};

/// Streams that wait for the same batch: the one that brought it and those that sent it again. The oldest goes first: its stream is
/// probably broken.
const REPLIES_MAX: usize = 4;

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
}

pub(super) struct Ledger {
    in_flight: HashMap<BatchId, InFlight>,
    committed: Committed,
}

impl Ledger {
    /// Starts with what a previous run left in the log.
    pub(super) fn new(committed: Committed, left: &[Left]) -> Self {
        let in_flight = left
            .iter()
            .map(|entry| (entry.key.id(), InFlight { entry: *entry, logged: true, replies: Vec::new() }))
            .collect();
        Self { in_flight, committed }
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

    pub(super) fn accept(&mut self, entry: Left, reply: Reply) {
        self.in_flight.insert(entry.key.id(), InFlight { entry, logged: false, replies: vec![reply] });
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
