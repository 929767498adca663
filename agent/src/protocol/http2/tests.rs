//! HTTP/2 and gRPC as conversations.

use metaflow_schema::enums::{L7Protocol, L7Type, ResponseStatus};

use super::frame::PREFACE;
use crate::session::Direction::{self, ToClient, ToServer};
use crate::session::conversation::tests::Talker;
use crate::session::{Config, Transport};

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals that are added to the table.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let part = |text: &str| {
        let length = text.len();
        assert!(length < 127 + 128);
        let prefix = if length < 127 { vec![length as u8] } else { vec![0x7f, (length - 127) as u8] };
        [prefix, text.as_bytes().to_vec()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0x40], part(name), part(value)].concat()).collect()
}

fn headers(stream: u32, ends: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(1, 0x4 | u8::from(ends), stream, &block(fields))
}

fn data(stream: u32, ends: bool, payload: &[u8]) -> Vec<u8> {
    frame(0, u8::from(ends), stream, payload)
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    headers(stream, true, &[(":method", "GET"), (":path", path), (":authority", "shop")])
}

fn start() -> Vec<u8> {
    [&PREFACE[..], &frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])].concat()
}

/// A gRPC call's headers.
fn call(stream: u32, path: &str) -> Vec<u8> {
    let fields =
        [(":method", "POST"), (":path", path), (":authority", "shop"), ("content-type", "application/grpc")];
    headers(stream, false, &fields)
}

/// Messages of gRPC in one frame.
fn messages(stream: u32, ends: bool, sizes: &[usize]) -> Vec<u8> {
    let message = |size: &usize| [&[0][..], &(*size as u32).to_be_bytes(), &vec![b'x'; *size]].concat();
    data(stream, ends, &sizes.iter().flat_map(message).collect::<Vec<u8>>())
}

fn opens(stream: u32) -> Vec<u8> {
    headers(stream, false, &[(":status", "200"), ("content-type", "application/grpc")])
}

fn trailers(stream: u32, status: &str, message: &str) -> Vec<u8> {
    headers(stream, true, &[("grpc-status", status), ("grpc-message", message)])
}

fn talk(turns: &[(Direction, Vec<u8>)], size: usize) -> Talker {
    let mut talker = Talker::tcp(40_000);
    for (time, (direction, payload)) in turns.iter().enumerate() {
        for part in payload.chunks(size) {
            talker.say(*direction, time as u64, part, part.len());
        }
    }
    talker.finish();
    talker
}

/// Whole, and in pieces of all small sizes.
#[track_caller]
fn check(turns: &[(Direction, Vec<u8>)], expected: &[&str]) -> Talker {
    let mut whole = talk(turns, usize::MAX);
    whole.check(expected);
    for size in [1, 2, 3, 5, 7, 9, 10, 13, 40] {
        let pieces = talk(turns, size);
        assert_eq!(whole.sessions, pieces.sessions, "{size}");
    }
    assert_eq!(whole.conversation.take_losses(), Default::default());
    whole
}

#[test]
fn headers_become_fields() {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/users/42?access_token=abc&x=1"),
        (":authority", "shop.example"),
        ("user-agent", "curl/8"),
        ("referer", "http://u:p@r.example/x"),
        ("x-forwarded-for", "10.0.0.1, 10.0.0.2"),
        ("x-request-id", "r-1"),
        ("traceparent", trace),
        ("authorization", "secret"),
        ("cookie", "secret"),
    ];
    let response = [(":status", "503"), ("x-request-id", "r-2"), ("content-type", "text/plain")];
    let request = [headers(1, false, &fields), data(1, true, b"hello")].concat();
    let turns = [
        (ToServer, [start(), request.clone()].concat()),
        (ToClient, [frame(4, 0, 0, &[]), headers(1, false, &response), data(1, true, b"no")].concat()),
    ];
    let talker = check(&turns, &["POST /users/42?access_token=?&x=1 Session ServerError 503 1"]);
    let session = &talker.sessions[0];
    assert_eq!((session.protocol, session.version), (L7Protocol::Http2, "2"));
    assert_eq!((&*session.endpoint, &*session.request_domain), ("/users/*", "shop.example"));
    assert_eq!((&*session.user_agent, &*session.referer), ("curl/8", "http://?@r.example/x"));
    assert_eq!(&*session.http_proxy_client, "10.0.0.1");
    assert_eq!((&*session.x_request_id_request, &*session.x_request_id_response), ("r-1", "r-2"));
    assert_eq!((&*session.trace_id, &*session.span_id), (&trace[3..35], &trace[36..52]));
    assert_eq!((session.request_id, session.request_length), (1, request.len() as u64));
    assert!(!format!("{session:?}").contains("secret"));
}

