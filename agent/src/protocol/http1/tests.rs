//! HTTP/1 as conversations.

use metaflow_schema::enums::ResponseStatus;

use crate::session::conversation::tests::Talker;
use crate::session::{Config, Direction, Session, Transport};

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";

fn session(request: &str, response: &str) -> Session {
    let mut talker = Talker::tcp(80);
    talker.client(1, request).server(2, response).finish();
    assert_eq!(talker.sessions.len(), 1, "{:?}", talker.sessions);
    *talker.sessions.remove(0)
}

#[test]
fn headers_become_fields() {
    let session = session(
        "POST /users/42?access_token=abc&x=1 HTTP/1.1\r\nhost: shop.example:8080\r\nUSER-AGENT: curl/8\r\n\
         Referer: http://u:p@r.example/x\r\nX-Forwarded-For: 10.0.0.1 , 10.0.0.2\r\nX-Request-ID: r-1\r\n\
         traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nAuthorization: Basic c2VjcmV0\r\n\
         Cookie: sid=secret\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 503 Service Unavailable\r\nX-Request-Id: r-2\r\nContent-Length: 2\r\n\r\nno",
    );
    assert_eq!(session.request_type, "POST");
    assert_eq!(session.request_resource, "/users/42?access_token=?&x=1");
    assert_eq!(session.endpoint, "/users/*");
    assert_eq!(session.request_domain, "shop.example:8080");
    assert_eq!(session.user_agent, "curl/8");
    assert_eq!(session.referer, "http://?@r.example/x");
    assert_eq!(session.http_proxy_client, "10.0.0.1");
    assert_eq!((&*session.x_request_id_request, &*session.x_request_id_response), ("r-1", "r-2"));
    assert_eq!(
        (&*session.trace_id, &*session.span_id),
        ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    );
    assert_eq!((session.status, session.response_code), (ResponseStatus::ServerError, 503));
    assert_eq!((&*session.response_exception, session.version), ("Service Unavailable", "1.1"));
    assert!(!format!("{session:?}").contains("secret"));
}

#[test]
fn headers_that_an_operator_named_come_in_place_of_the_usual_ones() {
    let request = "GET / HTTP/1.1\r\nHost: h\r\nX-Request-ID: r-1\r\nX-Correlation-ID: c-1\r\nuber-trace-id: aa:bb:0:1\r\n\
                   X-Trace: t-1\r\n\r\n";
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx-correlation-id: c-2\r\n\r\n";
    let check = |traces: &[&str], ids: &[&str], expected: [&str; 3]| {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (trace_headers, request_id_headers) = (names(traces), names(ids));
        let config = Config { trace_headers, request_id_headers, ..Config::default() };
        let mut talker = Talker::new(Transport::Tcp, 80, config);
        talker.client(1, request).server(2, response).finish();
        let session = &talker.sessions[0];
        let ids = [&*session.x_request_id_request, &*session.x_request_id_response];
        assert_eq!([&*session.trace_id, ids[0], ids[1]], expected);
    };
    check(&[], &[], ["aa", "r-1", ""]);
    check(&["x-trace", "uber-trace-id"], &[], ["t-1", "r-1", ""]);
    check(&["uber-trace-id", "x-trace"], &["x-correlation-id", "x-request-id"], ["aa", "c-1", "c-2"]);
    check(&["traceparent"], &["request-id"], ["", "", ""]);
}

