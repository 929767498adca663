//! DNS messages as bytes.

use super::*;

/// A query for `name` with a flag word, and a section of raw records with its counts.
fn packet(flags: u16, name: &str, kind: u16, counts: [u16; 3], records: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(records);
    bytes
}

fn parse(bytes: &[u8]) -> Option<Message> {
    let config = Config { expected_nxdomain_suffixes: vec![".cluster.local".into()], ..Config::default() };
    let ctx = Context { config: &config, transport: Transport::Udp, server_port: 53 };
    message(&ctx, bytes, Envelope::default())
}

fn response(bytes: &[u8]) -> Response {
    match parse(bytes) {
        Some(Message::Response(response)) => response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn codes_tell_who_failed() {
    #[track_caller]
    fn check(name: &str, rcode: u16, status: ResponseStatus, exception: &str) {
        let outcome = response(&packet(0x8180 | rcode, name, 1, [0; 3], &[])).outcome;
        assert_eq!(
            (outcome.status, outcome.code, &*outcome.exception),
            (status, i32::from(rcode), exception)
        );
    }
    check("a.example", 0, ResponseStatus::Normal, "");
    check("a.example", 1, ResponseStatus::ClientError, "FORMERR");
    check("a.example", 2, ResponseStatus::ServerError, "SERVFAIL");
    check("a.example", 3, ResponseStatus::ClientError, "NXDOMAIN");
    check("a.ns.svc.cluster.local", 3, ResponseStatus::Normal, "");
    check("a.example", 5, ResponseStatus::ServerError, "REFUSED");
}

#[test]
fn answers_are_listed_with_type_value_and_ttl() {
    #[track_caller]
    fn check(kind: u16, data: &[u8], expected: &str) {
        let mut record = vec![0xc0, 12];
        record.extend(kind.to_be_bytes());
        record.extend([0, 1, 0, 0, 0, 60]);
        record.extend((data.len() as u16).to_be_bytes());
        record.extend(data);
        assert_eq!(response(&packet(0x8180, "a.example", kind, [1, 0, 0], &record)).result, expected);
    }
    check(1, &[10, 0, 0, 1], "A=10.0.0.1 TTL=60");
    check(28, &[0; 16], "AAAA=:: TTL=60");
    check(5, &[1, b'b', 0xc0, 14], "CNAME=b.example TTL=60");
    check(15, &[0, 10, 1, b'm', 0], "MX=10 m TTL=60");
    check(33, &[0, 1, 0, 2, 0, 80, 1, b's', 0], "SRV=1 2 80 s TTL=60");
    check(16, &[3, b'a', b' ', b'b'], "TXT=a?b TTL=60");
    // A record that does not fit its length, and one of a type that is not shown.
    check(1, &[10, 0], "");
    check(16, &[], "");
    check(46, &[1, 2, 3], "");
}

#[test]
fn names_with_loops_and_cuts_are_refused() {
    let mut looped = packet(0x0100, "", 1, [0; 3], &[]);
    looped.splice(12..13, [0xc0, 12]);
    assert_eq!(parse(&looped), None);
    let whole = packet(0x0100, "www.example.com", 1, [0; 3], &[]);
    for end in 0..whole.len() {
        assert_eq!(parse(&whole[..end]), None, "{end}");
    }
}

#[test]
fn a_query_tells_type_and_name() {
    let Some(Message::Request(request)) = parse(&packet(0x0100, "n1.42.example", 65, [0; 3], &[])) else {
        panic!()
    };
    assert_eq!((&*request.request_type, &*request.resource), ("HTTPS", "n1.42.example"));
    assert_eq!((&*request.endpoint, request.number), ("n1.*.example", 0x1234));
}

#[test]
fn other_protocols_are_not_recognised() {
    #[track_caller]
    fn check(bytes: &[u8], transport: Transport, expected: Recognition) {
        let probe = Probe { bytes, transport, usual_port: false, last: true };
        assert_eq!(recognise(&probe), expected);
    }
    check(&packet(0x0100, "a.example", 1, [0; 3], &[]), Transport::Udp, Recognition::Request);
    check(&packet(0x8180, "a.example", 1, [0; 3], &[]), Transport::Udp, Recognition::Response);
    check(&packet(0x0100, "a.example", 1, [5, 0, 0], &[]), Transport::Udp, Recognition::No);
    check(&[0; 64], Transport::Udp, Recognition::No);
    check(&[0; 64], Transport::Tcp, Recognition::No);
    check(
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        Transport::Udp,
        Recognition::No,
    );
    check(b"GET / HTTP/1.1\r\n\r\n", Transport::Tcp, Recognition::No);
}