#[test]
fn headers_that_an_operator_named_come_in_place_of_the_usual_ones() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let config = Config {
        trace_headers: names(&["X-Trace", "traceparent"]),
        request_id_headers: names(&["x-correlation-id"]),
        ..Config::default()
    };
    let mut talker = Talker::new(Transport::Tcp, 80, config);
    let fields = [
        (":method", "GET"),
        (":path", "/a"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-trace", "t-1"),
        ("x-request-id", "r-1"),
        ("x-correlation-id", "c-1"),
    ];
    talker.client(1, [start(), headers(1, true, &fields)].concat());
    talker.server(2, [frame(4, 0, 0, &[]), headers(1, true, &[(":status", "200")])].concat()).finish();
    let session = &talker.sessions[0];
    assert_eq!((&*session.trace_id, &*session.x_request_id_request), ("t-1", "c-1"));
}

#[test]
fn streams_pair_by_their_number() {
    let ok = |stream, ends| headers(stream, ends, &[(":status", "200")]);
    let turns = [
        (ToServer, [start(), get(1, "/a"), get(3, "/b")].concat()),
        (ToServer, get(5, "/c")),
        (ToClient, [frame(4, 0, 0, &[]), ok(5, true)].concat()),
        (ToClient, [ok(1, false), ok(3, false), data(1, false, &[7; 300]), data(3, true, b"b")].concat()),
        (ToClient, data(1, true, b"")),
    ];
    let talker = check(
        &turns,
        &["GET /c Session Normal 200 1", "GET /b Session Normal 200 3", "GET /a Session Normal 200 3"],
    );
    assert_eq!(talker.sessions[2].end_time, 4);
    assert_eq!(talker.sessions[2].captured_response_byte, 22 + 309 + 9);
}

#[test]
fn calls_end_with_the_status_in_their_trailer() {
    let path = "/shop.Cart/Get";
    let answered = |stream, status, message| {
        [opens(stream), messages(stream, false, &[7]), trailers(stream, status, message)].concat()
    };
    let only = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")];
    let turns = [
        (ToServer, [start(), call(1, path), messages(1, true, &[30])].concat()),
        (ToClient, [frame(4, 0, 0, &[]), answered(1, "0", "")].concat()),
        (ToServer, [call(3, path), messages(3, true, &[0])].concat()),
        (ToClient, answered(3, "5", "no%20cart%20\"secret\"")),
        (ToServer, [call(5, path), messages(5, true, &[30])].concat()),
        (ToClient, headers(5, true, &only)),
        (ToServer, [call(7, path), messages(7, true, &[30])].concat()),
        (ToClient, headers(7, true, &[(":status", "502"), ("content-type", "text/html")])),
    ];
    let talker = check(
        &turns,
        &[
            "Get /shop.Cart/Get Session Normal 0 1",
            "Get /shop.Cart/Get Session ClientError 5 1",
            "Get /shop.Cart/Get Session ServerError 12 1",
            "Get /shop.Cart/Get Session ServerError 502 1",
        ],
    );
    assert_eq!(talker.sessions[1].response_exception, "no cart \"?\"");
    assert_eq!(talker.sessions[0].protocol, L7Protocol::Grpc);
    assert_eq!((&*talker.sessions[0].endpoint, &*talker.sessions[0].request_domain), (path, "shop"));
}

