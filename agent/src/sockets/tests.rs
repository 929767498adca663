//! Tests of sockets, by hand-made events.

mod streams;
mod tasks;

use metaflow_schema::enums::ResponseStatus;

use super::*;
use crate::events::Task;

pub(super) const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const PONG: &[u8] = b"+PONG\r\n";
/// Number before the first request's.
const BASE: u64 = 1_000;

/// Sockets, a clock and a short way to make events.
pub(super) struct Host {
    pub(super) sockets: Sockets,
    now: u64,
    calls: Vec<Call>,
    seqs: FxHashMap<(u64, Way), u32>,
    /// Of all events of threads.
    coroutine: u64,
}

fn ends(local: &str, remote: &str) -> SocketEnds {
    SocketEnds { transport: Transport::Tcp, local: local.parse().unwrap(), remote: remote.parse().unwrap() }
}

impl Host {
    pub(super) fn new() -> Self {
        let config = Config { sockets_max: 100, session: Arc::default(), tls: true, trace_base: BASE };
        let mut sockets = Sockets::new(config);
        sockets.set_clock(1_000_000);
        Self { sockets, now: 5_000_000, calls: Vec::new(), seqs: FxHashMap::default(), coroutine: 0 }
    }

    fn event(&mut self, event: Event<'_>) {
        self.now += 1_000_000;
        self.sockets.event(&event, &mut self.calls);
    }

    /// A connection from port `4<n>000` to port `80<n>`: client socket `n`, server socket `n + 100`.
    fn ends(socket: u64) -> SocketEnds {
        let pair = socket % 100;
        let (client, server) = (format!("127.0.0.1:{}", 40_000 + pair), format!("127.0.0.1:{}", 800 + pair));
        if socket < 100 { ends(&client, &server) } else { ends(&server, &client) }
    }

    pub(super) fn open(&mut self, socket: u64) {
        let (time, ends) = (self.now, Self::ends(socket));
        self.event(Event::Opened { time, socket, ends, is_client: socket < 100 });
    }

    pub(super) fn transfer(&mut self, socket: u64, thread: u32, way: Way, payload: &[u8]) {
        let seq = self.seqs.entry((socket, way)).or_insert(7_000);
        let tcp_seq = *seq;
        *seq += payload.len() as u32;
        let (time, ends) = (self.now, Self::ends(socket));
        let task = Task { pid: thread / 10, thread, coroutine: self.coroutine };
        let data = Data { way, task, length: payload.len() as u32, payload };
        self.event(Event::Transfer { time, socket, ends, tcp_seq, data });
    }

