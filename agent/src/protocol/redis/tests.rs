//! Redis as conversations.

use metaflow_schema::enums::{L7Protocol, ResponseStatus};

use crate::session::conversation::tests::Talker;
use crate::session::{Config, Transport};

/// A command as clients send it.
fn command(words: &[&str]) -> String {
    let mut line = format!("*{}\r\n", words.len());
    for word in words {
        line.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    line
}

#[track_caller]
fn check(requests: &str, responses: &str, expected: &[&str]) {
    let mut talker = Talker::tcp(6379);
    talker.client(1, requests).server(3, responses).finish();
    talker.check(expected);
    // The same byte by byte.
    let mut talker = Talker::tcp(6379);
    for byte in requests.bytes() {
        talker.client(1, [byte]);
    }
    for byte in responses.bytes() {
        talker.server(3, [byte]);
    }
    talker.finish().check(expected);
}

#[test]
fn values_are_not_kept() {
    #[track_caller]
    fn check(words: &[&str], redacted: &str) {
        let mut talker = Talker::tcp(6379);
        talker.client(1, command(words)).finish();
        assert_eq!(talker.sessions[0].request_resource, redacted);
        assert_eq!(talker.sessions[0].endpoint, words[0].to_uppercase());
        let off = Config { redact: false, ..Config::default() };
        let mut talker = Talker::new(Transport::Tcp, 6379, off);
        talker.client(1, command(words)).finish();
        let plain = words.join(" ").replacen(words[0], &words[0].to_uppercase(), 1);
        assert_eq!(talker.sessions[0].request_resource, plain);
    }
    check(&["get", "user:1"], "GET user:1");
    check(&["SET", "k", "secret", "EX", "10"], "SET k ? ? ?");
    check(&["AUTH", "joe", "secret"], "AUTH ? ?");
    check(&["HELLO", "3", "AUTH", "joe", "secret"], "HELLO ? ? ? ?");
    check(&["LRANGE", "l", "0", "299"], "LRANGE l 0 299");
    check(&["FT.SEARCH", "idx", "secret"], "FT.SEARCH idx ?");
}

#[test]
fn pipelines_pair_in_order() {
    let requests =
        [command(&["GET", "a"]), command(&["LRANGE", "l", "0", "1"]), "PING\r\n".to_owned()].concat();
    check(
        &requests,
        "$-1\r\n*2\r\n$1\r\nx\r\n*2\r\n:1\r\n+y\r\n+PONG\r\n",
        &[
            "GET GET a Session Normal 0 2",
            "LRANGE LRANGE l 0 1 Session Normal 0 2",
            "PING PING Session Normal 0 2",
        ],
    );
}

#[test]
fn version_3_values_are_walked_over() {
    let hello = command(&["HELLO", "3"]);
    let get = command(&["GET", "a"]);
    check(
        &format!("{hello}{get}{get}{get}"),
        "%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n+proto\r\n:3\r\n>2\r\n+invalidate\r\n*1\r\n+a\r\n_\r\n\
         |1\r\n+ttl\r\n:5\r\n,1.5\r\n~2\r\n#t\r\n(123\r\n",
        &[
            "HELLO HELLO ? Session Normal 0 2",
            "GET GET a Session Normal 0 2",
            "GET GET a Session Normal 0 2",
            "GET GET a Session Normal 0 2",
        ],
    );
}

#[test]
fn errors_tell_who_failed() {
    #[track_caller]
    fn check(reply: &str, status: ResponseStatus, exception: &str) {
        let mut talker = Talker::tcp(6379);
        talker.client(1, command(&["GET", "a"])).server(2, reply).finish();
        let session = &talker.sessions[0];
        assert_eq!((session.status, &*session.response_exception), (status, exception));
        assert_eq!(session.response_result, "Error");
    }
    check("-ERR unknown command 'x'\r\n", ResponseStatus::ClientError, "ERR unknown command '?'");
    check("-WRONGTYPE bad\r\n", ResponseStatus::ClientError, "WRONGTYPE bad");
    check("-LOADING dataset\r\n", ResponseStatus::ServerError, "LOADING dataset");
    check("-MOVED 1 a:1\r\n", ResponseStatus::Normal, "MOVED 1 a:1");
    check("!9\r\nERR a bad\r\n", ResponseStatus::ClientError, "ERR a bad");
}

#[test]
fn published_messages_answer_nothing() {
    let message = "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n";
    check(
        &[command(&["SUBSCRIBE", "c"]), command(&["PING"])].concat(),
        &format!("*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n{message}{message}+PONG\r\n{message}"),
        &["SUBSCRIBE SUBSCRIBE c Session Normal 0 2", "PING PING Session Normal 0 2"],
    );
}

#[test]
fn sizes_are_those_of_the_messages() {
    let mut talker = Talker::tcp(6379);
    let set = command(&["SET", "k", &"v".repeat(5000)]);
    let (first, second) = set.split_at(3000);
    talker.client(1, first).client(2, second);
    talker.server(3, "$6000\r\n").server(4, "x".repeat(6002)).finish();
    let session = &talker.sessions[0];
    assert_eq!(
        (session.request_length, session.captured_request_byte as usize),
        (set.len() as u64, set.len())
    );
    assert_eq!((session.response_length, session.captured_response_byte, session.end_time), (6009, 6009, 4));
    assert_eq!(session.request_resource, "SET k ?...");
}

#[test]
fn hostile_values_are_bounded() {
    let mut talker = Talker::tcp(6379);
    talker.client(1, command(&["GET", "a"])).server(2, "*1\r\n".repeat(1000));
    talker.server(3, "*999999999999999\r\n$999999999999999\r\n").finish();
    talker.check(&["GET GET a Session Normal 0 1", "  Response Normal 0 -"]);
    assert!(talker.conversation.take_losses().resynchronisations > 0);
}

#[test]
fn elsewhere_only_commands_are_certain() {
    #[track_caller]
    fn check(port: u16, payload: &str, expected: L7Protocol) {
        let mut talker = Talker::tcp(port);
        talker.client(1, payload);
        assert_eq!(talker.conversation.protocol(), expected, "{payload}");
    }
    check(7000, &command(&["GET", "a"]), L7Protocol::Redis);
    check(7000, "+OK POP3 ready\r\n", L7Protocol::Unknown);
    check(7000, "*1\r\n$3\r\nxyz\r\n", L7Protocol::Unknown);
    check(6379, ":1\r\n", L7Protocol::Redis);
    check(6379, "ping\r\n", L7Protocol::Redis);
    check(6379, "hello world\r\n", L7Protocol::Redis);
    check(6379, "lorem ipsum\r\n", L7Protocol::Unknown);
}