#[test]
fn each_message_of_a_stream_is_a_row_but_for_the_one_that_ends_it() {
    let path = "/shop.Feed/Watch";
    let turns = [
        (ToServer, [start(), call(1, path), messages(1, true, &[30])].concat()),
        (ToClient, [frame(4, 0, 0, &[]), opens(1), messages(1, false, &[7])].concat()),
        // A message over several frames, and two and a half in one.
        (ToClient, [data(1, false, &[0, 0, 0]), data(1, false, &[0, 4, 1, 1])].concat()),
        (ToClient, [data(1, false, &[1, 1, 0, 0, 0, 0, 1, 9, 0, 0]), data(1, false, &[0, 0, 0])].concat()),
        (ToClient, trailers(1, "0", "")),
    ];
    let talker = check(
        &turns,
        &[
            "Watch /shop.Feed/Watch Request Normal 0 -",
            "Watch /shop.Feed/Watch Response Normal 0 -",
            "Watch /shop.Feed/Watch Response Normal 0 -",
            "Watch /shop.Feed/Watch Response Normal 0 -",
            "Watch /shop.Feed/Watch Session Normal 0 4",
        ],
    );
    let times: Vec<_> = talker.sessions.iter().map(|session| session.start_time).collect();
    assert_eq!(times, [0, 1, 2, 3, 0]);
    let upload = [
        (ToServer, [start(), call(1, path), messages(1, false, &[1, 2])].concat()),
        (ToServer, messages(1, true, &[3])),
        (ToClient, [frame(4, 0, 0, &[]), opens(1), messages(1, false, &[7]), trailers(1, "0", "")].concat()),
    ];
    let row = "Watch /shop.Feed/Watch Request Normal 0 -";
    check(&upload, &[row, row, row, "Watch /shop.Feed/Watch Session Normal 0 2"]);
}

#[test]
fn padding_priority_and_continuations() {
    let whole = block(&[(":method", "GET"), (":path", "/a"), (":authority", "shop")]);
    let (first, rest) = whole.split_at(10);
    let (second, third) = rest.split_at(1);
    let padded = [&[3][..], &[0, 0, 0, 0, 16], first, &[0; 3]].concat();
    let request = [
        frame(1, 0x29, 1, &padded),
        frame(9, 0, 1, second),
        frame(9, 0x4, 1, third),
        frame(2, 0, 3, &[0, 0, 0, 1, 5]),
        frame(8, 0, 0, &[0, 0, 1, 0]),
    ];
    let answer = [
        frame(4, 0, 0, &[]),
        headers(1, false, &[(":status", "200")]),
        frame(0, 0x9, 1, &[2, b'x', 0, 0]),
        frame(6, 0, 0, &[0; 8]),
    ];
    let turns = [(ToServer, [start(), request.concat()].concat()), (ToClient, answer.concat())];
    check(&turns, &["GET /a Session Normal 200 1"]);
}

