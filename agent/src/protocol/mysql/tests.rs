//! MySQL as conversations.

use metaflow_schema::enums::ResponseStatus;

use crate::session::conversation::tests::Talker;
use crate::session::{Config, Direction, Transport};

fn packet(sequence: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_le_bytes();
    [&length[..3], &[sequence], body].concat()
}

fn query(statement: &str) -> Vec<u8> {
    packet(0, &[&[3], statement.as_bytes()].concat())
}

/// Packets numbered from 1.
fn reply(bodies: &[&[u8]]) -> Vec<u8> {
    bodies.iter().enumerate().flat_map(|(at, body)| packet((at + 1) as u8, body)).collect()
}

const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
const EOF: &[u8] = &[0xfe, 0, 0, 2, 0];
const COLUMN: &[u8] = b"\x03def\0\0\0\x01?\0\x0c\x3f\0\0\0\0\0\xfd\x80\0\0\0\0";

fn talker() -> Talker {
    Talker::tcp(3306)
}

/// Whole, and byte by byte.
#[track_caller]
fn check(turns: &[(Direction, &[u8])], expected: &[&str]) {
    let (mut whole, mut bytes) = (talker(), talker());
    for (time, (direction, payload)) in turns.iter().enumerate() {
        whole.say(*direction, time as u64, payload, payload.len());
        for byte in *payload {
            bytes.say(*direction, time as u64, &[*byte], 1);
        }
    }
    whole.finish().check(expected);
    bytes.finish().check(expected);
    assert_eq!(whole.sessions, bytes.sessions);
    assert_eq!(whole.conversation.take_losses(), Default::default());
}

use Direction::{ToClient, ToServer};

#[test]
fn result_sets_end_where_they_end() {
    let old = reply(&[&[1], COLUMN, EOF, b"\x01a", b"\x01b", EOF]);
    let new = reply(&[&[1], COLUMN, b"\x01a", &[0xfe, 0, 0, 2, 0, 0, 0]]);
    let several = reply(&[&[1], COLUMN, EOF, &[0xfe, 0, 0, 8, 0], &[1], COLUMN, EOF, b"\x01a", EOF]);
    let many: Vec<&[u8]> =
        [&[1][..], COLUMN, EOF].into_iter().chain([&b"\x01a"[..]; 600]).chain([EOF]).collect();
    for set in [&old, &new, &several, &reply(&many)] {
        let select = query("select a from t where b = 'x'");
        let turns =
            [(ToServer, &select[..]), (ToClient, set), (ToServer, &select), (ToClient, &*reply(&[OK]))];
        let session = "COM_QUERY select a from t where b = ? Session Normal 0 1";
        check(&turns, &[session, session]);
    }
}

#[test]
fn an_error_among_rows_is_an_error() {
    let error = b"\xff\x25\x05#70100Query execution was interrupted";
    let select = query("select a from t");
    let set = reply(&[&[1], COLUMN, EOF, b"\x01a", error]);
    let mut talker = talker();
    talker
        .client(1, &select)
        .server(2, &set)
        .check(&["COM_QUERY select a from t Session ServerError 1317 1"]);
    assert_eq!(talker.sessions[0].response_exception, "Query execution was interrupted");
    assert_eq!(talker.sessions[0].response_length, set.len() as u64);
    assert_eq!(talker.sessions[0].endpoint, "SELECT t");
}

#[test]
fn errors_name_number_and_text_without_values() {
    let error = reply(&[b"\xff\x26\x04#23000Duplicate entry 'joe@example.com' for key 'mail'"]);
    let mut talker = talker();
    talker.client(1, query("insert into t values (1)")).server(2, &error);
    let session = &talker.sessions[0];
    assert_eq!((session.status, session.response_code), (ResponseStatus::ClientError, 1062));
    assert_eq!(session.response_exception, "Duplicate entry '?' for key '?'");
}

