//! Conversations as a list of payloads: who speaks, when, and what.

use metaflow_schema::enums::{L7Type, ResponseStatus};

use super::*;
use crate::session::Session;

/// A conversation that is fed by hand; sequence numbers follow from what was said.
pub(crate) struct Talker {
    pub(crate) conversation: Conversation,
    pub(crate) sessions: Vec<SessionBox>,
    next_seq: [u32; 2],
}

impl Talker {
    pub(crate) fn new(transport: Transport, server_port: u16, config: Config) -> Self {
        let conversation = Conversation::new(transport, server_port, &Arc::new(config));
        Talker { conversation, sessions: Vec::new(), next_seq: [1000, 5000] }
    }

    pub(crate) fn tcp(server_port: u16) -> Self {
        Talker::new(Transport::Tcp, server_port, Config::default())
    }

    pub(crate) fn client(&mut self, timestamp: u64, payload: impl AsRef<[u8]>) -> &mut Self {
        self.say(Direction::ToServer, timestamp, payload.as_ref(), payload.as_ref().len())
    }

    pub(crate) fn server(&mut self, timestamp: u64, payload: impl AsRef<[u8]>) -> &mut Self {
        self.say(Direction::ToClient, timestamp, payload.as_ref(), payload.as_ref().len())
    }

    /// Says `length` bytes of which only `payload` was captured.
    pub(crate) fn say(
        &mut self,
        direction: Direction,
        timestamp: u64,
        payload: &[u8],
        length: usize,
    ) -> &mut Self {
        let next = &mut self.next_seq[direction as usize];
        let (tcp_seq, payload_length) = (*next, length as u32);
        *next = next.wrapping_add(payload_length);
        let segment = Segment { timestamp, direction, tcp_seq, payload, payload_length, gap: false };
        self.conversation.segment(&segment, &mut self.sessions);
        self
    }

    /// Says what comes after `missing` bytes that nobody captured.
    pub(crate) fn after_gap(
        &mut self,
        direction: Direction,
        timestamp: u64,
        missing: u32,
        payload: &[u8],
    ) -> &mut Self {
        let next = &mut self.next_seq[direction as usize];
        let (tcp_seq, payload_length) = (next.wrapping_add(missing), payload.len() as u32);
        *next = tcp_seq.wrapping_add(payload_length);
        let segment = Segment { timestamp, direction, tcp_seq, payload, payload_length, gap: true };
        self.conversation.segment(&segment, &mut self.sessions);
        self
    }

    pub(crate) fn finish(&mut self) -> &mut Self {
        self.conversation.finish(&mut self.sessions);
        self
    }

    /// `type resource kind status code duration` of every session so far.
    pub(crate) fn summary(&self) -> Vec<String> {
        let line = |session: &SessionBox| {
            let Session { request_type, request_resource, l7_type, status, response_code, .. } = &**session;
            let duration =
                session.response_duration.map_or_else(|| "-".to_owned(), |value| value.to_string());
            format!("{request_type} {request_resource} {l7_type:?} {status:?} {response_code} {duration}")
        };
        self.sessions.iter().map(line).collect()
    }