#[test]
fn streams_that_are_reset_or_not_processed_fail() {
    let reset = |stream, code| frame(3, 0, stream, &[0, 0, 0, code]);
    let turns = [
        (ToServer, [start(), get(1, "/a"), get(3, "/b"), get(5, "/c"), get(7, "/d")].concat()),
        (ToClient, [frame(4, 0, 0, &[]), headers(1, false, &[(":status", "200")]), reset(1, 2)].concat()),
        (ToServer, reset(3, 8)),
        (ToClient, reset(5, 7)),
        (ToClient, frame(7, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0])),
        // Of a stream that is over nothing more is said.
        (ToClient, [reset(1, 0), headers(3, true, &[(":status", "200")])].concat()),
    ];
    let talker = check(
        &turns,
        &[
            "GET /a Session ServerError 0 1",
            "GET /b Request ClientError 0 -",
            "GET /c Session ServerError 0 3",
            "GET /d Request ServerError 0 -",
            "  Response Normal 200 -",
        ],
    );
    let texts: Vec<_> = talker.sessions.iter().map(|session| &*session.response_exception).collect();
    let expected = [
        "RST_STREAM INTERNAL_ERROR",
        "RST_STREAM CANCEL",
        "RST_STREAM REFUSED_STREAM",
        "GOAWAY: not processed",
        "",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn pushed_responses_are_dropped_and_their_fields_remembered() {
    let promise = [&[0, 0, 0, 2][..], &block(&[("x-request-id", "p-1")])].concat();
    let turns = [
        (ToServer, [start(), get(1, "/a")].concat()),
        (
            ToClient,
            [
                frame(4, 0, 0, &[]),
                frame(5, 0x4, 1, &promise),
                headers(2, false, &[(":status", "200")]),
                data(2, true, b"pushed"),
                // Status 404, and the request id of the promise, which now stands behind the pushed response's status.
                frame(1, 0x5, 1, &[0x8d, 0xbf]),
            ]
            .concat(),
        ),
    ];
    let talker = check(&turns, &["GET /a Session ClientError 404 1"]);
    assert_eq!(talker.sessions[0].x_request_id_response, "p-1");
}

#[test]
fn a_connection_that_is_joined_late_has_unknown_fields_and_no_wrong_ones() {
    // Method and path by what was said before; then a new path, by name.
    let old = frame(1, 0x5, 7, &[0x82, 0x86, 0xbe, 0xbf]);
    let new = [&[0x82, 0x86][..], &[0x44, 2, b'/', b'b'], &[0xbf]].concat();
    let turns = [
        (ToServer, old),
        (ToClient, frame(1, 0x5, 7, &[0x88, 0xc0])),
        (ToServer, frame(1, 0x5, 9, &new)),
        (ToClient, frame(1, 0x5, 9, &[0xbf])),
    ];
    check(&turns, &["GET  Session Normal 200 1", "GET /b Session Unknown 0 1"]);
}

#[test]
fn lost_bytes_make_the_table_uncertain() {
    let mut talker = Talker::tcp(40_000);
    talker.client(1, [start(), get(1, "/a")].concat()).server(2, headers(1, true, &[(":status", "200")]));
    // Path and authority of before, then after a loss.
    talker.client(3, frame(1, 0x5, 3, &[0x82, 0xbf])).server(4, frame(1, 0x5, 3, &[0x88]));
    talker.after_gap(ToServer, 5, 10, &frame(1, 0x5, 5, &[0x82, 0xbf]));
    talker.server(6, frame(1, 0x5, 5, &[0x88]));
    talker.check(&[
        "GET /a Session Normal 200 1",
        "GET /a Session Normal 200 1",
        "GET  Session Normal 200 1",
    ]);
    assert_eq!(talker.conversation.take_losses().resynchronisations, 1);
}

#[test]
fn what_was_not_captured_is_skipped() {
    let mut talker = Talker::tcp(40_000);
    talker.client(1, [start(), get(1, "/a")].concat());
    let answer = [headers(1, false, &[(":status", "200")]), data(1, true, &[7; 9000])].concat();
    talker.say(ToClient, 2, &answer[..100], answer.len());
    talker.client(3, get(3, "/b")).server(4, headers(3, true, &[(":status", "200")]));
    talker.check(&["GET /a Session Normal 200 1", "GET /b Session Normal 200 1"]);
    assert_eq!(talker.sessions[0].response_length, answer.len() as u64);
    assert_eq!(talker.sessions[0].captured_response_byte, 100);
    assert_eq!(talker.conversation.take_losses(), Default::default());
}

#[test]
fn an_upgrade_from_http1_goes_on_with_its_request_as_the_first_stream() {
    let request = "GET /a HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABk\r\n\r\n";
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let answer =
        [frame(4, 0, 0, &[]), headers(1, false, &[(":status", "404")]), data(1, true, b"no")].concat();
    let turns = [
        (ToServer, request.as_bytes().to_vec()),
        (ToClient, [&switch[..], &answer].concat()),
        (ToServer, [start(), get(3, "/b")].concat()),
        (ToClient, headers(3, true, &[(":status", "200")])),
    ];
    let talker = check(&turns, &["GET /a Session ClientError 404 1", "GET /b Session Normal 200 1"]);
    let session = &talker.sessions[0];
    assert_eq!((session.protocol, &*session.request_domain), (L7Protocol::Http2, "shop"));
    assert_eq!((session.l7_type, session.status), (L7Type::Session, ResponseStatus::ClientError));
    assert_eq!(talker.conversation.protocol(), L7Protocol::Http2);
    // A server that takes no notice goes on in HTTP/1.
    let ignored = [
        (ToServer, request.as_bytes().to_vec()),
        (ToClient, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()),
    ];
    assert_eq!(check(&ignored, &["GET /a Session Normal 200 1"]).sessions[0].protocol, L7Protocol::Http1);
}

#[test]
fn hostile_frames_are_bounded() {
    let mut talker = Talker::tcp(40_000);
    talker.client(1, start());
    // A header block without end.
    talker.client(2, frame(1, 0, 1, &block(&[(":path", "/a")])));
    for time in 0..1000 {
        talker.client(time, frame(9, 0, 1, &[0x40; 1000]));
    }
    // Streams without end.
    for stream in 0..5000 {
        talker.client(3000, get(2 * stream + 1, "/b"));
    }
    talker.finish();
    assert!(talker.sessions.len() <= 5001);
}
