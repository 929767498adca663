//! DNS (RFC 1035) over UDP and TCP.
//!
//! Leaves out: DNS over TLS and HTTPS, the additional section, zone transfers beyond their first message.

mod record;

use metaflow_schema::enums::{L7Protocol, ResponseStatus};

use self::record::{Question, Reader, type_name};
use super::stream::{Step, Stream};
use super::text::{TEXT_MAX, name_endpoint, truncate};
use super::{Context, Envelope, Message, Outcome, Pairing, Parser, Probe, Progress, Protocol, Recognition};
use super::{Request, Response};
use crate::session::{Config, Direction, Segment, Transport};

pub(crate) static PROTOCOL: Protocol = Protocol {
    number: L7Protocol::Dns,
    transports: &[Transport::Udp, Transport::Tcp],
    ports: &[53, MULTICAST_PORT],
    pairing: Pairing::Id,
    timeout_us: 15_000_000,
    recognise,
    parser: |_| Box::new(Dns::default()),
};

const HEADER: usize = 12;
/// A TCP message above this is read as far as it goes.
const MESSAGE_MAX: usize = 16 * 1024;
/// mDNS: answers go to a group, or nowhere.
const MULTICAST_PORT: u16 = 5353;
/// Records that are listed of one response.
const RECORDS_MAX: u16 = 32;

#[derive(Default)]
struct Dns {
    /// To server, to client.
    streams: [Stream; 2],
}

impl Parser for Dns {
    fn parse(&mut self, ctx: &Context<'_>, segment: &Segment<'_>, out: &mut Vec<Message>) -> Progress {
        if ctx.transport == Transport::Udp {
            let envelope = Envelope {
                start_time: segment.timestamp,
                end_time: segment.timestamp,
                length: u64::from(segment.payload_length),
                captured: segment.payload.len() as u64,
                ..Envelope::default()
            };
            out.push(message(ctx, segment.payload, envelope).unwrap_or(Message::Lost));
            return Progress::Going;
        }
        let stream = match segment.direction {
            Direction::ToServer => &mut self.streams[0],
            Direction::ToClient => &mut self.streams[1],
        };
        if stream.gap(segment) {
            out.push(Message::Lost);
        }
        let lost = stream.feed(segment, MESSAGE_MAX, |view| {
            let Some((size, rest)) = view.bytes.split_first_chunk::<2>() else { return Step::More };
            let size = usize::from(u16::from_be_bytes(*size));
            if rest.len() < size && !view.last {
                return Step::More;
            }
            let envelope = view.envelope(size as u64 + 2, view.bytes.len().min(size + 2) as u64);
            match message(ctx, &rest[..size.min(rest.len())], envelope) {
                Some(message) => out.push(message),
                None => return Step::Lost,
            }
            Step::Take(size as u64 + 2)
        });
        if lost {
            out.push(Message::Lost);
        }
        Progress::Going
    }

    fn finish(&mut self, _ctx: &Context<'_>, _out: &mut Vec<Message>) {}
}

/// A number for the id and the question of a message.
pub(super) fn transaction(bytes: &[u8]) -> Option<u64> {
    use std::hash::{Hash as _, Hasher as _};
    /// A question ends with a type and a class.
    const TAIL: usize = 4;
    let header = Header::read(bytes).filter(|header| header.questions == 1)?;
    let rest = bytes.get(HEADER..)?;
    let name = rest.iter().position(|byte| *byte == 0)?;
    let mut hasher = rustc_hash::FxHasher::default();
    (header.id, rest.get(..name + 1 + TAIL)?).hash(&mut hasher);
    Some(hasher.finish())
}

/// The fixed part of a message.
struct Header {
    id: u16,
    response: bool,
    opcode: u8,
    rcode: u8,
    questions: u16,
    answers: u16,
    authorities: u16,
    additional: u16,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER>()?;
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let header = Header {
            id: word(0),
            response: bytes[2] & 0x80 != 0,
            opcode: (bytes[2] >> 3) & 0xf,
            rcode: bytes[3] & 0xf,
            questions: word(4),
            answers: word(6),
            authorities: word(8),
            additional: word(10),
        };
        // Opcodes beyond DSO are not assigned, and the bit next to the AD bit must be zero.
        (header.opcode <= 6 && header.opcode != 3 && bytes[3] & 0x40 == 0).then_some(header)
    }
}