    pub(super) fn close(&mut self, socket: u64) {
        let time = self.now;
        self.event(Event::Closed { time, socket });
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Milliseconds pass.
    pub(super) fn tick(&mut self, ms: u64) {
        self.now += ms * 1_000_000;
        self.sockets.tick(self.now, &mut self.calls);
    }

    pub(super) fn plain(&mut self, session: u64, thread: u32, way: Way, entered: u64, payload: &[u8]) {
        let task = Task { pid: thread / 10, thread, coroutine: self.coroutine };
        let data = Data { way, task, length: payload.len() as u32, payload };
        let time = self.now;
        self.event(Event::Plain { time, entered, session, data });
    }

    /// The next call, in the order of their ends.
    fn call(&mut self) -> Call {
        assert!(!self.calls.is_empty(), "there is a call");
        self.calls.remove(0)
    }
}

#[test]
fn both_processes_see_a_request_with_the_same_numbers() {
    let mut host = Host::new();
    let task = Task { pid: 1, thread: 10, coroutine: 0 };
    host.event(Event::Connecting { time: 0, socket: 1, task });
    host.open(1);
    host.open(101);
    // The server may be done before the end of the client's call is told.
    host.transfer(101, 20, Way::In, GET);
    host.transfer(101, 20, Way::Out, OK);
    host.transfer(1, 10, Way::Out, GET);
    host.transfer(1, 10, Way::In, OK);
    let (server, client) = (host.call(), host.call());
    assert_eq!(server.point, ObservationPoint::ServerProcess);
    assert_eq!(client.point, ObservationPoint::ClientProcess);
    for call in [&server, &client] {
        assert_eq!((call.client_pid, call.server_pid), (1, 2));
        assert_eq!(call.facts.ends.server_port, 801);
        assert_eq!((call.session.req_tcp_seq, call.session.resp_tcp_seq), (7_000, 7_000));
        assert_eq!(
            (call.session.request_resource.as_str(), call.session.status),
            ("/a", ResponseStatus::Normal)
        );
    }
    assert_eq!((server.threads, client.threads), ([20, 20], [10, 10]));
    // Nobody asked the client, so it works for nothing.
    assert_eq!((server.traces, client.traces), ([BASE + 1; 2], [0; 2]));
    assert_eq!((server.source, client.source), (SyscallTraceSource::Thread, SyscallTraceSource::None));
    assert_ne!(server.facts.flow_id, client.facts.flow_id);
}

#[test]
fn the_last_bytes_of_a_connection_that_was_reset_belong_to_it() {
    let mut host = Host::new();
    let reset = |socket: u64| SocketEnds { local: "127.0.0.1:0".parse().unwrap(), ..Host::ends(socket) };
    let task = Task { pid: 2, thread: 20, coroutine: 0 };
    let data = Data { way: Way::Out, task, length: OK.len() as u32, payload: OK };
    host.open(101);
    host.transfer(101, 20, Way::In, GET);
    let time = host.now;
    host.event(Event::Closed { time, socket: 101 });
    host.event(Event::Transfer { time, socket: 101, ends: reset(101), tcp_seq: 7_000, data });
    let call = host.call();
    assert_eq!((call.facts.ends.server_port, call.session.l7_type), (801, L7Type::Session));
    // Of a socket that is not known, nothing can be said.
    host.event(Event::Transfer { time, socket: 102, ends: reset(102), tcp_seq: 7_000, data });
    assert_eq!((host.sockets.len(), host.sockets.counters().unplaced), (1, 1));
}

#[test]
fn what_a_thread_asks_while_it_works_for_a_request_is_linked_to_it() {
    let mut host = Host::new();
    for socket in [101, 2, 3] {
        host.open(socket);
    }
    for round in 1..=2 {
        host.transfer(101, 20, Way::In, GET);
        for socket in [2, 3, 2] {
            host.transfer(socket, 20, Way::Out, GET);
            host.transfer(socket, 20, Way::In, OK);
        }
        host.transfer(101, 20, Way::Out, OK);
        // What the thread does afterwards has nothing to do with the request.
        host.transfer(3, 20, Way::Out, GET);
        host.transfer(3, 20, Way::In, OK);
        let traces: Vec<_> = (0..5).map(|_| host.call().traces).collect();
        let trace = BASE + round;
        assert_eq!(traces, [[trace; 2], [trace; 2], [trace; 2], [trace; 2], [0; 2]]);
    }
}

#[test]
fn requests_that_come_before_the_response_is_seen_have_numbers_of_their_own() {
    let check = |first: &[&[u8]], thread: u32, rest: &[u8]| {
        let mut host = Host::new();
        for socket in [101, 2] {
            host.open(socket);
        }
        for part in first {
            host.transfer(101, thread, Way::In, part);
        }
        // The end of the call that sent the response may be seen after the first bytes of the next request.
        host.transfer(101, 20, Way::Out, OK);
        if !rest.is_empty() {
            host.transfer(101, 20, Way::In, rest);
        }
        host.transfer(2, 20, Way::Out, GET);
        host.transfer(2, 20, Way::In, OK);
        host.transfer(101, 20, Way::Out, OK);
        let traces: Vec<_> = (0..3).map(|_| host.call().traces[0].saturating_sub(BASE)).collect();
        assert_eq!(traces, [1, 2, 2], "{first:?}");
    };
    // Sent at once, and one byte that another thread waited for.
    check(&[&[GET, GET].concat()], 20, b"");
    check(&[GET, &GET[..1]], 21, &GET[1..]);
    check(&[&[GET, &GET[..9]].concat()], 20, &GET[9..]);
}

#[test]
fn coroutines_work_for_what_they_were_begun_or_handed_for() {
    let mut host = Host::new();
    for socket in [101, 102, 3, 4] {
        host.open(socket);
    }
    // One thread; a request each in the coroutines 1 and 2. Each begins another one, which asks.
    let task = |coroutine| Task { pid: 2, thread: 20, coroutine };
    host.coroutine = 1;
    host.transfer(101, 20, Way::In, GET);
    host.event(Event::Spawn { task: task(1), child: 11 });
    host.coroutine = 2;
    host.transfer(102, 20, Way::In, GET);
    host.event(Event::Spawn { task: task(2), child: 12 });
    for (coroutine, socket) in [(11, 3), (12, 4), (11, 3)] {
        host.coroutine = coroutine;
        host.transfer(socket, 20, Way::Out, GET);
        host.transfer(socket, 20, Way::In, OK);
        let call = host.call();
        assert_eq!(call.traces, [BASE + coroutine - 10; 2]);
        assert_eq!(call.coroutines, [2 << 42 | coroutine; 2]);
    }
    // A coroutine that writes for all of them takes what they leave for it, and nothing where they left nothing.
    for (from, place, expected) in
        [(Some(11), 0xa, 1), (Some(12), 0xa, 2), (Some(13), 0xa, 0), (None, 0xb, 0)]
    {
        if let Some(from) = from {
            host.event(Event::HandOver { task: task(from), place, stream: 0 });
        }
        host.event(Event::TakeOver { task: task(9), place, stream: 0 });
        host.coroutine = 9;
        host.transfer(3, 20, Way::Out, GET);
        host.coroutine = 8;
        host.transfer(3, 20, Way::In, OK);
        assert_eq!(host.call().traces[0].saturating_sub(BASE), expected);
    }
}

#[test]
fn an_event_loop_goes_on_with_the_request_whose_answer_it_reads() {
    let mut host = Host::new();
    for socket in [101, 102, 3, 4] {
        host.open(socket);
    }
    // Two requests at one time, on one thread: each asks its own backend, and the answers come in the other order.
    host.transfer(101, 20, Way::In, GET);
    host.transfer(3, 20, Way::Out, GET);
    host.transfer(102, 20, Way::In, GET);
    host.transfer(4, 20, Way::Out, GET);
    host.transfer(4, 20, Way::In, OK);
    host.transfer(102, 20, Way::Out, OK);
    host.transfer(3, 20, Way::In, OK);
    host.transfer(3, 20, Way::Out, GET);
    host.transfer(3, 20, Way::In, OK);
    host.transfer(101, 20, Way::Out, OK);
    let calls: Vec<_> = (0..5).map(|_| host.call()).collect();
    assert_eq!(calls.iter().map(|call| call.traces[0] - BASE).collect::<Vec<_>>(), [2, 2, 1, 1, 1]);
    // It took the second request on before it had answered the first.
    assert!(calls.iter().all(|call| call.source == SyscallTraceSource::EventLoop));
    // Another program runs in the process: nothing is known of it.
    host.event(Event::Exec { task: Task { pid: 2, thread: 20, coroutine: 0 } });
    host.transfer(101, 20, Way::In, GET);
    host.transfer(101, 20, Way::Out, OK);
    assert_eq!(host.call().source, SyscallTraceSource::Thread);
}

#[test]
fn an_event_loop_writes_to_a_connection_what_it_was_begun_for() {
    let mut host = Host::new();
    for socket in [101, 102] {
        host.open(socket);
    }
    for (socket, upstream) in [(101, 3), (102, 4)] {
        host.transfer(socket, 20, Way::In, GET);
        let (time, task) = (host.now, Task { pid: 2, thread: 20, coroutine: 0 });
        host.event(Event::Connecting { time, socket: upstream, task });
    }
    // The connections stand later, in any order.
    for upstream in [3, 4] {
        host.open(upstream);
        host.transfer(upstream, 20, Way::Out, GET);
    }
    for upstream in [3, 4] {
        host.transfer(upstream, 20, Way::In, OK);
    }
    let calls = [host.call(), host.call()];
    assert_eq!(calls.each_ref().map(|call| call.traces[0] - BASE), [1, 2]);
    assert!(calls.iter().all(|call| call.source == SyscallTraceSource::EventLoop));
}

#[test]
fn an_event_loop_goes_on_with_each_of_the_answers_that_it_reads_at_once() {
    let mut host = Host::new();
    for socket in [101, 102, 103, 4] {
        host.open(socket);
    }
    for socket in [101, 102, 103] {
        host.transfer(socket, 20, Way::In, GET);
        host.transfer(4, 20, Way::Out, PING);
    }
    host.transfer(4, 20, Way::In, &PONG.repeat(3));
    // The second is answered, the others ask again.
    host.transfer(4, 20, Way::Out, PING);
    host.transfer(102, 20, Way::Out, OK);
    host.transfer(4, 20, Way::Out, PING);
    host.transfer(4, 20, Way::In, &PONG.repeat(2));
    let traces: Vec<_> = (0..6).map(|_| host.call().traces[0] - BASE).collect();
    assert_eq!(traces, [1, 2, 3, 2, 1, 3]);
}

#[test]
fn work_that_moves_between_threads_is_gone_on_with_in_its_order() {
    let mut host = Host::new();
    for socket in [101, 102, 3] {
        host.open(socket);
    }
    // That it moves is seen when another thread reads the answer.
    host.transfer(101, 20, Way::In, GET);
    host.transfer(3, 21, Way::Out, PING);
    host.transfer(3, 22, Way::In, PONG);
    host.transfer(101, 23, Way::Out, OK);
    host.calls.clear();
    host.transfer(101, 20, Way::In, GET);
    host.transfer(102, 21, Way::In, GET);
    host.transfer(3, 22, Way::Out, PING);
    host.transfer(3, 22, Way::Out, PING);
    host.transfer(3, 23, Way::In, PONG);
    // The first goes on, the second is answered.
    host.transfer(3, 22, Way::Out, PING);
    host.transfer(3, 23, Way::In, PONG);
    host.transfer(102, 20, Way::Out, OK);
    host.transfer(3, 23, Way::In, PONG);
    host.transfer(101, 20, Way::Out, OK);
    // Asked for the first after that was answered: a wrong guess, after which the next one is right again.
    host.transfer(3, 22, Way::Out, PING);
    host.transfer(102, 20, Way::In, GET);
    host.transfer(3, 22, Way::In, PONG);
    host.transfer(3, 22, Way::Out, PING);
    host.transfer(3, 22, Way::In, PONG);
    let calls: Vec<_> = host.calls.iter().map(|call| (call.traces[0] - BASE, call.source)).collect();
    assert_eq!(calls, [2, 3, 3, 2, 2, 2, 4].map(|trace| (trace, SyscallTraceSource::EventLoop)));
}

#[test]
fn a_thread_with_one_request_at_a_time_is_no_event_loop() {
    let mut host = Host::new();
    for socket in [101, 102, 103, 3] {
        host.open(socket);
    }
    // One connection after the other, one of them without an answer; and a connection that another request began.
    host.transfer(101, 20, Way::In, GET);
    let (time, task) = (host.now, Task { pid: 2, thread: 20, coroutine: 0 });
    host.event(Event::Connecting { time, socket: 4, task });
    host.transfer(101, 20, Way::Out, OK);
    host.transfer(102, 20, Way::In, GET);
    host.event(Event::Closed { time: host.now, socket: 102 });
    host.transfer(103, 20, Way::In, GET);
    host.open(4);
    host.transfer(4, 20, Way::Out, GET);
    host.transfer(4, 20, Way::In, OK);
    host.transfer(103, 20, Way::Out, OK);
    let calls: Vec<_> = (0..3).map(|_| host.call()).collect();
    assert_eq!(calls.iter().map(|call| call.traces[0] - BASE).collect::<Vec<_>>(), [1, 3, 3]);
    assert!(calls.iter().all(|call| call.source == SyscallTraceSource::Thread));
}

#[test]
fn work_that_moves_between_threads_is_a_guess() {
    let mut host = Host::new();
    for socket in [101, 3] {
        host.open(socket);
    }
    host.transfer(101, 20, Way::In, GET);
    host.transfer(3, 20, Way::Out, GET);
    host.transfer(3, 21, Way::In, OK);
    host.transfer(101, 21, Way::Out, OK);
    let sources = [host.call().source, host.call().source];
    assert_eq!(sources, [SyscallTraceSource::EventLoop; 2]);
}

#[test]
fn a_connection_from_before_the_agent_turns_out_right() {
    let mut host = Host::new();
    // Neither port tells the server; the first thing seen is the response of an earlier request.
    let ends = ends("127.0.0.1:40001", "127.0.0.1:50001");
    let mut transfer = |way, tcp_seq, payload: &[u8]| {
        let task = Task { pid: 1, thread: 10, coroutine: 0 };
        let data = Data { way, task, length: payload.len() as u32, payload };
        host.event(Event::Transfer { time: 9_000_000, socket: 1, ends, tcp_seq, data });
    };
    transfer(Way::Out, 1, OK);
    transfer(Way::In, 1, GET);
    transfer(Way::Out, 1 + OK.len() as u32, OK);
    let calls: Vec<_> = host.calls.iter().filter(|call| call.session.l7_type == L7Type::Session).collect();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].point, ObservationPoint::ServerProcess);
    assert_eq!(calls[0].facts.ends.server_port, 40_001);
}