    #[track_caller]
    pub(crate) fn check(&mut self, expected: &[&str]) -> &mut Self {
        assert_eq!(self.summary(), expected);
        self
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn an_unanswered_request_times_out_and_its_late_response_stands_alone() {
    let mut talker = Talker::tcp(80);
    talker.client(1_000_000, "GET /a HTTP/1.1\r\n\r\n").client(2_000_000, "GET /b HTTP/1.1\r\n\r\n");
    talker.conversation.expire(120_999_999, &mut talker.sessions);
    talker.check(&[]);
    talker.conversation.expire(121_000_000, &mut talker.sessions);
    talker.check(&["GET /a Request Timeout 0 -"]);
    talker.server(121_500_000, OK).server(121_600_000, OK).check(&[
        "GET /a Request Timeout 0 -",
        "  Response Normal 200 -",
        "GET /b Session Normal 200 119600000",
    ]);
}

#[test]
fn a_client_that_goes_on_has_given_up_what_timed_out() {
    let mut talker = Talker::tcp(80);
    talker.client(1_000_000, "GET /a HTTP/1.1\r\n\r\n");
    talker.conversation.expire(200_000_000, &mut talker.sessions);
    talker.client(201_000_000, "GET /b HTTP/1.1\r\n\r\n").server(201_000_007, OK);
    talker.check(&["GET /a Request Timeout 0 -", "GET /b Session Normal 200 7"]);
}

#[test]
fn open_requests_are_bounded_and_the_excess_is_counted() {
    let mut talker = Talker::tcp(80);
    for request in 0..1000 {
        talker.client(request, "GET /a HTTP/1.1\r\n\r\n");
    }
    assert_eq!(talker.conversation.take_losses().excess_requests, 1000 - 128);
    assert_eq!(talker.sessions.len(), 1000 - 128);
    assert!(talker.sessions.iter().all(|session| session.status == ResponseStatus::Unknown));
    talker.finish();
    assert_eq!(talker.sessions.len(), 1000);
}

#[test]
fn requests_of_a_flow_that_ends_are_reported_as_unknown() {
    Talker::tcp(80).client(1, "GET /a HTTP/1.1\r\n\r\n").finish().check(&["GET /a Request Unknown 0 -"]);
}

#[test]
fn a_gap_ends_what_cannot_be_paired_any_more() {
    let mut talker = Talker::tcp(80);
    talker.client(1, "GET /a HTTP/1.1\r\n\r\n");
    talker.after_gap(Direction::ToServer, 2, 100, b"GET /c HTTP/1.1\r\n\r\n");
    talker.server(3, OK);
    talker.check(&["GET /a Request Unknown 0 -", "GET /c Session Normal 200 1"]);
    assert_eq!(talker.conversation.take_losses().resynchronisations, 1);
}

#[test]
fn a_reversed_flow_is_noticed() {
    let mut talker = Talker::tcp(40_000);
    talker.server(1, "GET /a HTTP/1.1\r\n\r\n").client(4, OK).check(&["GET /a Session Normal 200 3"]);
    assert!(talker.conversation.reversed());

    let mut talker = Talker::tcp(40_000);
    talker.client(1, OK).server(2, "GET /a HTTP/1.1\r\n\r\n").client(4, OK);
    talker.check(&["  Response Normal 200 -", "GET /a Session Normal 200 2"]);
    assert!(talker.conversation.reversed());
}

#[test]
fn what_no_protocol_knows_is_given_up_and_counted() {
    let mut talker = Talker::tcp(4000);
    for time in 0..12 {
        assert!(matches!(talker.conversation.state, State::Seeking(_)), "{time}");
        talker
            .client(time, [0xfe; 64])
            .client(time, [0xfe; 64])
            .client(time, [0xfe; 64])
            .server(time, [0xfd; 64]);
        if matches!(talker.conversation.state, State::Deaf) {
            break;
        }
    }
    assert!(matches!(talker.conversation.state, State::Deaf));
    assert_eq!(talker.conversation.take_losses().unrecognised, 1);
    talker.client(99, "GET /a HTTP/1.1\r\n\r\n").finish().check(&[]);
    assert_eq!(talker.conversation.protocol(), L7Protocol::Unknown);
}

#[test]
fn a_conversation_that_begins_inside_a_body_finds_its_protocol() {
    let mut talker = Talker::tcp(80);
    for time in 0..100 {
        talker.server(time, [b'x'; 1400]);
    }
    talker.client(200, "GET /a HTTP/1.1\r\n\r\n").server(201, OK).check(&["GET /a Session Normal 200 1"]);
    assert_eq!(talker.sessions[0].l7_type, L7Type::Session);
}

#[test]
fn datagrams_pair_by_id() {
    let (query, reply) = (|id| dns(id, false), |id| dns(id, true));
    let mut talker = Talker::new(Transport::Udp, 53, Config::default());
    talker
        .client(1, query(1))
        .client(2, query(2))
        .client(3, query(3))
        .server(9, reply(3))
        .server(10, reply(1));
    talker.conversation.expire(15_000_003, &mut talker.sessions);
    talker.check(&["A d Session Normal 0 6", "A b Session Normal 0 9", "A c Request Timeout 0 -"]);
    talker.server(15_000_004, reply(2));
    assert_eq!(talker.summary()[3], "A c Response Normal 0 -");
}

/// A message of DNS with one question.
fn dns(id: u8, is_answer: bool) -> Vec<u8> {
    let flags: [u8; 2] = if is_answer { [0x81, 0x80] } else { [1, 0] };
    [&[0, id][..], &flags, &[0, 1, 0, 0, 0, 0, 0, 0, 1, b'a' + id, 0, 0, 1, 0, 1]].concat()
}

#[test]
fn datagrams_become_known_however_many_unknown_ones_came_before() {
    #[track_caller]
    fn check(strange: impl Fn(&mut Talker, u64), unrecognised: u32) {
        let mut talker = Talker::new(Transport::Udp, 4000, Config::default());
        for time in 0..1000 {
            strange(&mut talker, time);
        }
        assert_eq!(
            (talker.conversation.is_over(), talker.conversation.losses.unrecognised),
            (false, unrecognised)
        );
        talker.client(200_000, dns(1, false)).server(200_009, dns(1, true));
        talker.check(&["A b Session Normal 0 9"]);
        assert_eq!(talker.conversation.take_losses(), Losses::default());
    }
    check(|talker, time| _ = talker.client(time, [0xfe; 64]), 0);
    check(|talker, time| _ = talker.client(time, [0xfe; 64]).server(time, [0xfd; 64]), 1);
}

#[test]
fn a_flood_of_unknown_datagrams_is_looked_at_now_and_then() {
    let mut talker = Talker::new(Transport::Udp, 4000, Config::default());
    for time in 0..1000 {
        talker.client(time, [0xfe; 64]).server(time, [0xfd; 64]);
    }
    // Within the time after the last look, not even what would be known is looked at; a clock that went back does not matter.
    talker.client(50_000, dns(1, false)).check(&[]);
    talker.client(150_000, [0xfe; 64]).client(150_001, dns(1, false)).check(&[]);
    assert_eq!(talker.conversation.protocol(), L7Protocol::Unknown);
    talker.client(20_000, dns(1, false)).server(20_004, dns(1, true)).check(&["A b Session Normal 0 4"]);
    // What was given up is counted once.
    let mut talker = Talker::new(Transport::Udp, 4000, Config::default());
    for second in 0..600 {
        talker.client(second * 1_000_000, [0xfe; 64]).server(second * 1_000_000, [0xfd; 64]);
    }
    assert_eq!(talker.finish().conversation.take_losses().unrecognised, 1);
}
