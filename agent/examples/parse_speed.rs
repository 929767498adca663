//! Nanoseconds a request (with its response) of each protocol, from bytes to
//!
//! * messages: the parser alone, which is what the mark is about;
//! * sessions: as the agent does it, requests paired with their responses.
//!
//! A name as argument picks one protocol. The conversations are made here, so that nothing but the parsers is timed; the best of several
//! rounds counts, because a round that the machine disturbed says nothing.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use metaflow_agent::protocol::alone::Alone;
use metaflow_agent::session::{Config, Conversation, Direction, Segment, Transport};
use metaflow_schema::enums::L7Protocol;

const ROUNDS: usize = 500;
const REQUESTS: u32 = 500;
/// For the parser of HTTP/1 alone.
const MARK: u128 = 500;

const HTTP_REQUEST: &[u8] =
    b"GET /api/v1/users/42/orders?page=2&size=50 HTTP/1.1\r\nHost: shop.example.com\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: application/json\r\n\
Accept-Encoding: gzip, deflate\r\nX-Request-ID: 46364834-4fb8-9692-a5d6-ab638447a787\r\n\
traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nConnection: keep-alive\r\n\r\n";
const HTTP_RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.24.0\r\nDate: Sun, 22 Nov 2026 14:00:00 GMT\r\n\
Content-Type: application/json\r\nContent-Length: 32\r\nConnection: keep-alive\r\n\r\n\
{\"orders\":[1,2,3,4,5,6,7,8,9,0]}";
/// A request as browsers and proxies repeat it: fields by their place in the table (here the fixed one) and some literals. Every case
/// is said again and again with the same stream, which the parser takes for a new one each time.
const HTTP2_REQUEST: &[u8] = b"\0\0\x4a\x01\x05\0\0\0\x01\x82\x86\x04\x20/api/v1/users/42/orders?page=two\
\x01\x10shop.example.com\x0f\x2b\x0bMozilla/5.0\x0f\x04\x03*/*";
const HTTP2_RESPONSE: &[u8] =
    b"\0\0\x07\x01\x04\0\0\0\x01\x88\x0f\x10\x03a/b\0\0\x20\0\x01\0\0\0\x01{\"orders\":[1,2,3,4,5,6,7,8,9,0]}";
const GRPC_REQUEST: &[u8] =
    b"\0\0\x38\x01\x04\0\0\0\x01\x83\x86\x04\x12/shop.Cart/GetCart\x01\x0dcart.svc:7070\
\x0f\x10\x10application/grpc\0\0\x07\0\x01\0\0\0\x01\0\0\0\0\x02ab";
const GRPC_RESPONSE: &[u8] = b"\0\0\x14\x01\x04\0\0\0\x01\x88\x0f\x10\x10application/grpc\
\0\0\x07\0\0\0\0\0\x01\0\0\0\0\x02ab\0\0\x0f\x01\x05\0\0\0\x01\0\x0bgrpc-status\x010";
const REDIS_REQUEST: &[u8] = b"*2\r\n$3\r\nGET\r\n$18\r\nuser_conf_config_1\r\n";
const REDIS_RESPONSE: &[u8] = b"$11\r\nhello world\r\n";
const MYSQL_STATEMENT: &[u8] = b"\x03select id, name from users where id = 42 and kind = 'ab'";
const MYSQL_COLUMN: &[u8] = b"\x03def\0\0\0\x01?\0\x0c\x3f\0\0\0\0\0\xfd\x80\0\0\0\0";
const MYSQL_MARKER: &[u8] = b"\xfe\0\0\x02\0";
/// A prepared statement's execution, as drivers send it.
const POSTGRESQL_REQUEST: &[u8] = b"P\0\0\0\x3a\0select id, name from users where id = $1 and k = 1\0\0\0\
B\0\0\0\x12\0\0\0\0\0\x01\0\0\0\x0242\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04";
const POSTGRESQL_RESPONSE: &[u8] =
    b"1\0\0\0\x042\0\0\0\x04T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\
\xff\xff\xff\xff\0\0D\0\0\0\x0c\0\x01\0\0\0\x0242C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
const DNS_REQUEST: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
const DNS_RESPONSE: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01\
\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01";

/// A protocol's usual exchange.
struct Case {
    name: &'static str,
    protocol: L7Protocol,
    transport: Transport,
    port: u16,
    request: Vec<u8>,
    response: Vec<u8>,
}

fn cases() -> [Case; 7] {
    let case = |name, protocol, port, request: &[u8], response: &[u8]| {
        let transport = if port == 53 { Transport::Udp } else { Transport::Tcp };
        Case { name, protocol, transport, port, request: request.to_vec(), response: response.to_vec() }
    };
    let row = b"\x0242".as_slice();
    let rows = mysql(1, &[&[1], MYSQL_COLUMN, MYSQL_MARKER, row, MYSQL_MARKER]);
    [
        case("HTTP/1", L7Protocol::Http1, 80, HTTP_REQUEST, HTTP_RESPONSE),
        case("HTTP/2", L7Protocol::Http2, 8080, HTTP2_REQUEST, HTTP2_RESPONSE),
        case("gRPC", L7Protocol::Http2, 8081, GRPC_REQUEST, GRPC_RESPONSE),
        case("Redis", L7Protocol::Redis, 6379, REDIS_REQUEST, REDIS_RESPONSE),
        case("MySQL", L7Protocol::MySql, 3306, &mysql(0, &[MYSQL_STATEMENT]), &rows),
        case("PostgreSQL", L7Protocol::PostgreSql, 5432, POSTGRESQL_REQUEST, POSTGRESQL_RESPONSE),
        case("DNS", L7Protocol::Dns, 53, DNS_REQUEST, DNS_RESPONSE),
    ]
}

/// Packets with their lengths and numbers.
fn mysql(first: u8, bodies: &[&[u8]]) -> Vec<u8> {
    let packet = |(sequence, body): (u8, &&[u8])| [&[body.len() as u8, 0, 0, sequence][..], body].concat();
    (first..).zip(bodies).flat_map(packet).collect()
}

fn main() -> std::io::Result<()> {
    let config = Arc::new(Config::default());
    let mut out = std::io::stdout().lock();
    let wanted = std::env::args().nth(1);
    writeln!(out, "ns a request   parser alone   with pairing")?;
    for case in cases().iter().filter(|case| wanted.as_deref().is_none_or(|name| name == case.name)) {
        let alone = best(|| parse(case, &config));
        let paired = best(|| pair(case, &config));
        writeln!(out, "{:<12}   {alone:>12}   {paired:>12}", case.name)?;
    }
    writeln!(out, "mark: HTTP/1 {MARK}, parser alone")
}

fn best(round: impl Fn() -> u128) -> u128 {
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}

/// Nanoseconds a request from bytes to messages.
fn parse(case: &Case, config: &Arc<Config>) -> u128 {
    let Some(mut parser) = Alone::new(case.protocol, case.transport, case.port, config) else { return 0 };
    let mut messages = 0;
    let nanoseconds = round(case, |segment| messages += parser.segment(segment));
    assert!(messages >= 2 * REQUESTS as usize, "{}", case.name);
    nanoseconds
}

/// Nanoseconds a request from bytes to sessions.
fn pair(case: &Case, config: &Arc<Config>) -> u128 {
    let mut conversation = Conversation::new(case.transport, case.port, config);
    // Sessions are taken away as they come, as the flow table does.
    let mut sessions = Vec::with_capacity(4);
    let mut paired = 0;
    let nanoseconds = round(case, |segment| {
        conversation.segment(segment, &mut sessions);
        paired += sessions.iter().filter(|session| session.response_duration == Some(5)).count();
        sessions.clear();
    });
    assert_eq!(paired, REQUESTS as usize, "{}", case.name);
    nanoseconds
}

/// Nanoseconds that `take` needs for a request and its response.
fn round(case: &Case, mut take: impl FnMut(&Segment<'_>)) -> u128 {
    let segment = |timestamp, direction, payload: &[u8], tcp_seq, take: &mut dyn FnMut(&Segment<'_>)| {
        let payload_length = payload.len() as u32;
        take(&Segment { timestamp, direction, tcp_seq, payload, payload_length, gap: false });
    };
    let start = Instant::now();
    for request in 0..REQUESTS {
        let time = u64::from(request) * 10;
        let (asked, answered) = (request * case.request.len() as u32, request * case.response.len() as u32);
        segment(time, Direction::ToServer, &case.request, asked, &mut take);
        segment(time + 5, Direction::ToClient, &case.response, answered, &mut take);
    }
    start.elapsed().as_nanos() / u128::from(REQUESTS)
}