#[test]
fn prepared_statements_are_known_by_number() {
    let prepare = packet(0, b"\x16select a from t where b = ? and c = 'x'");
    let prepared = reply(&[&[0, 7, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], COLUMN, EOF, COLUMN, EOF]);
    let execute = packet(0, b"\x17\x07\0\0\0\0\x01\0\0\0\0\x01\xfe\0\x06secret");
    let close = packet(0, b"\x19\x07\0\0\0");
    let turns = [
        (ToServer, &prepare[..]),
        (ToClient, &prepared),
        (ToServer, &execute),
        (ToClient, &reply(&[&[1], COLUMN, EOF, &[0, 0, 1, b'a'], EOF])),
        (ToServer, &close),
    ];
    let statement = "select a from t where b = ? and c = ?";
    check(
        &turns,
        &[
            &format!("COM_STMT_PREPARE {statement} Session Normal 0 1"),
            &format!("COM_STMT_EXECUTE {statement} Session Normal 0 1"),
            "COM_STMT_CLOSE  Request Normal 0 -",
        ],
    );
    let mut plain = Talker::new(Transport::Tcp, 3306, Config { redact: false, ..Config::default() });
    plain.client(0, &prepare).server(1, &prepared).client(2, &execute).finish();
    assert_eq!(plain.sessions[1].request_resource, "secret");
    assert_eq!((plain.sessions[1].request_id, &*plain.sessions[1].endpoint), (7, "SELECT t"));
}

fn login(capabilities: u32, tail: &[u8]) -> Vec<u8> {
    packet(1, &[&capabilities.to_le_bytes()[..], &[0, 0, 0, 1, 33], &[0; 23], tail].concat())
}

fn greeting() -> Vec<u8> {
    packet(0, &[&b"\x0a8.0.26\0\x01\0\0\0saltsalt\0\xff\xf7"[..], &[0x21; 40]].concat())
}

#[test]
fn logins_and_databases() {
    let login = login(0x0028_8208 | 0x1000, b"root\0\x03abcshop\0plugin\0");
    let turns = [
        (ToClient, &greeting()[..]),
        (ToServer, &login),
        (ToClient, &packet(2, b"\xfecaching_sha2_password\0salt\0")),
        (ToServer, &packet(3, b"secret-hash")),
        (ToClient, &packet(4, b"\x01\x03")),
        (ToClient, &packet(5, OK)),
        (ToServer, &query("use other")),
        (ToClient, &reply(&[OK])),
        (ToServer, &query("select 1")),
        (ToClient, &reply(&[OK])),
    ];
    check(
        &turns,
        &[
            "LOGIN Login username: root db: shop Session Normal 0 4",
            "COM_QUERY use other Session Normal 0 1",
            "COM_QUERY select ? Session Normal 0 1",
        ],
    );
    let mut talker = talker();
    for (direction, payload) in turns {
        talker.say(direction, 1, payload, payload.len());
    }
    let domains: Vec<_> = talker.sessions.iter().map(|session| &*session.request_domain).collect();
    assert_eq!(domains, ["shop", "shop", "other"]);
}

#[test]
fn after_the_switch_to_tls_nothing_is_read() {
    let tls = login(0x0028_8a00, b"");
    let mut talker = talker();
    talker.server(1, greeting()).client(2, tls).client(3, query("select 1")).server(4, reply(&[OK])).finish();
    talker.check(&[]);
}

/// A frame of the compressed protocol around what was not worth compressing.
fn framed(sequence: u8, inner: &[u8]) -> Vec<u8> {
    [&(inner.len() as u32).to_le_bytes()[..3], &[sequence, 0, 0, 0], inner].concat()
}

