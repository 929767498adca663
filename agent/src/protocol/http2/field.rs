//! Header fields that matter, and what a block of them says.

use metaflow_schema::enums::{L7Protocol, ResponseStatus};

use super::hpack::Decoder;
use crate::protocol::carrying::{Carried, carried};
use crate::protocol::text::{NAME_MAX, TEXT_MAX, endpoint, percent_decoded, text};
use crate::protocol::trace::{Carrier, Trace};
use crate::protocol::{Context, Envelope, Outcome, Request, Response};
use crate::session::{Config, redact};

/// A field by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Method,
    Path,
    Authority,
    Host,
    Status,
    ContentType,
    GrpcStatus,
    GrpcMessage,
    UserAgent,
    Referer,
    /// The rank of the header that it came from, as of traces.
    RequestId(u8),
    ForwardedFor,
    Trace(Carrier, u8),
    /// Known, and of no interest.
    Other,
    /// An entry of the table from before it was seen.
    Unknown,
}

impl Field {
    /// Names are in lower case in this protocol.
    pub(super) fn named(name: &[u8]) -> Field {
        match name {
            b":method" => Field::Method,
            b":path" => Field::Path,
            b":authority" => Field::Authority,
            b":status" => Field::Status,
            b"host" => Field::Host,
            b"content-type" => Field::ContentType,
            b"grpc-status" => Field::GrpcStatus,
            b"grpc-message" => Field::GrpcMessage,
            b"user-agent" => Field::UserAgent,
            b"referer" => Field::Referer,
            b"x-request-id" => Field::RequestId(1),
            b"x-forwarded-for" => Field::ForwardedFor,
            _ => Carrier::named(name).map_or(Field::Other, |carrier| Field::Trace(carrier, carrier.rank())),
        }
    }

    /// The same where an operator named headers.
    pub(super) fn named_by(config: &Config, name: &[u8]) -> Field {
        match (carried(config, name), Field::named(name)) {
            (Some(Carried::Trace(carrier, rank)), _) => Field::Trace(carrier, rank),
            (Some(Carried::RequestId(rank)), _) => Field::RequestId(rank),
            (None, Field::Trace(..) | Field::RequestId(_)) => Field::Other,
            (None, field) => field,
        }
    }

    pub(super) fn matters(self) -> bool {
        !matches!(self, Field::Other | Field::Unknown)
    }
}

/// What a block says, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Fields {
    method: String,
    path: Vec<u8>,
    authority: String,
    pub(super) status: Option<i32>,
    grpc: Option<bool>,
    pub(super) grpc_status: Option<i32>,
    grpc_message: String,
    user_agent: String,
    referer: String,
    request_id: String,
    request_id_rank: u8,
    forwarded_for: String,
    trace: Trace,
    /// Some fields are unknown.
    pub(super) unknown: bool,
    /// Something of a request or of a response is among them.
    is_request: bool,
}

impl Fields {
    /// Reads a block and answers whether all of it could be read. Without a context it is only told what it is.
    pub(super) fn read(ctx: Option<&Context<'_>>, decoder: &mut Decoder, block: &[u8]) -> (Fields, bool) {
        let mut fields = Fields::default();
        let whole = decoder.decode(block, |field, value| fields.take(ctx, field, value)).is_ok();
        fields.unknown |= !whole;
        (fields, whole)
    }

    pub(super) fn is_request(&self) -> bool {
        self.is_request
    }

    pub(super) fn is_response(&self) -> bool {
        self.status.is_some()
    }

    /// Whether it is gRPC; by the connection's habit when the content type is unknown.
    pub(super) fn is_grpc(&self, habit: bool) -> bool {
        self.grpc.unwrap_or_else(|| self.grpc_status.is_some() || (self.unknown && habit))
    }

    /// What the block says for certain about that.
    pub(super) fn says_grpc(&self) -> Option<bool> {
        self.grpc
    }