#[test]
fn plain_text_belongs_to_the_socket_that_the_library_used() {
    let mut host = Host::new();
    host.open(1);
    host.open(2);
    let hello: &[u8] = &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5];
    let record: &[u8] = &[0x17, 3, 3, 0, 5];
    for (socket, thread) in [(1, 10), (2, 11)] {
        host.transfer(socket, thread, Way::Out, hello);
    }
    assert_eq!(host.sockets.take_judgements(), [(1, Judgement::NoPayload), (2, Judgement::NoPayload)]);
    for (socket, thread, session) in [(1, 10, 0xa), (2, 11, 0xb)] {
        let entered = host.now;
        host.transfer(socket, thread, Way::Out, record);
        host.plain(session, thread, Way::Out, entered, GET);
    }
    // The answer comes in two calls; the second finds the data in the library and reads no socket.
    let entered = host.now;
    host.transfer(1, 10, Way::In, record);
    host.plain(0xa, 10, Way::In, entered, &OK[..10]);
    // Meanwhile the thread used another socket.
    host.transfer(2, 10, Way::In, record);
    let entered = host.now;
    host.plain(0xa, 10, Way::In, entered, &OK[10..]);
    let call = host.call();
    assert_eq!(call.facts.ends.server_port, 801);
    // The number of the record that carried the request, behind the hello; that of the answer's first record.
    assert_eq!((call.session.req_tcp_seq, call.session.resp_tcp_seq), (7_010, 7_000));
    assert_eq!(host.sockets.counters(), Counters::default());
    host.plain(0xc, 99, Way::In, host.now, OK);
    host.sockets.tick(host.now + 1_000_000_000, &mut host.calls);
    assert_eq!(host.sockets.counters().unplaced, 1);
}

