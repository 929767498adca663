//! Captures as conversations, and the published results as text.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use metaflow_agent::session::{Config, Conversation, Direction, Segment, Session, Transport};
use metaflow_schema::enums::ResponseStatus;

fn corpus(path: &str) -> PathBuf {
    let root = std::env::var_os("METAFLOW_CORPUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"), PathBuf::from);
    let path = root.join("packets").join(path);
    assert!(
        path.exists(),
        "{} is missing: set METAFLOW_CORPUS to the folder of the captures",
        path.display()
    );
    path
}

/// Address and port.
type End = (u32, u16);

/// Payload of one packet of a capture.
pub(crate) struct Payload {
    pub(crate) timestamp: u64,
    pub(crate) transport: Transport,
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) tcp_seq: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Payloads of a capture of Ethernet frames with IPv4.
pub(crate) fn payloads(capture: &str) -> Vec<Payload> {
    let file = std::fs::read(corpus(capture)).expect("the capture is readable");
    assert_eq!(
        file.get(..4),
        Some(&[0xd4, 0xc3, 0xb2, 0xa1][..]),
        "{capture} is a pcap file of a small-endian machine"
    );
    let word = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().expect("a whole header"));
    let mut found = Vec::new();
    let mut at = 24;
    while at < file.len() {
        let timestamp = u64::from(word(at)) * 1_000_000 + u64::from(word(at + 4));
        let end = at + 16 + word(at + 8) as usize;
        found.extend(payload(timestamp, &file[at + 16..end]));
        at = end;
    }
    found
}

fn payload(timestamp: u64, frame: &[u8]) -> Option<Payload> {
    let mut at = 12;
    while frame.get(at..at + 2)? == [0x81, 0] {
        at += 4;
    }
    if frame.get(at..at + 2)? != [8, 0] {
        return None;
    }
    let ip = frame.get(at + 2..)?;
    let header = usize::from(*ip.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    let segment = ip.get(header..total.min(ip.len()))?;
    let address = |at: usize| Some(u32::from_be_bytes(*ip.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?));
    let (transport, size) = match ip.get(9)? {
        6 => (Transport::Tcp, usize::from(*segment.get(12)? >> 4) * 4),
        17 => (Transport::Udp, 8),
        _ => return None,
    };
    let tcp_seq = match transport {
        Transport::Tcp => u32::from_be_bytes(*segment.get(4..)?.first_chunk()?),
        Transport::Udp | Transport::Unix => 0,
    };
    Some(Payload {
        timestamp,
        transport,
        source: (address(12)?, word(0)?),
        destination: (address(16)?, word(2)?),
        tcp_seq,
        bytes: segment.get(size..)?.to_vec(),
    })
}

/// All sessions of a capture in the order of their beginning. A flow's server is where its first packet goes.
pub(crate) fn replay(capture: &str, config: Config) -> Vec<Session> {
    let config = Arc::new(config);
    let mut flows: HashMap<[End; 2], (Conversation, End)> = HashMap::new();
    let mut sessions = Vec::new();
    for payload in payloads(capture) {
        let mut ends = [payload.source, payload.destination];
        ends.sort_unstable();
        let (conversation, server) = flows.entry(ends).or_insert_with(|| {
            (Conversation::new(payload.transport, payload.destination.1, &config), payload.destination)
        });
        let direction =
            if payload.destination == *server { Direction::ToServer } else { Direction::ToClient };
        let segment = Segment {
            timestamp: payload.timestamp,
            direction,
            tcp_seq: payload.tcp_seq,
            payload: &payload.bytes,
            payload_length: payload.bytes.len() as u32,
            gap: false,
        };
        conversation.segment(&segment, &mut sessions);
    }
    for (conversation, _) in flows.values_mut() {
        conversation.finish(&mut sessions);
        assert!(!conversation.reversed(), "{capture}");
    }
    sessions.sort_by_key(|session| session.start_time);
    sessions.into_iter().map(|session| *session).collect()
}

pub(crate) fn expected_lines(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(corpus(&format!("{name}.result"))).expect("the results are text");
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The JSON part of a line.
pub(crate) fn json(line: &str) -> serde_json::Value {
    let end = line.rfind('}').expect("an object") + 1;
    serde_json::from_str(&line[..end]).expect("JSON")
}

/// A field of Rust's debug text: the first string in it, or the word; empty for `None` and `[]`.
pub(crate) fn debug_field(line: &str, name: &str) -> String {
    let start =
        line.find(&format!(" {name}: ")).unwrap_or_else(|| panic!("no {name} in {line}")) + name.len() + 3;
    let value = &line[start..];
    let plain = value.split([',', ' ', '}']).next().unwrap_or_default();
    let compound = ["Some(", "Prio", "\""].iter().any(|start| value.starts_with(start));
    if !compound {
        return plain.replace("None", "");
    }
    let inner = value.strip_prefix("Some(").unwrap_or(value);
    if inner.starts_with(|first: char| first.is_ascii_digit()) {
        return inner.split(')').next().unwrap_or_default().to_owned();
    }
    let end = value.find("\", ").or_else(|| value.find("\" }")).map_or(value.len(), |end| end + 1);
    let end = value.find("([])").map_or(end, |empty| empty.min(end));
    value[..end.min(value.len())].split('"').nth(1).unwrap_or_default().to_owned()
}

pub(crate) fn status(status: ResponseStatus) -> &'static str {
    match status {
        ResponseStatus::Normal => "ok",
        ResponseStatus::ClientError => "client_error",
        ResponseStatus::ServerError => "server_error",
        ResponseStatus::Timeout => "timeout",
        ResponseStatus::Unknown => "unknown",
    }
}