#[test]
fn status_tells_who_failed() {
    #[track_caller]
    fn check(line: &str, status: ResponseStatus, exception: &str) {
        let session = session(GET, &format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!((session.status, &*session.response_exception), (status, exception));
    }
    check("200 OK", ResponseStatus::Normal, "");
    check("302 Found", ResponseStatus::Normal, "");
    check("404 Not Found", ResponseStatus::ClientError, "Not Found");
    check("500 ", ResponseStatus::ServerError, "");
}

#[test]
fn responses_follow_their_requests_whatever_delimits_them() {
    // Method, head and body of the first response; the second one must be found behind it.
    #[track_caller]
    fn check(method: &str, response: &str, length: u64) {
        let mut talker = Talker::tcp(80);
        talker.client(1, format!("{method} /a HTTP/1.1\r\n\r\n{GET}"));
        talker.server(2, format!("{response}HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")).finish();
        let codes: Vec<_> = talker.sessions.iter().map(|session| session.response_code).collect();
        assert_eq!(codes, [response[9..12].parse().unwrap(), 404], "{response}");
        assert_eq!(talker.sessions[0].response_length, length);
    }
    check("GET", OK, 41);
    check("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n", 40);
    check("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 300\r\n\r\n", 50);
    check("GET", "HTTP/1.1 204 No Content\r\n\r\n", 27);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
    check(
        "GET",
        &format!("{chunked}3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n"),
        53 + 12 + 15 + 3 + 6 + 2,
    );
    check("GET", &format!("{chunked}0\r\n\r\n"), 58);
}

#[test]
fn interim_responses_are_not_the_response() {
    let mut talker = Talker::tcp(80);
    talker.client(1, "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    talker.server(2, "HTTP/1.1 100 Continue\r\n\r\n").client(3, "abc").server(4, OK);
    talker.check(&["PUT /a Session Normal 200 3"]);
    assert_eq!(talker.sessions[0].captured_request_byte, 63);
}

#[test]
fn bodies_beyond_what_was_captured_are_skipped() {
    let mut talker = Talker::tcp(80);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
    talker.client(1, GET).say(Direction::ToClient, 2, head, 1000);
    talker.say(Direction::ToClient, 3, b"HTTP/1.1 500 no response\r\n\r\n", 3000);
    talker.after_gap(Direction::ToClient, 4, 1041, OK.as_bytes());
    talker.client(5, GET).server(6, OK);
    assert_eq!(talker.sessions.len(), 3, "{:?}", talker.summary());
    assert_eq!((talker.sessions[0].response_length, talker.sessions[0].end_time), (5041, 4));
    assert_eq!(talker.conversation.take_losses().resynchronisations, 0);
    talker.check(&["GET /a Session Normal 200 1", "  Response Normal 200 -", "GET /a Session Normal 200 1"]);
}

#[test]
fn a_cut_head_still_tells_its_first_line() {
    let mut talker = Talker::tcp(80);
    talker.say(Direction::ToServer, 1, b"GET /a HTTP/1.1\r\nHost: h\r\nX-Lo", 400);
    talker.say(Direction::ToClient, 2, b"HTTP/1.1 200 OK\r\nConte", 400);
    talker.finish().check(&["GET /a Session Normal 200 1"]);
    assert_eq!(talker.sessions[0].request_domain, "h");
}

#[test]
fn a_body_until_close_ends_with_the_flow_or_when_it_takes_too_long() {
    let response = "HTTP/1.0 200 OK\r\n\r\nabc";
    let mut talker = Talker::tcp(80);
    talker.client(1, GET).server(2, response).server(9, "defgh").check(&[]).finish();
    talker.check(&["GET /a Session Normal 200 1"]);
    assert_eq!((talker.sessions[0].response_length, talker.sessions[0].end_time), (27, 9));

    let mut talker = Talker::tcp(80);
    talker.client(1, GET).server(2, response);
    talker.conversation.expire(10_000_002, &mut talker.sessions);
    talker.check(&["GET /a Session Normal 200 1"]).finish();
    assert_eq!(talker.sessions.len(), 1);
}

#[test]
fn a_server_that_forgets_the_length_is_understood() {
    let mut talker = Talker::tcp(80);
    talker.client(1, GET).server(2, "HTTP/1.1 200 OK\r\n\r\n").client(3, GET).server(4, OK);
    talker.check(&["GET /a Session Normal 200 1", "GET /a Session Normal 200 1"]);
}

#[test]
fn upgrade_and_connect_end_http() {
    #[track_caller]
    fn check(request: &str, response: &str, expected: &str) {
        let mut talker = Talker::tcp(80);
        talker.client(1, request).server(2, response).client(3, GET).server(4, OK).finish();
        talker.check(&[expected]);
    }
    check(
        "GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n\x01\x02",
        "GET /chat Session Normal 101 1",
    );
    check("CONNECT h:443 HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "CONNECT h:443 Session Normal 200 1");
}

#[test]
fn hostile_bodies_lose_the_way_and_find_it_again() {
    let mut talker = Talker::tcp(80);
    talker.client(1, GET).server(2, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n");
    talker.client(3, GET).server(4, OK);
    talker.check(&["GET /a Session Normal 200 1", "GET /a Session Normal 200 1"]);
    assert_eq!(talker.conversation.take_losses().resynchronisations, 1);
}

#[test]
fn other_protocols_with_methods_are_not_http() {
    for request in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "OPTIONS sip:a SIP/2.0\r\n\r\n",
        "OPTIONS rtsp://a RTSP/1.0\r\n\r\n",
        "GETX / HTTP/1.1\r\n\r\n",
        "GET key\r\n",
        "POST",
    ] {
        Talker::tcp(80).client(1, request).finish().check(&[]);
    }
}
