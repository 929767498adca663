//! What holds for any bytes: parsers neither panic nor produce without bound, and how a stream is cut into segments changes nothing.

use std::sync::{Arc, LazyLock};

use metaflow_agent::session::{Config, Conversation, Direction, Losses, Segment, Session, Transport};
use proptest::prelude::*;

use super::replay::payloads;

/// Real conversations: server port and turns.
static REAL: LazyLock<Vec<(u16, Vec<Turn>)>> = LazyLock::new(|| {
    let captures = [
        "dns/dns.pcap",
        "dns/nxdomain.pcap",
        "http/httpv1.pcap",
        "http/client-ip.pcap",
        "http/istio-tcp-frag.pcap",
        "http/h2c_ascii.pcap",
        "http/grpc-unary.pcap",
        "http/grpc-server-stream.pcap",
        "mysql/large-response.pcap",
        "mysql/mysql-database.pcap",
        "mysql/mysql-exec.pcap",
        "mysql/mysql-statement-id.pcap",
        "mysql/mysql-table-select.pcap",
        "mysql/mysql-use.pcap",
        "mysql/partial-packet-compressed.pcap",
        "redis/redis-debug.pcap",
        "postgre/prepare_stat.pcap",
        "postgre/error.pcap",
    ];
    let mut found: Vec<(u16, Vec<Turn>)> = captures.iter().map(|capture| conversation(capture)).collect();
    found.push((80, handmade_http()));
    found.push((6379, handmade_redis()));
    found.push((8080, handmade_http2()));
    found.push((5432, handmade_postgresql()));
    found
});

/// What one side says until the other one speaks.
#[derive(Debug, Clone)]
struct Turn {
    direction: Direction,
    bytes: Vec<u8>,
}

/// The first conversation of a capture.
fn conversation(capture: &str) -> (u16, Vec<Turn>) {
    let mut payloads = payloads(capture);
    let (client, server) = (payloads[0].source, payloads[0].destination);
    payloads.retain(|payload| {
        [payload.source, payload.destination].iter().all(|end| [client, server].contains(end))
    });
    let mut turns: Vec<Turn> = Vec::new();
    for payload in payloads.into_iter().filter(|payload| !payload.bytes.is_empty()) {
        let direction = if payload.source == client { Direction::ToServer } else { Direction::ToClient };
        match turns.last_mut() {
            Some(turn) if turn.direction == direction => turn.bytes.extend(payload.bytes),
            _ => turns.push(Turn { direction, bytes: payload.bytes }),
        }
    }
    (server.1, turns)
}

fn turns(texts: &[&str]) -> Vec<Turn> {
    let direction = |at: usize| if at.is_multiple_of(2) { Direction::ToServer } else { Direction::ToClient };
    let turn =
        |(at, text): (usize, &&str)| Turn { direction: direction(at), bytes: text.as_bytes().to_vec() };
    texts.iter().enumerate().map(turn).collect()
}

fn handmade_http() -> Vec<Turn> {
    turns(&[
        "POST /a?token=x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\nHEAD /b HTTP/1.1\r\n\r\nGET /c/1 HTTP/1.1\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello worldHTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nHTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nc;x\r\n0123456789ab\r\n0\r\nT: 1\r\n\r\n",
        "\r\nGET /last HTTP/1.0\r\nb3: aa-bb\r\n\r\n",
        "HTTP/1.0 404 No\r\n\r\nuntil the end",
    ])
}

/// An upgrade, pushed responses, header blocks in parts, streams of messages, resets; a table that is referred to.
fn handmade_http2() -> Vec<Turn> {
    turns(&[
        "GET /a HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64\
         \0\0\x0d\x01\x04\0\0\0\x01\x48\x03404\x0f\x0d\x012\x0f\x10\x01x\0\0\x02\0\x01\0\0\0\x01no",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
         \0\0\x1b\x01\x04\0\0\0\x03\x44\x06/s.S/m\x5f\x10application/grpc\x3e\
         \0\0\x0c\0\x01\0\0\0\x03\0\0\0\0\x01x\0\0\0\0\x01y\
         \0\0\x04\x01\0\0\0\0\x05\x44\x02/b\0\0\x03\x09\x04\0\0\0\x05\x41\x01h",
        "\0\0\x05\x01\x04\0\0\0\x03\x48\x03200\0\0\x03\0\0\0\0\0\x03\0\0\0\0\0\x09\0\0\0\0\0\x03\0\x01x\0\0\0\0\x01z\
         \0\0\x10\x01\x05\0\0\0\x03\x40\x0bgrpc-status\x0213\0\0\x04\x03\0\0\0\0\x05\0\0\0\x07",
    ])
}