#[test]
fn an_answer_waits_for_the_end_of_the_call_that_asked() {
    let hello: &[u8] = &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5];
    let record: &[u8] = &[0x17, 3, 3, 0, 5];
    let mut host = Host::new();
    host.open(1);
    host.transfer(1, 10, Way::Out, hello);
    let entered = host.now;
    let task = Task { pid: 1, thread: 10, coroutine: 0 };
    host.event(Event::Sending { time: entered, task, session: 0xa });
    host.transfer(1, 10, Way::Out, record);
    let ended = host.now;
    // Meanwhile another thread reads the answer.
    host.transfer(1, 11, Way::In, record);
    host.plain(0xa, 11, Way::In, ended, OK);
    assert!(host.calls.is_empty());
    host.plain(0xa, 10, Way::Out, entered, GET);
    let call = host.call();
    assert_eq!((call.session.l7_type, call.threads), (L7Type::Session, [10, 11]));
    // A call that does not end keeps the answer back no longer than a moment.
    host.event(Event::Sending { time: host.now, task, session: 0xa });
    let entered = host.now;
    host.transfer(1, 11, Way::In, record);
    host.plain(0xa, 11, Way::In, entered, OK);
    host.sockets.tick(host.now + 1_000_000_000, &mut host.calls);
    assert_eq!(host.call().session.l7_type, L7Type::Response);
}

