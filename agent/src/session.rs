//! Sessions: the requests and responses of one flow, paired into one record each.
//!
//! A [`Conversation`] belongs to one flow. It finds the protocol, feeds the parser, and pairs what the parser sees. Leaves out: flows
//! (`flow`), what goes on the wire (`emit`).

pub(crate) mod conversation;
mod pending;
pub(crate) mod redact;
mod seek;

use metaflow_schema::enums::{L7Protocol, L7Type, ResponseStatus};

pub use conversation::{Conversation, Losses};
pub use metaflow_agent_config::Session as Config;

/// Which way a payload travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    ToServer,
    ToClient,
}

impl Direction {
    pub fn opposite(self) -> Self {
        match self {
            Direction::ToServer => Direction::ToClient,
            Direction::ToClient => Direction::ToServer,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
    /// A stream between processes of one host; to protocols it is as TCP.
    Unix,
}

impl Transport {
    /// IANA number of the protocol. Unix sockets have none; 0 is no transport's.
    pub(crate) const fn ip_protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Unix => 0,
        }
    }

    /// As protocols know it.
    pub(crate) const fn of_protocols(self) -> Self {
        match self {
            Self::Tcp | Self::Unix => Self::Tcp,
            Self::Udp => Self::Udp,
        }
    }
}

/// New payload of a flow in the order of its stream: retransmitted bytes were taken out by the flow table.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Microseconds since 1970.
    pub timestamp: u64,
    pub direction: Direction,
    /// TCP sequence number of the first byte; 0 for UDP.
    pub tcp_seq: u32,
    /// What was captured, possibly less than `payload_length`.
    pub payload: &'a [u8],
    /// Bytes on the wire.
    pub payload_length: u32,
    /// Bytes before this segment are missing (capture loss): parser state that spans segments is void.
    pub gap: bool,
}

/// A session on its way from hand to hand: it is large, so what moves is a pointer.
pub type SessionBox = Box<Session>;

/// One finished request: what becomes a row of `l7_flow_log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub protocol: L7Protocol,
    pub l7_type: L7Type,
    /// Microseconds since 1970: first byte of the request (or of the response when there was no request) and last of the response.
    pub start_time: u64,
    pub end_time: u64,
    /// Microseconds from request to response; none when one of them is missing.
    pub response_duration: Option<u64>,
    /// Protocol version as text, e.g. `1.1`.
    pub version: &'static str,
    /// HTTP method, gRPC method, Redis command, MySQL command (`COM_QUERY`), PostgreSQL message, DNS record type.
    pub request_type: String,
    /// HTTP host, DNS name, database.
    pub request_domain: String,
    /// HTTP target, Redis command line, SQL statement, DNS name. Redacted.
    pub request_resource: String,
    /// Bounded in number: path without query and with ids replaced, SQL verb and table, Redis command.
    pub endpoint: String,
    /// Stream id, statement id, DNS transaction id; 0 when the protocol has none.
    pub request_id: u64,
    pub status: ResponseStatus,
    /// HTTP status, gRPC status, MySQL error number, SQLSTATE where it is a number, DNS rcode.
    pub response_code: i32,
    /// Error text of the server. Redacted.
    pub response_exception: String,
    /// DNS answers and the like.
    pub response_result: String,
    pub trace_id: String,
    pub span_id: String,
    pub parent_span_id: String,
    pub x_request_id_request: String,
    pub x_request_id_response: String,
    pub user_agent: String,
    pub referer: String,
    /// X-Forwarded-For's first address.
    pub http_proxy_client: String,
    /// Of a Unix socket.
    pub socket_path: String,
    /// Message sizes on the wire as the protocol states them (headers and body), else as seen.
    pub request_length: u64,
    pub response_length: u64,
    pub captured_request_byte: u32,
    pub captured_response_byte: u32,
    pub req_tcp_seq: u32,
    pub resp_tcp_seq: u32,
}
