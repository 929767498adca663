//! Plain text without sockets, by hand-made events: one thread with two connections inside TLS.

use std::sync::Arc;

use metaflow_schema::enums::ObservationPoint;

use super::super::{Config, Sockets};
use super::*;
use crate::events::{Event, SocketEnds};
use crate::session::Transport;

const HELLO: &[u8] = &[0x16, 3, 1, 0, 4, 1, 2, 3, 4];
const RECORD: &[u8] = &[0x17, 3, 3, 0, 4, 1, 2, 3, 4];
const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const TASK: Task = Task { pid: 7, thread: 70, coroutine: 0 };
/// The connection that it serves, and one on which it asks.
const SERVED: u64 = 1;
const ASKED: u64 = 2;

struct Host {
    sockets: Sockets,
    now: u64,
    seqs: [u32; 2],
    calls: Vec<Call>,
}

impl Host {
    fn new() -> Self {
        let config = Config { sockets_max: 100, session: Arc::default(), tls: true, trace_base: 0 };
        let mut host =
            Self { sockets: Sockets::new(config), now: 1_000, seqs: [100, 200], calls: Vec::new() };
        for socket in [ASKED, SERVED] {
            host.transfer(socket, Way::In, HELLO);
            host.transfer(socket, Way::Out, HELLO);
        }
        host
    }

    fn transfer(&mut self, socket: u64, way: Way, payload: &[u8]) -> u32 {
        self.now += 1_000;
        let (local, remote) = ("127.0.0.1:443", format!("127.0.0.1:{}", 40_000 + socket));
        let [local, remote] = [local.parse().unwrap(), remote.parse().unwrap()];
        let ends = match socket {
            SERVED => SocketEnds { transport: Transport::Tcp, local, remote },
            _ => SocketEnds { transport: Transport::Tcp, local: remote, remote: local },
        };
        let next = &mut self.seqs[usize::from(way == Way::Out)];
        let tcp_seq = *next;
        *next += payload.len() as u32;
        let data = Data { way, task: TASK, length: payload.len() as u32, payload };
        let event = Event::Transfer { time: self.now, socket, ends, tcp_seq, data };
        self.sockets.event(&event, &mut self.calls);
        tcp_seq
    }

    fn plain(&mut self, session: u64, way: Way, payload: &[u8]) {
        self.plain_of(TASK, session, way, payload);
    }

    fn plain_of(&mut self, task: Task, session: u64, way: Way, payload: &[u8]) {
        self.now += 1_000;
        let data = Data { way, task, length: payload.len() as u32, payload };
        self.sockets.event(&Event::Buffered { time: self.now, session, data }, &mut self.calls);
    }
}

#[test]
fn what_is_received_was_read_before_and_what_is_sent_is_written_after() {
    let mut host = Host::new();
    for round in 0..2 {
        let asked = host.transfer(SERVED, Way::In, RECORD);
        // Tickets, after the end of the handshake, which the request came with.
        host.transfer(SERVED, Way::Out, RECORD);
        host.plain(0xa, Way::In, GET);
        host.plain(0xb, Way::Out, OK);
        // Of a session that is known it is known where it goes; nobody answers on the other connection.
        if round > 0 {
            host.transfer(ASKED, Way::Out, RECORD);
            assert!(host.calls.is_empty());
        }
        let answered = host.transfer(SERVED, Way::Out, RECORD);
        assert_eq!(host.calls.len(), 1);
        let call = host.calls.remove(0);
        assert_eq!((call.point, call.session.response_code), (ObservationPoint::ServerProcess, 200));
        assert_eq!((call.session.req_tcp_seq, call.session.resp_tcp_seq), (asked, answered));
    }
}

#[test]
fn a_session_that_is_known_stays_with_its_socket() {
    let mut host = Host::new();
    for round in 0..2 {
        host.transfer(SERVED, Way::In, RECORD);
        // Its thread reads from another connection before it takes what came on this one.
        if round > 0 {
            host.transfer(ASKED, Way::In, RECORD);
        }
        host.plain(0xa, Way::In, GET);
        host.plain(0xa, Way::Out, OK);
        host.transfer(SERVED, Way::Out, RECORD);
        assert_eq!(host.calls.len(), 1, "in round {round}");
        let call = host.calls.remove(0);
        assert_eq!((call.point, call.session.response_code), (ObservationPoint::ServerProcess, 200));
        assert_eq!(call.facts.ends.server_port, 443);
    }
}

#[test]
fn what_nobody_reads_or_writes_belongs_to_no_socket() {
    let mut host = Host::new();
    // The thread has read nothing.
    host.plain_of(Task { thread: 71, ..TASK }, 0xa, Way::In, GET);
    assert_eq!(host.sockets.counters().unplaced, 1);
    host.plain(0xb, Way::Out, GET);
    host.now += 1_000_000_000;
    host.sockets.tick(host.now, &mut host.calls);
    assert_eq!(host.sockets.counters().unplaced, 2);
    // What was given up is not taken for what is written much later.
    host.transfer(ASKED, Way::Out, RECORD);
    assert!(host.sockets.place_of((7, 0xb)).is_none() && host.calls.is_empty());
}