fn handmade_redis() -> Vec<Turn> {
    turns(&[
        "*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\nget k\r\n",
        "+PONG\r\n-OOM no\r\n*2\r\n*2\r\n:1\r\n$2\r\nab\r\n%1\r\n+a\r\n_\r\n",
        "*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n",
        ">2\r\n+x\r\n:1\r\n+OK\r\n",
    ])
}

fn handmade_postgresql() -> Vec<Turn> {
    turns(&[
        "\0\0\0\x15\0\x03\0\0user\0joe\0\0\0\0\0",
        "R\0\0\0\x08\0\0\0\0S\0\0\0\x08a\0b\0Z\0\0\0\x05I",
        "P\0\0\0\x15s\0select $1, 'x'\0D\0\0\0\x07Ss\0S\0\0\0\x04",
        "1\0\0\0\x04t\0\0\0\x06\0\0n\0\0\0\x04Z\0\0\0\x05I",
        "B\0\0\0\x0d\0s\0\0\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0B\0\0\0\x0d\0x\0\0\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04",
        "2\0\0\0\x04D\0\0\0\x0b\0\x01\0\0\0\x01xC\0\0\0\x0dSELECT 1\0E\0\0\0\x16SERROR\0C42601\0Mx\0\0Z\0\0\0\x05I",
        "Q\0\0\0\x16copy t from stdin\0",
        "G\0\0\0\x08\0\0\x01\0",
        "d\0\0\0\x06a\nc\0\0\0\x04",
        "C\0\0\0\x0bCOPY 1\0Z\0\0\0\x05I",
    ])
}

/// How segments are made of turns.
struct Cutter<'a> {
    /// Sizes of segments, again and again.
    cuts: &'a [usize],
    /// Captured bytes of a segment at most.
    snap: usize,
    /// Of so many segments one is lost.
    lost_every: usize,
}

const WHOLE: Cutter<'static> = Cutter { cuts: &[], snap: usize::MAX, lost_every: 0 };

fn speak(transport: Transport, port: u16, turns: &[Turn], cutter: &Cutter<'_>) -> (Vec<Session>, Losses) {
    let mut conversation = Conversation::new(transport, port, &Arc::new(Config::default()));
    let mut sessions = Vec::new();
    let mut cuts = cutter.cuts.iter().copied().cycle();
    let (mut next, mut gap, mut count) = ([77u32, u32::MAX - 100], [false; 2], 0);
    for (time, turn) in turns.iter().enumerate() {
        let side = turn.direction as usize;
        let mut rest = &turn.bytes[..];
        while !rest.is_empty() {
            let (bytes, after) = rest.split_at(cuts.next().unwrap_or(rest.len()).clamp(1, rest.len()));
            let tcp_seq = next[side];
            next[side] = next[side].wrapping_add(bytes.len() as u32);
            rest = after;
            count += 1;
            if cutter.lost_every > 0 && count % cutter.lost_every == 0 {
                gap[side] = true;
                continue;
            }
            let segment = Segment {
                timestamp: time as u64,
                direction: turn.direction,
                tcp_seq,
                payload: &bytes[..bytes.len().min(cutter.snap)],
                payload_length: bytes.len() as u32,
                gap: std::mem::take(&mut gap[side]),
            };
            conversation.segment(&segment, &mut sessions);
        }
        conversation.expire(time as u64, &mut sessions);
    }
    conversation.expire(u64::MAX, &mut sessions);
    conversation.finish(&mut sessions);
    (sessions.into_iter().map(|session| *session).collect(), conversation.take_losses())
}

/// No more sessions than messages can be in so many bytes, and none with much text.
fn check_bounds(turns: &[Turn], sessions: &[Session]) -> Result<(), TestCaseError> {
    let bytes: usize = turns.iter().map(|turn| turn.bytes.len()).sum();
    prop_assert!(sessions.len() <= bytes / 3 + 1, "{} sessions of {bytes} bytes", sessions.len());
    for session in sessions {
        let Session { request_resource, endpoint, response_result, response_exception, .. } = session;
        let long = [request_resource, endpoint, response_result, response_exception];
        prop_assert!(long.iter().all(|text| text.len() <= 3 * 4096), "{session:?}");
        let Session { request_type, request_domain, trace_id, span_id, user_agent, referer, .. } = session;
        let short = [request_type, request_domain, trace_id, span_id, user_agent, referer];
        prop_assert!(short.iter().all(|text| text.len() <= 1024), "{session:?}");
    }
    Ok(())
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(53), Just(80), Just(3306), Just(6379), Just(5432), Just(9999)]
}

