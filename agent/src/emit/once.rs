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
pub(super) enum View {
    /// A response whose request was not seen there: another view has both.
    Half,
    Packets,
    ClientProcess,
    ServerProcess,
}

impl View {
    fn new(point: ObservationPoint, has_request: bool) -> Self {
        match point {
            _ if !has_request => Self::Half,
            ObservationPoint::ServerProcess => Self::ServerProcess,
            ObservationPoint::ClientProcess => Self::ClientProcess,
            ObservationPoint::Rest
            | ObservationPoint::Client
            | ObservationPoint::Server
            | ObservationPoint::Local => Self::Packets,
        }
    }
}

/// Where a request is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// In this view, at once.
    Here,
    /// In this view, unless a better one comes.
    Perhaps(Waits),
    /// In a better view, which is known already.
    Elsewhere,
}

/// A view that waits for a better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waits {
    due: u64,
    connection: Connection,
    view: View,
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
    waits: Waits,
    count: Count,
}

#[derive(Debug, Default)]
pub(super) struct Once {
    best: FxHashMap<Connection, (View, u64)>,
    waiting: VecDeque<Waiting>,
    purged: u64,
    /// Without views of processes nothing needs to wait.
    sees_processes: bool,
}

impl Once {
    pub(super) fn new(sees_processes: bool) -> Self {
        Self { sees_processes, ..Self::default() }
    }

    /// Takes note of a view. A response whose request was not seen there has no request.
    pub(super) fn look(
        &mut self,
        point: ObservationPoint,
        ends: &Ends,
        now: u64,
        has_request: bool,
    ) -> Counts {
        if !self.sees_processes {
            return Counts::Here;
        }
        let view = View::new(point, has_request);
        let connection = Connection::new(ends);
        let remembered = self.best.len();
        match self.best.get_mut(&connection) {
            Some((best, used)) => {
                if view > View::Half {
                    *used = now;
                }
                if *best > view {
                    return Counts::Elsewhere;
                }
                *best = view;
            }
            None if view > View::Half && remembered < CONNECTIONS_MAX => {
                self.best.insert(connection, (view, now));
            }
            None => {}
        }
        if view == View::ServerProcess || self.waiting.len() >= WAITING_MAX {
            return Counts::Here;
        }
        Counts::Perhaps(Waits { due: now.saturating_add(WAIT_US), connection, view })
    }

    /// Keeps a count until it is due.
    pub(super) fn wait(&mut self, waits: Waits, count: Count) {
        self.waiting.push_back(Waiting { waits, count });
    }

    /// Counts that have waited long enough and are the best view of their connection.
    pub(super) fn due(&mut self, now: u64, mut each: impl FnMut(Count)) {
        while let Some(Waits { connection, view, due: _ }) =
            self.waiting.front().map(|waiting| waiting.waits).filter(|waits| waits.due <= now)
        {
            let is_best = self.best.get(&connection).is_none_or(|(best, _)| *best <= view);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use metaflow_schema::enums::L7Protocol;

    use super::*;
    use crate::emit::basis::Place;

    fn ends(client: &str, server: &str) -> Ends {
        let [client, server]: [SocketAddr; 2] = [client, server].map(|end| end.parse().unwrap());
        Ends {
            client_ip: client.ip(),
            server_ip: server.ip(),
            client_port: client.port(),
            server_port: server.port(),
            ip_protocol: 6,
        }
    }

    fn count(point: ObservationPoint, ends: &Ends) -> Count {
        let place = Place {
            client_ip: ends.client_ip,
            server_ip: ends.server_ip,
            server_port: ends.server_port,
            client_pid: 0,
            server_pid: 0,
            ip_protocol: ends.ip_protocol,
            point,
            interface_index: 0,
        };
        let (domain, endpoint) = (Arc::default(), Arc::default());
        let key = ApplicationKey { place, protocol: L7Protocol::Http1, domain, endpoint };
        let mut value = ApplicationValue::default();
        value.request = 1;
        Count { second: 1, key, value }
    }

    /// A view of a whole request; true when it counts at once.
    fn admit(once: &mut Once, point: ObservationPoint, ends: &Ends, now: u64) -> bool {
        match once.look(point, ends, now, true) {
            Counts::Here => true,
            Counts::Perhaps(waits) => {
                once.wait(waits, count(point, ends));
                false
            }
            Counts::Elsewhere => false,
        }
    }

    #[test]
    fn a_process_that_was_seen_only_to_answer_leaves_the_count_to_those_who_saw_both() {
        let ends = ends("127.0.0.1:40000", "127.0.0.1:53");
        let mut once = Once::new(true);
        let Counts::Perhaps(half) = once.look(ObservationPoint::ServerProcess, &ends, 0, false) else {
            panic!()
        };
        once.wait(half, count(ObservationPoint::ServerProcess, &ends));
        assert!(!admit(&mut once, ObservationPoint::Local, &ends, 0));
        let mut counted = Vec::new();
        once.due(WAIT_US, |count| counted.push(count.key.place.point));
        assert_eq!(counted, [ObservationPoint::Local]);
    }

    /// Views of one request, in the order in which they come, 50 ms apart; gives the points at which it is counted.
    fn counted(views: &[ObservationPoint]) -> Vec<ObservationPoint> {
        let ends = ends("127.0.0.1:40000", "127.0.0.1:80");
        let mut once = Once::new(true);
        let mut counted = Vec::new();
        let mut now = 1_000_000;
        for point in views {
            now += 50_000;
            counted.extend(admit(&mut once, *point, &ends, now).then_some(*point));
            once.due(now, |count| counted.push(count.key.place.point));
        }
        once.due(now + WAIT_US, |count| counted.push(count.key.place.point));
        assert!(once.is_empty());
        counted
    }

    #[test]
    fn a_request_counts_where_it_was_seen_best_whichever_view_comes_first() {
        use ObservationPoint::{Client, ClientProcess, Local, Server, ServerProcess};
        let check = |views: &[ObservationPoint], expected: ObservationPoint| {
            assert_eq!(counted(views), [expected], "{views:?}");
        };
        check(&[Local, ServerProcess, ClientProcess], ServerProcess);
        check(&[ServerProcess, ClientProcess, Local], ServerProcess);
        check(&[ClientProcess, Local, ServerProcess], ServerProcess);
        check(&[Client, ClientProcess], ClientProcess);
        check(&[ClientProcess, Client], ClientProcess);
        check(&[Server, ServerProcess], ServerProcess);
        check(&[Local], Local);
    }

    #[test]
    fn connections_are_kept_apart_and_known_from_either_end() {
        let mut once = Once::new(true);
        let mut other_way = ends("127.0.0.1:80", "127.0.0.1:40000");
        let served = ObservationPoint::ServerProcess;
        assert!(admit(&mut once, served, &ends("127.0.0.1:40000", "127.0.0.1:80"), 0));
        let mut counted = Vec::new();
        for port in [40_000, 40_001] {
            other_way.server_port = port;
            assert!(!admit(&mut once, ObservationPoint::Local, &other_way, 0));
        }
        once.due(WAIT_US, |count| counted.push(count.key.place.server_port));
        assert_eq!(counted, [40_001]);
    }

    #[test]
    fn without_views_of_processes_nothing_waits() {
        let ends = ends("10.0.0.1:40000", "10.0.0.2:80");
        let mut once = Once::new(false);
        assert!(admit(&mut once, ObservationPoint::Server, &ends, 0));
        assert!(once.is_empty());
    }
}
