//! Unix sockets, by hand-made events.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use metaflow_schema::enums::ObservationPoint;

use super::super::{Config, Sockets};
use super::*;
use crate::events::{Event, Task};
use crate::session::Transport;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

struct Host {
    sockets: Sockets,
    now: u64,
    calls: Vec<Call>,
}

impl Host {
    fn new(sockets_max: usize) -> Self {
        let config = Config { sockets_max, session: Arc::default(), tls: true, trace_base: 9 };
        Self { sockets: Sockets::new(config), now: 1_000_000, calls: Vec::new() }
    }

    /// A transfer of socket `socket`, which lies at a place and talks to another one; sockets above 100 serve.
    fn transfer(&mut self, socket: u64, [local, remote]: [u64; 2], way: Way, payload: &[u8]) {
        self.now += 1_000;
        let place = |place: u64| SocketAddr::new(Ipv6Addr::from(u128::from(place)).into(), 0);
        let ends = SocketEnds { transport: Transport::Unix, local: place(local), remote: place(remote) };
        let end = UnixEnd { inode: 0, peer_pid: 7, is_client: Some(socket < 100) };
        let task = Task { pid: socket as u32, thread: socket as u32, coroutine: 0 };
        let data = Data { way, task, length: payload.len() as u32, payload };
        let event = Event::UnixTransfer { time: self.now, socket, ends, end, data };
        self.sockets.event(&event, &mut self.calls);
    }

    fn exchange(&mut self, client: u64, server: u64) -> [Call; 2] {
        self.transfer(client, [10, 20], Way::Out, GET);
        self.transfer(server, [20, 10], Way::In, GET);
        self.transfer(server, [20, 10], Way::Out, OK);
        self.transfer(client, [10, 20], Way::In, OK);
        let calls = std::mem::take(&mut self.calls);
        let Ok(calls) = <[Call; 2]>::try_from(calls) else { panic!("two calls") };
        calls
    }

    fn ended(&mut self, socket: u64) {
        self.sockets.event(&Event::UnixEnded { time: self.now, socket }, &mut self.calls);
    }

    fn pass(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        self.sockets.tick(self.now, &mut self.calls);
    }
}

#[test]
fn both_ends_of_a_connection_have_the_same_numbers_and_no_other_has() {
    let mut host = Host::new(100);
    let mut seen = Vec::new();
    // The second connection lies where the first one lay, whose end was not seen.
    for [client, server] in [[1, 101], [2, 102]] {
        for _ in 0..2 {
            let [served, asked] = host.exchange(client, server);
            assert_eq!(
                [served.point, asked.point],
                [ObservationPoint::ServerProcess, ObservationPoint::ClientProcess]
            );
            for call in [&served, &asked] {
                assert_eq!([call.client_pid, call.server_pid], [client as u32, server as u32]);
                assert_eq!((call.facts.ends.ip_protocol, call.facts.ends.server_port), (0, 0));
                let numbers = [call.session.req_tcp_seq, call.session.resp_tcp_seq];
                assert!(numbers.iter().all(|number| *number != 0));
                assert_ne!(numbers[0], numbers[1], "each direction has numbers of its own");
                seen.push(numbers);
            }
        }
        assert_eq!(host.sockets.len(), 2, "what is gone was forgotten");
    }
    assert!(seen.chunks(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    seen.dedup();
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_peer_that_is_not_seen_goes_by_what_the_kernel_says() {
    let mut host = Host::new(100);
    host.sockets.event(&Event::Named { socket: 101, path: b"/run/web.sock" }, &mut host.calls);
    host.transfer(101, [20, 10], Way::In, GET);
    host.transfer(101, [20, 10], Way::Out, OK);
    let call = &host.calls[0];
    assert_eq!([call.client_pid, call.server_pid], [7, 101]);
    assert_eq!(call.session.socket_path, "/run/web.sock");
}

#[test]
fn a_stream_that_ended_is_over_unless_it_goes_on() {
    let mut host = Host::new(100);
    host.transfer(1, [10, 20], Way::Out, GET);
    host.transfer(101, [20, 10], Way::In, GET);
    // The client said that it is done with sending, and waits for the answer.
    host.ended(101);
    host.pass(ENDED_KEPT_NS / 2);
    host.transfer(101, [20, 10], Way::Out, OK);
    host.transfer(1, [10, 20], Way::In, OK);
    assert_eq!(host.calls.len(), 2);
    host.pass(ENDED_KEPT_NS);
    assert_eq!(host.sockets.len(), 2);
    host.ended(1);
    host.pass(ENDED_KEPT_NS);
    assert!(host.sockets.is_empty());
    assert!(host.sockets.unix.known.is_empty() && host.sockets.unix.places.is_empty());
    assert_eq!(host.sockets.take_judgements().len(), 2, "the kernel forgets both");
}

#[test]
fn unix_sockets_take_a_part_of_the_room_and_the_silent_ones_make_way() {
    let mut host = Host::new(4 * PART);
    for socket in 1..=5 {
        host.transfer(socket, [socket, 100 + socket], Way::Out, GET);
    }
    assert_eq!((host.sockets.len(), host.sockets.counters().excess), (4, 1));
    host.now += 2 * IDLE_WHEN_FULL_NS;
    host.transfer(6, [6, 106], Way::Out, GET);
    assert_eq!((host.sockets.len(), host.sockets.counters().excess), (1, 1));
    host.pass(2 * IDLE_NS);
    assert!(host.sockets.is_empty());
}

#[test]
fn paths_are_shown_as_programs_show_them() {
    let check = |path: &[u8], expected: &str, port: u16| {
        let path = text(path);
        assert_eq!((&*path, usual_port(&path)), (expected, port));
    };
    check(b"/var/run/postgresql/.s.PGSQL.5433", "/var/run/postgresql/.s.PGSQL.5433", 5_433);
    check(b"/run/mysqld/mysqld.sock\0", "/run/mysqld/mysqld.sock", 3_306);
    check(b"\0bus\0\0", "@bus", 0);
    check(b"", "", 0);
}