#[test]
fn what_came_with_the_handshake_waits_for_its_socket() {
    let hello: &[u8] = &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5];
    let record: &[u8] = &[0x17, 3, 3, 0, 5];
    let mut host = Host::new();
    host.open(101);
    host.transfer(101, 20, Way::In, hello);
    // A thread that touched no socket finds the request in the library.
    host.plain(0xa, 21, Way::In, host.now, GET);
    let entered = host.now;
    host.transfer(101, 20, Way::Out, record);
    host.plain(0xa, 20, Way::Out, entered, OK);
    let call = host.call();
    assert_eq!((call.session.l7_type, call.threads), (L7Type::Session, [21, 20]));
    assert_eq!(host.sockets.counters().unplaced, 0);
}

#[test]
fn what_speaks_no_known_protocol_is_left_to_the_kernel() {
    let mut host = Host::new();
    host.open(1);
    for round in 0..20 {
        let way = if round % 2 == 0 { Way::Out } else { Way::In };
        host.transfer(1, 10, way, &[0xfe, 0xed, 0, 1, 2, 3, 4, 5, 6, 7]);
    }
    assert_eq!(host.sockets.take_judgements(), [(1, Judgement::Ignore)]);
    host.event(Event::Closed { time: host.now, socket: 1 });
    host.sockets.tick(host.now + CLOSED_KEPT_NS, &mut host.calls);
    assert_eq!(host.sockets.take_judgements(), [(1, Judgement::Forget)]);
    assert!(host.sockets.is_empty());
}

