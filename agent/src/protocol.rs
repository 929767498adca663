//! Application protocols: pure parsers and the list of them.
//!
//! A protocol is one file here and one line in [`PROTOCOLS`]. A parser sees the payloads of one flow, possibly truncated, from the
//! middle of a connection or hostile; it answers with the [`Message`]s that it found and keeps a bounded state. It knows no clock, no
//! flow and no pairing: those are `session`'s.

pub mod alone;
pub(crate) mod carrying;
pub(crate) mod sql;
pub(crate) mod stream;
pub(crate) mod text;
pub(crate) mod trace;

mod dns;
mod http1;
mod http2;
mod mysql;
mod postgresql;
mod redis;

use metaflow_schema::enums::{L7Protocol, ResponseStatus};

use crate::session::{Config, Direction, Segment, Transport};
use trace::Trace;

/// Every protocol, the cheapest and most certain recognition first.
pub(crate) static PROTOCOLS: &[&Protocol] = &[
    &http1::PROTOCOL,
    &http2::PROTOCOL,
    &redis::PROTOCOL,
    &mysql::PROTOCOL,
    &postgresql::PROTOCOL,
    &dns::PROTOCOL,
];

/// What the session layer must know of a protocol.
pub(crate) struct Protocol {
    pub(crate) number: L7Protocol,
    pub(crate) transports: &'static [Transport],
    /// Usual server ports: there weaker evidence suffices.
    pub(crate) ports: &'static [u16],
    pub(crate) pairing: Pairing,
    /// After this a request counts as unanswered, in microseconds.
    pub(crate) timeout_us: u64,
    pub(crate) recognise: fn(&Probe<'_>) -> Recognition,
    pub(crate) parser: fn(&Context<'_>) -> Box<dyn Parser>,
}

/// How responses find their requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// Responses come in the order of the requests.
    Order,
    /// By [`Envelope::id`].
    Id,
}

/// What a datagram shares with its answer and with hardly any other; none where the protocol is not known to have it.
pub(crate) fn transaction(payload: &[u8]) -> Option<u64> {
    dns::transaction(payload)
}

/// The start of a flow's payload in one direction (or of a later turn, when nothing was recognised yet).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) transport: Transport,
    /// The server port is one of the protocol's own.
    pub(crate) usual_port: bool,
    /// More bytes of this message cannot be had: do not ask for them.
    pub(crate) last: bool,
}

/// What a payload is to a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recognition {
    No,
    /// Could become this protocol with more bytes.
    More,
    /// It is this protocol, and who sent it is the client.
    Request,
    /// It is this protocol, and who sent it is the server.
    Response,
}

/// What parsers need of their surroundings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) config: &'a Config,
    pub(crate) transport: Transport,
    pub(crate) server_port: u16,
}

/// How a parser gets on.
#[derive(Clone, Copy)]
pub(crate) enum Progress {
    Going,
    /// The flow speaks an opaque protocol from here on.
    Done,
    /// The flow speaks another protocol from the last `rest` bytes of the segment on; the open request is the first of that one.
    Becomes {
        protocol: &'static Protocol,
        rest: u64,
    },
}

/// A parser of one flow: bytes in, messages out.
pub(crate) trait Parser: Send {
    fn parse(&mut self, ctx: &Context<'_>, segment: &Segment<'_>, out: &mut Vec<Message>) -> Progress;

    /// Bytes that come next in a direction and that the parser passes over whatever they are: they need not be copied.
    fn passes_over(&self, _direction: Direction) -> u64 {
        0
    }

    /// The flow ends or is looked at for the last time: hand out what is incomplete.
    fn finish(&mut self, ctx: &Context<'_>, out: &mut Vec<Message>);
}

/// What a parser found.
// Messages are handed over one at a time and at once; a box would cost more than the unused bytes of the small variants.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    Request(Request),
    Response(Response),
    /// More of a request that was handed out before.
    RequestMore(Envelope),
    /// More of a response that was handed out as incomplete.
    ResponseMore(ResponseMore),
    /// A request will not be answered.
    Failed {
        envelope: Envelope,
        outcome: Outcome,
    },
    /// Bytes or the way were lost: what is open can no longer be paired for certain.
    Lost,
}

/// Where and when a message, or the new part of one, was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Pairs requests and responses of protocols with [`Pairing::Id`].
    pub(crate) id: u64,
    pub(crate) start_time: u64,
    pub(crate) end_time: u64,
    pub(crate) tcp_seq: u32,
    /// Bytes as the protocol states them, else as seen.
    pub(crate) length: u64,
    pub(crate) captured: u64,
}

/// The request's side of a session.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Request {
    pub(crate) envelope: Envelope,
    /// Where it is not the conversation's.
    pub(crate) protocol: Option<L7Protocol>,
    pub(crate) version: &'static str,
    pub(crate) request_type: String,
    pub(crate) domain: String,
    pub(crate) resource: String,
    pub(crate) endpoint: String,
    /// Shown as `request_id`.
    pub(crate) number: u64,
    pub(crate) trace: Trace,
    pub(crate) x_request_id: String,
    pub(crate) user_agent: String,
    pub(crate) referer: String,
    pub(crate) proxy_client: String,
    /// No response will come.
    pub(crate) one_way: bool,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) status: ResponseStatus,
    pub(crate) code: i32,
    pub(crate) exception: String,
}

/// The response's side of a session.
#[derive(Debug, PartialEq)]
pub(crate) struct Response {
    pub(crate) envelope: Envelope,
    /// Where it is not the conversation's.
    pub(crate) protocol: Option<L7Protocol>,
    pub(crate) version: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) result: String,
    pub(crate) trace: Trace,
    pub(crate) x_request_id: String,
    /// What a lone response tells of its request; used when the request does not say it.
    pub(crate) request_type: String,
    pub(crate) domain: String,
    pub(crate) resource: String,
    pub(crate) endpoint: String,
    /// Statement id and the like; 0 leaves the request's.
    pub(crate) number: u64,
    /// All of it was seen; otherwise a [`Message::ResponseMore`] follows.
    pub(crate) complete: bool,
    /// It answers no request: a further message of a stream.
    pub(crate) one_way: bool,
}

/// The new part of a response that was handed out as incomplete.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ResponseMore {
    pub(crate) envelope: Envelope,
    pub(crate) complete: bool,
    pub(crate) failure: Option<Outcome>,
    /// Replaces the response's result unless it is empty.
    pub(crate) result: String,
    /// When the response counts as arrived, where that is not its first byte: the end of a stream.
    pub(crate) arrived: Option<u64>,
}

impl ResponseMore {
    /// Ends a response that says nothing else.
    pub(crate) fn end(envelope: Envelope) -> Message {
        Message::ResponseMore(ResponseMore { envelope, complete: true, ..ResponseMore::default() })
    }
}

impl Response {
    /// A successful, complete response that says nothing else.
    pub(crate) fn new(envelope: Envelope) -> Self {
        Response {
            envelope,
            protocol: None,
            version: "",
            outcome: Outcome { status: ResponseStatus::Normal, code: 0, exception: String::new() },
            result: String::new(),
            trace: Trace::default(),
            x_request_id: String::new(),
            request_type: String::new(),
            domain: String::new(),
            resource: String::new(),
            endpoint: String::new(),
            number: 0,
            complete: true,
            one_way: false,
        }
    }
}