    fn take(&mut self, ctx: Option<&Context<'_>>, field: Field, value: &[u8]) {
        self.is_request |= matches!(field, Field::Method | Field::Path | Field::Authority);
        let Some(ctx) = ctx else {
            if field == Field::Status {
                self.status = number(value);
            }
            return;
        };
        match field {
            Field::Method => self.method = text(value, 32),
            Field::Path => self.path = value.to_vec(),
            Field::Authority => self.authority = text(value, NAME_MAX),
            Field::Host if self.authority.is_empty() => self.authority = text(value, NAME_MAX),
            Field::Status => self.status = number(value).filter(|status| (100..600).contains(status)),
            Field::ContentType => self.grpc = Some(value.starts_with(b"application/grpc")),
            Field::GrpcStatus => self.grpc_status = number(value),
            Field::GrpcMessage => {
                self.grpc_message = redact::quoted(ctx.config, &percent_decoded(value), '"', TEXT_MAX)
            }
            Field::UserAgent => self.user_agent = text(value, NAME_MAX),
            Field::Referer => self.referer = redact::url(ctx.config, value, TEXT_MAX),
            Field::RequestId(rank) if rank >= self.request_id_rank => {
                (self.request_id, self.request_id_rank) = (text(value, NAME_MAX), rank);
            }
            Field::ForwardedFor if self.forwarded_for.is_empty() => {
                let first = value.split(|byte| *byte == b',').next().unwrap_or_default();
                self.forwarded_for = text(first.trim_ascii(), NAME_MAX);
            }
            Field::Trace(carrier, rank) => self.trace.add(carrier, rank, value),
            Field::Unknown => self.unknown = true,
            Field::Host | Field::RequestId(_) | Field::ForwardedFor | Field::Other => {}
        }
    }

    /// The request of a stream. Of gRPC the method is its type and the path its endpoint.
    pub(super) fn request(self, ctx: &Context<'_>, grpc: bool, envelope: Envelope) -> Request {
        let resource = redact::url(ctx.config, &self.path, TEXT_MAX);
        let method = resource.rsplit('/').next().unwrap_or_default();
        Request {
            envelope,
            protocol: Some(protocol(grpc)),
            version: "2",
            request_type: if grpc && !method.is_empty() { method.to_owned() } else { self.method },
            domain: self.authority,
            endpoint: if grpc { resource.clone() } else { endpoint(&resource) },
            resource,
            number: envelope.id,
            trace: self.trace,
            x_request_id: self.request_id,
            user_agent: self.user_agent,
            referer: self.referer,
            proxy_client: self.forwarded_for,
            one_way: false,
        }
    }

    pub(super) fn response(self, grpc: bool, envelope: Envelope, complete: bool) -> Response {
        let outcome = self.outcome(grpc, complete);
        Response {
            protocol: Some(protocol(grpc)),
            version: "2",
            outcome,
            trace: self.trace,
            x_request_id: self.request_id,
            number: envelope.id,
            complete,
            ..Response::new(envelope)
        }
    }

    /// How a request ended. `ends`: nothing follows that could say more.
    pub(super) fn outcome(&self, grpc: bool, ends: bool) -> Outcome {
        if let Some(code) = self.grpc_status {
            let status = grpc_blame(code);
            let exception =
                if status == ResponseStatus::Normal { String::new() } else { self.grpc_message.clone() };
            return Outcome { status, code, exception };
        }
        let code = self.status.unwrap_or(0);
        let status = match code {
            400..=499 => ResponseStatus::ClientError,
            500..=599 => ResponseStatus::ServerError,
            0 => ResponseStatus::Unknown,
            _ if grpc && ends => ResponseStatus::Unknown,
            _ => ResponseStatus::Normal,
        };
        let code = if grpc && (200..300).contains(&code) { 0 } else { code };
        Outcome { status, code, exception: String::new() }
    }
}

pub(super) fn protocol(grpc: bool) -> L7Protocol {
    if grpc { L7Protocol::Grpc } else { L7Protocol::Http2 }
}

/// Who is at fault, as OpenTelemetry's conventions for servers have it.
fn grpc_blame(code: i32) -> ResponseStatus {
    match code {
        0 => ResponseStatus::Normal,
        // Unknown, deadline exceeded, unimplemented, internal, unavailable, data loss.
        2 | 4 | 12 | 13 | 14 | 15 => ResponseStatus::ServerError,
        1..=16 => ResponseStatus::ClientError,
        _ => ResponseStatus::ServerError,
    }
}

fn number(value: &[u8]) -> Option<i32> {
    std::str::from_utf8(value).ok().filter(|text| text.len() <= 4)?.parse().ok()
}
