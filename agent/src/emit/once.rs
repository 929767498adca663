//! Each request counts once in the metrics of a host, wherever it was seen.
//!
//! A host may see one request in its packets, in the process that asks and in the process that serves. The log has all of them, for they tell
//! different things; the metrics take it where it was seen best: at the serving process, else at the asking one, else in packets. Since the
//! views of one request do not come at the same time, lesser ones wait for a moment whether a better one comes. It is decided by connection:
//! what a process's conversation is understood of is not counted from packets.

use std::collections::VecDeque;
use std::net::SocketAddr;

use metaflow_schema::enums::ObservationPoint;
use rustc_hash::FxHashMap;

use super::metrics::{ApplicationKey, ApplicationValue};
use crate::flow::Ends;

/// How long a lesser view waits. Packets come up to 50 ms after the fact, events of processes up to 10 ms.
const WAIT_US: u64 = 300_000;
/// A connection's best view is remembered for so long.
const KEPT_US: u64 = 60_000_000;
const PURGE_EVERY_US: u64 = 5_000_000;
/// Connections that are remembered, and counts that wait; beyond it a request may count twice.
const CONNECTIONS_MAX: usize = 100_000;
const WAITING_MAX: usize = 100_000;

/// Both ends, whichever is the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Connection {
    low: SocketAddr,
    high: SocketAddr,
    ip_protocol: u8,
}

impl Connection {
    fn new(ends: &Ends) -> Self {
        let client = SocketAddr::new(ends.client_ip, ends.client_port);
        let server = SocketAddr::new(ends.server_ip, ends.server_port);
        Self { low: client.min(server), high: client.max(server), ip_protocol: ends.ip_protocol }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum View {
    Packets,
    ClientProcess,
    ServerProcess,
}

impl View {
    fn new(point: ObservationPoint) -> Self {
        match point {
            ObservationPoint::ServerProcess => Self::ServerProcess,
            ObservationPoint::ClientProcess => Self::ClientProcess,
            ObservationPoint::Rest
            | ObservationPoint::Client
            | ObservationPoint::Server
            | ObservationPoint::Local => Self::Packets,
        }
    }
}

/// What a request adds to an interval.
#[derive(Debug)]
pub(super) struct Count {
    pub second: u32,
    pub key: ApplicationKey,
    pub value: ApplicationValue,
}

#[derive(Debug)]
struct Waiting {
    due: u64,
    connection: Connection,
    view: View,
    count: Count,
}

#[derive(Debug, Default)]
pub(super) struct Once {
    best: FxHashMap<Connection, (View, u64)>,
    waiting: VecDeque<Waiting>,
    purged: u64,
    /// A process's view came at least once: before that nothing waits.
    is_active: bool,
}

impl Once {
    /// Gives the count back if it is to be made at once.
    pub(super) fn admit(
        &mut self,
        point: ObservationPoint,
        ends: &Ends,
        now: u64,
        count: Count,
    ) -> Option<Count> {
        let view = View::new(point);
        if view == View::Packets && !self.is_active {
            return Some(count);
        }
        let connection = Connection::new(ends);
        if view > View::Packets {
            self.is_active = true;
            let is_known = self.best.contains_key(&connection);
            if is_known || self.best.len() < CONNECTIONS_MAX {
                let best = self.best.entry(connection).or_insert((view, now));
                *best = (best.0.max(view), now);
            }
        }
        if view == View::ServerProcess || self.waiting.len() >= WAITING_MAX {
            return Some(count);
        }
        self.waiting.push_back(Waiting { due: now.saturating_add(WAIT_US), connection, view, count });
        None
    }

    /// Counts that have waited long enough and are the best view of their connection.
    pub(super) fn due(&mut self, now: u64, mut each: impl FnMut(Count)) {
        while let Some(waiting) = self.waiting.front().filter(|waiting| waiting.due <= now) {
            let is_best = self.best.get(&waiting.connection).is_none_or(|(best, _)| *best <= waiting.view);
            if let Some(waiting) = self.waiting.pop_front().filter(|_| is_best) {
                each(waiting.count);
            }
        }
        if now >= self.purged.saturating_add(PURGE_EVERY_US) {
            self.purged = now;
            self.best.retain(|_, (_, used)| now.saturating_sub(*used) < KEPT_US);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