/// Pieces that parsers react to, among bytes that they do not expect.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        proptest::sample::select(vec![
            &b"GET / HTTP/1.1\r\n"[..],
            b"HTTP/1.1 200 OK\r\n",
            b"Content-Length: 18446744073709551615\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n",
            b"fffffffffffffff\r\n",
            b"*3\r\n",
            b"$3\r\nGET\r\n",
            b"$-1\r\n",
            b"*1\r\n",
            b"$9999999999999\r\n",
            b"\x01\0\0\0\x0e",
            b"\x07\0\0\x01\0\0\0\x02\0\0\0",
            b"\x0c\0\0\0\x16select ? + 1",
            b"\x0c\0\0\x01\0\x01\0\0\0\xff\xff\xff\xff\0\0\0",
            b"\x0b\0\0\0\x17\x01\0\0\0\0\x01\0\0\0\0",
            b"\x01\0\0\x01\xfa",
            b"\xff\xff\xff\0\x03",
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\xc0\x0c\0\x01\0\x01",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\0\0\x04\x01\x05\0\0\0\x01\x82\x84\x86\xbe",
            b"\0\0\x01\x01\x04\0\0\0\x01\x3f",
            b"\0\0\x06\x01\0\0\0\0\x03\x44\x02/b\x3f\xff",
            b"\0\0\x04\x09\x04\0\0\0\x03\x41\x01h\xc0",
            b"\0\0\x08\0\x08\0\0\0\x01\x02\0\0\0\0\xff\0\0",
            b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
            b"\0\0\x01\x01\x05\0\0\0\x01\x88",
            b"Q\0\0\0\x0dselect 1\0",
            b"P\0\0\0\x10\0select 1\0\0\0",
            b"B\0\0\0\x0c\0\0\0\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0",
            b"S\0\0\0\x04",
            b"Z\0\0\0\x05I",
            b"C\0\0\0\x0dSELECT 1\0",
            b"D\x3f\xff\xff\xff",
        ])
        .prop_map(<[u8]>::to_vec),
    ]
}

fn any_turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn =
        (any::<bool>(), proptest::collection::vec(piece(), 1..12)).prop_map(|(to_server, pieces)| Turn {
            direction: if to_server { Direction::ToServer } else { Direction::ToClient },
            bytes: pieces.concat(),
        });
    proptest::collection::vec(turn, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(
        transport in transport(),
        port in port(),
        turns in any_turns(),
        cuts in proptest::collection::vec(1usize..200, 1..8),
        snap in 1usize..200,
        lost_every in 0usize..20,
    ) {
        let (sessions, _) = speak(transport, port, &turns, &Cutter { cuts: &cuts, snap, lost_every });
        check_bounds(&turns, &sessions)?;
    }

    #[test]
    fn damaged_conversations_are_survived(
        which in 0usize..REAL.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cuts in proptest::collection::vec(1usize..3000, 1..8),
        snap in 20usize..3000,
        lost_every in 0usize..20,
    ) {
        let (port, mut turns) = REAL[which].clone();
        for (turn, place, byte) in damage {
            let turn = turn.index(turns.len());
            let bytes = &mut turns[turn].bytes;
            let place = place.index(bytes.len());
            // The start of messages is where damage hurts most.
            let place = if byte % 2 == 0 { place } else { place % 16 % bytes.len() };
            bytes[place] = byte;
        }
        let (sessions, _) = speak(Transport::Tcp, port, &turns, &Cutter { cuts: &cuts, snap, lost_every });
        check_bounds(&turns, &sessions)?;
    }

    #[test]
    fn segmentation_changes_nothing(
        which in 0usize..REAL.len(),
        cuts in prop_oneof![
            proptest::collection::vec(1usize..40, 1..40),
            proptest::collection::vec(1usize..3000, 1..40),
        ],
    ) {
        let (port, turns) = &REAL[which];
        let whole = speak(Transport::Tcp, *port, turns, &WHOLE);
        prop_assert!(!whole.0.is_empty());
        prop_assert_eq!(whole, speak(Transport::Tcp, *port, turns, &Cutter { cuts: &cuts, ..WHOLE }));
    }
}