/// One message without its length prefix; none when it is not DNS.
fn message(ctx: &Context<'_>, bytes: &[u8], envelope: Envelope) -> Option<Message> {
    let header = Header::read(bytes)?;
    let mut reader = Reader::new(bytes, HEADER);
    let question = if header.questions > 0 { reader.question() } else { None };
    if question.is_none() && (header.questions > 0 || !header.response) {
        return None;
    }
    for _ in 1..header.questions.min(RECORDS_MAX) {
        reader.question()?;
    }
    let envelope = Envelope { id: u64::from(header.id), ..envelope };
    let Question { name, kind } = question.unwrap_or_default();
    let request_type =
        if name.is_empty() && kind == 0 { String::new() } else { type_name(kind).into_owned() };
    if !header.response {
        return Some(Message::Request(Request {
            envelope,
            request_type,
            endpoint: name_endpoint(&name),
            domain: name.clone(),
            resource: name,
            number: u64::from(header.id),
            one_way: ctx.server_port == MULTICAST_PORT,
            ..Request::default()
        }));
    }
    let mut response = Response::new(envelope);
    response.number = u64::from(header.id);
    response.outcome = outcome(ctx.config, header.rcode, &name);
    response.result = records(&mut reader, header.answers.saturating_add(header.authorities));
    response.request_type = request_type;
    response.endpoint = name_endpoint(&name);
    response.resource = name;
    Some(Message::Response(response))
}

/// `A=10.0.0.1 TTL=60; NS=ns.example.com TTL=60`.
fn records(reader: &mut Reader<'_>, count: u16) -> String {
    let mut result = String::new();
    for _ in 0..count.min(RECORDS_MAX) {
        if result.len() > TEXT_MAX || reader.record(&mut result).is_none() {
            break;
        }
    }
    truncate(&mut result, TEXT_MAX);
    result
}

/// What a response code says about who failed.
fn outcome(config: &Config, rcode: u8, name: &str) -> Outcome {
    let (status, exception) = match rcode {
        0 => (ResponseStatus::Normal, ""),
        1 => (ResponseStatus::ClientError, "FORMERR"),
        2 => (ResponseStatus::ServerError, "SERVFAIL"),
        3 if config.is_expected_nxdomain(name) => (ResponseStatus::Normal, ""),
        3 => (ResponseStatus::ClientError, "NXDOMAIN"),
        4 => (ResponseStatus::ServerError, "NOTIMP"),
        5 => (ResponseStatus::ServerError, "REFUSED"),
        6 => (ResponseStatus::ServerError, "YXDOMAIN"),
        7 => (ResponseStatus::ServerError, "YXRRSET"),
        8 => (ResponseStatus::ServerError, "NXRRSET"),
        9 => (ResponseStatus::ServerError, "NOTAUTH"),
        10 => (ResponseStatus::ServerError, "NOTZONE"),
        _ => (ResponseStatus::ServerError, "unassigned response code"),
    };
    Outcome { status, code: i32::from(rcode), exception: exception.to_owned() }
}

/// DNS is met on every port, so the whole question has to make sense.
fn recognise(probe: &Probe<'_>) -> Recognition {
    let mut bytes = probe.bytes;
    if probe.transport == Transport::Tcp {
        let Some((size, rest)) = bytes.split_first_chunk::<2>() else {
            return if probe.usual_port && !probe.last { Recognition::More } else { Recognition::No };
        };
        let size = usize::from(u16::from_be_bytes(*size));
        if size < HEADER + 5 {
            return Recognition::No;
        }
        if rest.len() < size.min(HEADER + 260) && !probe.last {
            return if probe.usual_port { Recognition::More } else { Recognition::No };
        }
        bytes = &rest[..size.min(rest.len())];
    }
    let Some(header) = Header::read(bytes) else { return Recognition::No };
    let counts = header.questions == 1
        && header.additional <= 64
        && header.answers <= 4096
        && header.authorities <= 1024
        && (header.response || (header.answers == 0 && header.rcode == 0) || header.opcode != 0);
    let Some(question) = Reader::new(bytes, HEADER).question().filter(|_| counts) else {
        return Recognition::No;
    };
    if !probe.usual_port && question.name.is_empty() {
        return Recognition::No;
    }
    if header.response { Recognition::Response } else { Recognition::Request }
}

#[cfg(test)]
mod tests;