#[test]
fn compressed_conversations_pair_by_command() {
    let select = framed(0, &query("select a from t"));
    let opaque = [&[20, 0, 0, 1, 0, 1, 0][..], &[0x78; 20]].concat();
    let rest = [&[20, 0, 0, 2, 0, 1, 0][..], &[0x78; 20]].concat();
    let turns = [
        (ToServer, &select[..]),
        (ToClient, &opaque),
        (ToClient, &rest),
        (ToServer, &select),
        (ToClient, &framed(1, &reply(&[b"\xff\x7a\x04#42S02Table 'x' doesn't exist"]))),
    ];
    check(
        &turns,
        &[
            "COM_QUERY select a from t Session Unknown 0 1",
            "COM_QUERY select a from t Session ClientError 1146 1",
        ],
    );
}

/// A frame of the compressed protocol, compressed.
fn sealed(sequence: u8, inner: &[u8]) -> Vec<u8> {
    let body = miniz_oxide::deflate::compress_to_vec_zlib(inner, 6);
    let (size, whole) = ((body.len() as u32).to_le_bytes(), (inner.len() as u32).to_le_bytes());
    [&size[..3], &[sequence], &whole[..3], &body].concat()
}

#[test]
fn compressed_statements_and_errors_are_read() {
    let statement = query(&format!("select a from t where b in ({}'x')", "?,".repeat(60)));
    let error = reply(&[b"\xff\x28\x04#42000You have an error in your SQL syntax; check the manual"]);
    let (request, response) = (sealed(0, &statement), sealed(1, &error));
    let first = framed(0, &query("select 1"));
    let mut talker = talker();
    talker
        .client(1, first)
        .server(2, framed(1, &reply(&[OK])))
        .client(3, request)
        .server(4, response)
        .finish();
    assert_eq!(talker.sessions[1].endpoint, "SELECT t");
    let session = &talker.sessions[1];
    assert_eq!((session.status, session.response_code), (ResponseStatus::ClientError, 1064));
    assert!(session.response_exception.starts_with("You have an error"));
}

#[test]
fn a_statement_that_was_cut_is_kept_as_far_as_it_goes() {
    let statement = query(&format!("select a from t where b in ({}1)", "1,".repeat(5000)));
    let mut talker = talker();
    talker.say(ToServer, 1, &statement[..100], statement.len());
    talker.server(2, reply(&[OK])).client(3, query("select 2")).server(4, reply(&[OK]));
    assert_eq!(talker.sessions.len(), 2, "{:?}", talker.summary());
    assert_eq!(talker.sessions[0].endpoint, "SELECT t");
    assert_eq!(talker.sessions[0].request_length, statement.len() as u64);
    assert_eq!(talker.sessions[0].captured_request_byte, 100);
}

#[test]
fn query_attributes_are_not_part_of_the_statement() {
    let plain = packet(0, b"\x03\x00\x01select a from t");
    let one = packet(0, b"\x03\x01\x01\x00\x01\xfe\x00\x01k\x01v\x00select a from t");
    check(
        &[(ToServer, &plain[..]), (ToClient, &reply(&[OK])), (ToServer, &one), (ToClient, &reply(&[OK]))],
        &["COM_QUERY select a from t Session Normal 0 1", "COM_QUERY select a from t Session Normal 0 1"],
    );
}

#[test]
fn a_statement_tells_its_trace_in_a_comment() {
    let comment = "/*traceparent='00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'*/";
    let prepare = packet(0, format!("\x16select a from t where b = ? {comment}").as_bytes());
    let mut talker = talker();
    talker.client(1, query(&format!("select a from t {comment}"))).server(2, reply(&[OK]));
    talker.client(3, prepare).server(4, reply(&[&[0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]));
    talker.client(5, query("select a from t")).server(6, reply(&[OK])).finish();
    let traces: Vec<_> =
        talker.sessions.iter().map(|session| (&*session.trace_id, &*session.span_id)).collect();
    let told = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    assert_eq!(traces, [told, told, ("", "")]);
    assert_eq!(talker.sessions[0].request_resource, "select a from t ");
}
