//! PostgreSQL as conversations.

use crate::session::Direction::{self, ToClient, ToServer};
use crate::session::conversation::tests::Talker;

fn message(kind: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = (body.as_ref().len() as u32 + 4).to_be_bytes();
    [&[kind][..], &length, body.as_ref()].concat()
}

fn start(code: u32, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 8).to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

fn login() -> Vec<u8> {
    start(196_608, b"user\0joe\0database\0shop\0\0")
}

fn query(statement: &str) -> Vec<u8> {
    message(b'Q', format!("{statement}\0"))
}

fn parse(name: &str, statement: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{statement}\0\0\0"))
}

fn bind(name: &str) -> Vec<u8> {
    message(b'B', [b"\0", name.as_bytes(), b"\0\0\0\0\x01\0\0\0\x06secret\0\0"].concat())
}

fn execute() -> Vec<u8> {
    message(b'E', b"\0\0\0\0\0")
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn tag(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0"))
}

fn rows(count: usize) -> Vec<u8> {
    let row = message(b'D', b"\0\x01\0\0\0\x01x");
    [message(b'T', b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"), row.repeat(count)]
        .concat()
}

fn error(state: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{state}\0M{text}\0Fscan.l\0\0"))
}

/// Whole, and byte by byte.
#[track_caller]
fn check(turns: &[(Direction, Vec<u8>)], expected: &[&str]) -> Talker {
    let (mut whole, mut bytes) = (Talker::tcp(5432), Talker::tcp(5432));
    for (time, (direction, payload)) in turns.iter().enumerate() {
        whole.say(*direction, time as u64, payload, payload.len());
        for byte in payload {
            bytes.say(*direction, time as u64, &[*byte], 1);
        }
    }
    whole.finish().check(expected);
    bytes.finish().check(expected);
    assert_eq!(whole.sessions, bytes.sessions);
    assert_eq!(whole.conversation.take_losses(), Default::default());
    whole
}

#[test]
fn simple_queries_end_when_the_server_is_ready() {
    let select = query("select a from t where b = 'x'");
    let one = [rows(1), tag("SELECT 1"), ready()].concat();
    let many = [rows(3000), tag("SELECT 3000"), ready()].concat();
    let several = [rows(1), tag("SELECT 1"), tag("UPDATE 2"), ready()].concat();
    let line = "QUERY select a from t where b = ? Session Normal 0 1";
    let talker = check(
        &[
            (ToServer, select.clone()),
            (ToClient, one),
            (ToServer, select.clone()),
            (ToClient, many.clone()),
            (ToServer, select),
            (ToClient, several),
            (ToServer, query("")),
            (ToClient, [message(b'I', b""), ready()].concat()),
        ],
        &[line, line, line, "QUERY  Session Normal 0 1"],
    );
    let results: Vec<_> = talker.sessions.iter().map(|session| &*session.response_result).collect();
    assert_eq!(results, ["SELECT 1", "SELECT 3000", "SELECT 1, UPDATE 2", ""]);
    assert_eq!(talker.sessions[1].response_length, many.len() as u64);
    assert_eq!(talker.sessions[1].captured_response_byte as usize, many.len());
    assert_eq!((&*talker.sessions[0].endpoint, talker.sessions[0].version), ("SELECT t", "3.0"));
}

#[test]
fn errors_tell_state_and_text_without_values() {
    let talker = check(
        &[
            (ToServer, query("select 1")),
            (ToClient, [error("42601", "syntax error at or near \"secret\""), ready()].concat()),
            (ToServer, query("select 2")),
            (ToClient, [rows(2), error("57014", "canceling statement"), ready()].concat()),
            (ToServer, query("select 3")),
            (ToClient, [error("42P01", "no relation"), ready()].concat()),
        ],
        &[
            "QUERY select ? Session ClientError 42601 1",
            "QUERY select ? Session ServerError 57014 1",
            "QUERY select ? Session ClientError 0 1",
        ],
    );
    let texts: Vec<_> = talker.sessions.iter().map(|session| &*session.response_exception).collect();
    assert_eq!(
        texts,
        ["42601: syntax error at or near \"?\"", "57014: canceling statement", "42P01: no relation"]
    );
}

#[test]
fn executions_know_their_statement() {
    let prepare = [parse("s1", "select a from t where b = $1"), message(b'D', b"Ss1\0"), sync()].concat();
    let prepared = [message(b'1', b""), message(b't', b"\0\0"), rows(0), ready()].concat();
    let run = [bind("s1"), execute(), sync()].concat();
    let ran = [message(b'2', b""), rows(2), tag("SELECT 2"), ready()].concat();
    let at_once = [parse("", "delete from t"), bind(""), message(b'D', b"P\0"), execute(), sync()].concat();
    let done =
        [message(b'1', b""), message(b'2', b""), message(b'n', b""), tag("DELETE 7"), ready()].concat();
    let close = [message(b'C', b"Ss1\0"), sync()].concat();
    let talker = check(
        &[
            (ToServer, prepare),
            (ToClient, prepared),
            (ToServer, run.clone()),
            (ToClient, ran.clone()),
            (ToServer, at_once),
            (ToClient, done),
            (ToServer, close),
            (ToClient, [message(b'3', b""), ready()].concat()),
            // A statement that is no longer known.
            (ToServer, run),
            (ToClient, ran),
            (ToServer, message(b'X', b"")),
        ],
        &[
            "PARSE select a from t where b = $1 Session Normal 0 1",
            "EXECUTE select a from t where b = $1 Session Normal 0 1",
            "EXECUTE delete from t Session Normal 0 1",
            "CLOSE  Session Normal 0 1",
            "EXECUTE  Session Normal 0 1",
            "TERMINATE  Request Normal 0 -",
        ],
    );
    let results: Vec<_> = talker.sessions.iter().map(|session| &*session.response_result).collect();
    assert_eq!(results, ["", "SELECT 2", "DELETE 7", "", "SELECT 2", ""]);
    assert!(!format!("{:?}", talker.sessions).contains("secret"));
}

#[test]
fn each_execution_of_a_pipeline_has_its_own_answer() {
    let step = |table: &str| [parse("", &format!("insert into {table}")), bind(""), execute()].concat();
    let done = || [message(b'1', b""), message(b'2', b""), tag("INSERT 0 1")].concat();
    let pipeline = [step("a"), step("b"), step("c"), sync(), step("d"), sync()].concat();
    check(
        &[
            (ToServer, pipeline.clone()),
            (ToClient, [done(), done(), done(), ready(), done(), ready()].concat()),
            (ToServer, pipeline),
            (ToClient, [done(), error("23505", "duplicate"), ready(), done(), ready()].concat()),
        ],
        &[
            "EXECUTE insert into a Session Normal 0 1",
            "EXECUTE insert into b Session Normal 0 1",
            "EXECUTE insert into c Session Normal 0 1",
            "EXECUTE insert into d Session Normal 0 1",
            "EXECUTE insert into a Session Normal 0 1",
            "EXECUTE insert into b Session ClientError 23505 1",
            "EXECUTE insert into c Session Unknown 0 1",
            "EXECUTE insert into d Session Normal 0 1",
        ],
    );
}

#[test]
fn copies_count_their_data() {
    let data = [message(b'd', vec![b'x'; 9000]), message(b'd', b"y\n"), message(b'c', b"")].concat();
    let copy = query("copy t from stdin");
    let talker = check(
        &[
            (ToServer, copy.clone()),
            (ToClient, message(b'G', b"\0\0\x01\0\0")),
            (ToServer, data.clone()),
            (ToClient, [tag("COPY 2"), ready()].concat()),
            (ToServer, query("copy t to stdout")),
            (
                ToClient,
                [
                    message(b'H', b"\0\0\x01\0\0"),
                    message(b'd', b"x\n"),
                    message(b'c', b""),
                    tag("COPY 1"),
                    ready(),
                ]
                .concat(),
            ),
        ],
        &["QUERY copy t from stdin Session Normal 0 3", "QUERY copy t to stdout Session Normal 0 1"],
    );
    let session = &talker.sessions[0];
    assert_eq!(session.request_length, (copy.len() + data.len()) as u64);
    assert_eq!(session.captured_request_byte as usize, copy.len() + data.len());
    assert_eq!((&*session.response_result, &*session.endpoint), ("COPY 2", "COPY t"));
}

#[test]
fn logins_passwords_and_encryption() {
    let welcome =
        [message(b'R', b"\0\0\0\0"), message(b'S', b"a\0b\0"), message(b'K', [0; 8]), ready()].concat();
    let talker = check(
        &[
            (ToServer, start(80_877_103, b"")),
            (ToClient, b"N".to_vec()),
            (ToServer, login()),
            (ToClient, message(b'R', b"\0\0\0\x05salt")),
            (ToServer, message(b'p', b"md5secret\0")),
            (ToClient, welcome),
            (ToServer, query("select 1")),
            (ToClient, [rows(1), tag("SELECT 1"), ready()].concat()),
        ],
        &["LOGIN Login username: joe db: shop Session Normal 0 3", "QUERY select ? Session Normal 0 1"],
    );
    assert!(talker.sessions.iter().all(|session| session.request_domain == "shop"));
    assert!(!format!("{:?}", talker.sessions).contains("secret"));
    // After the switch nothing is read.
    let encrypted = [
        (ToServer, start(80_877_103, b"")),
        (ToClient, b"S".to_vec()),
        (ToServer, query("select 1")),
        (ToClient, [tag("SELECT 1"), ready()].concat()),
    ];
    check(&encrypted, &[]);
    let refused = [(ToServer, login()), (ToClient, error("28P01", "password authentication failed"))];
    check(&refused, &["LOGIN Login username: joe db: shop Session ClientError 0 1"]);
    check(&[(ToServer, start(80_877_102, &[7; 8]))], &["CANCEL  Request Normal 0 -"]);
}

#[test]
fn a_statement_tells_its_trace_in_a_comment() {
    let comment = "/*traceparent='00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'*/";
    let mut talker = Talker::tcp(5432);
    talker.client(1, query(&format!("select 1 {comment}"))).server(2, [tag("SELECT 1"), ready()].concat());
    talker.client(3, [parse("", &format!("select 2 {comment}")), bind(""), execute(), sync()].concat());
    talker.server(4, [tag("SELECT 1"), ready()].concat()).finish();
    assert!(talker.sessions.iter().all(|session| session.trace_id == "0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(talker.sessions.len(), 2);
}

#[test]
fn a_conversation_is_joined_in_its_middle_and_after_a_loss() {
    let mut talker = Talker::tcp(5432);
    let reply = [rows(1), tag("SELECT 1"), ready()].concat();
    talker.server(1, &reply).client(2, query("select 1")).server(4, &reply);
    talker.check(&["  Response Normal 0 -", "QUERY select ? Session Normal 0 2"]);
    talker.client(5, query("select 2"));
    talker.after_gap(ToClient, 6, 100, &ready());
    talker.client(7, query("select 3")).server(8, &reply);
    assert_eq!(
        talker.summary()[2..],
        ["QUERY select ? Request Unknown 0 -", "QUERY select ? Session Normal 0 1"]
    );
    assert_eq!(talker.conversation.take_losses().resynchronisations, 1);
}

#[test]
fn statements_are_known_on_any_port_and_cut_ones_as_far_as_they_go() {
    let statement = query(&format!("select a from t where b in ({}1)", "1,".repeat(5000)));
    let mut talker = Talker::tcp(40_000);
    talker.say(ToServer, 1, &statement[..100], statement.len());
    talker.server(2, [tag("SELECT 0"), ready()].concat()).client(3, query("select 2"));
    talker.server(5, [tag("SELECT 1"), ready()].concat());
    assert_eq!(talker.sessions.len(), 2, "{:?}", talker.summary());
    assert_eq!((&*talker.sessions[0].endpoint, talker.sessions[0].captured_request_byte), ("SELECT t", 100));
    assert_eq!(talker.sessions[0].request_length, statement.len() as u64);
    assert_eq!(talker.sessions[1].response_duration, Some(2));
}