#[test]
fn the_rest_of_a_long_body_is_left_to_the_kernel_and_what_follows_it_is_not() {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
    let mut host = Host::new();
    host.open(101);
    host.transfer(101, 20, Way::In, GET);
    host.transfer(101, 20, Way::Out, HEAD);
    let end = 7_000 + HEAD.len() as u32 + 1_000_000;
    let skip = Judgement::Skip { sent: Some(end), received: None };
    assert_eq!(host.sockets.take_judgements(), [(101, skip)]);
    // The kernel hands over lengths alone; that is no loss.
    let ends = Host::ends(101);
    for part in 0..10 {
        let data = Data {
            way: Way::Out,
            task: Task { pid: 2, thread: 20, coroutine: 0 },
            length: 100_000,
            payload: b"",
        };
        let tcp_seq = end - 1_000_000 + part * 100_000;
        host.event(Event::Transfer { time: host.now, socket: 101, ends, tcp_seq, data });
    }
    let call = host.call();
    assert_eq!(call.session.status, ResponseStatus::Normal);
    assert_eq!(call.session.response_length, HEAD.len() as u64 + 1_000_000);
    assert_eq!(host.sockets.take_judgements(), [], "told once");
    host.seqs.insert((101, Way::Out), end);
    host.transfer(101, 20, Way::In, GET);
    host.transfer(101, 20, Way::Out, OK);
    assert_eq!(host.call().session.response_length, OK.len() as u64);
    assert_eq!(host.sockets.counters().gaps, 0);
    // Short bodies are not worth a word; a kernel that forgot all is told what still holds.
    host.sockets.judge_again();
    assert_eq!(host.sockets.take_judgements(), []);
}

#[test]
fn bytes_that_were_not_seen_void_what_is_open() {
    let mut host = Host::new();
    host.open(1);
    host.transfer(1, 10, Way::Out, GET);
    *host.seqs.get_mut(&(1, Way::Out)).unwrap() += 500;
    host.transfer(1, 10, Way::Out, GET);
    host.transfer(1, 10, Way::In, OK);
    assert_eq!(host.sockets.counters().gaps, 1);
    let answered = host.calls.iter().filter(|call| call.session.response_duration.is_some()).count();
    assert!(answered <= 1, "{:#?}", host.calls);
}

#[test]
fn there_are_never_more_sockets_than_allowed() {
    let mut host = Host::new();
    for socket in 0..200 {
        host.transfer(socket % 100 + socket / 100 * 1_000, 10, Way::Out, GET);
    }
    assert_eq!(host.sockets.len(), 100);
    assert_eq!(host.sockets.counters().excess, 100);
}

#[test]
fn partners_of_a_datagram_socket_leave_room_for_connections() {
    let mut host = Host::new();
    for port in 0..200 {
        let ends =
            SocketEnds { transport: Transport::Udp, ..ends("10.0.0.1:53", &format!("10.0.0.2:{port}")) };
        let data = Data {
            way: Way::In,
            task: Task { pid: 1, thread: 1, coroutine: 0 },
            length: 4,
            payload: b"abcd",
        };
        host.event(Event::Transfer { time: host.now, socket: 1, ends, tcp_seq: 0, data });
    }
    assert_eq!(host.sockets.len(), 25);
    host.sockets.tick(host.now + IDLE_UDP_NS + 1, &mut host.calls);
    assert!(host.sockets.is_empty());
    assert_eq!(host.sockets.partners, 0);
}
