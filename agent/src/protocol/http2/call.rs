//! Streams that are open, and the messages of gRPC in them.
//!
//! A call with one message each way is one row. When a second message comes in either direction the call is a stream of messages: each of
//! them has a row of its own, but for the last one of the server, which ends the call and belongs to the call's row.

use std::collections::VecDeque;

use metaflow_schema::enums::L7Protocol;

use crate::protocol::{Envelope, Message, Request, Response};

/// Streams of a connection that are followed; servers commonly allow 100 or 128. The oldest is forgotten first.
const CALLS_MAX: usize = 256;
/// Compression flag and length before each message of gRPC.
pub(super) const PREFIX: usize = 5;

#[derive(Default)]
pub(super) struct Calls {
    calls: VecDeque<Call>,
}

/// One stream.
pub(super) struct Call {
    pub(super) stream: u32,
    pub(super) grpc: bool,
    /// The sizes of its messages are known so far.
    pub(super) followed: bool,
    /// Method, host and path of a gRPC call, for the rows of its messages.
    name: [String; 3],
    pub(super) answered: bool,
    /// From the client, from the server.
    pub(super) ended: [bool; 2],
    sides: [Messages; 2],
    is_stream: bool,
    /// A message that has no row yet: the client's first, the server's newest.
    held: [Option<Envelope>; 2],
}

/// Where in its messages a direction is.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Messages {
    /// Bytes of the current message that are still to come.
    pub(super) left: u64,
    /// The prefix that is being read.
    prefix: [u8; PREFIX],
    have: usize,
    begun: Envelope,
    count: u32,
}

impl Calls {
    pub(super) fn find(&mut self, stream: u32) -> Option<&mut Call> {
        self.calls.iter_mut().rev().find(|call| call.stream == stream)
    }

    pub(super) fn begin(&mut self, stream: u32, grpc: bool) -> &mut Call {
        self.end(stream);
        if self.calls.len() >= CALLS_MAX {
            self.calls.pop_front();
        }
        self.calls.push_back(Call {
            stream,
            grpc,
            followed: grpc,
            name: Default::default(),
            answered: false,
            ended: [false; 2],
            sides: Default::default(),
            is_stream: false,
            held: [None; 2],
        });
        let last = self.calls.len() - 1;
        &mut self.calls[last]
    }

    pub(super) fn end(&mut self, stream: u32) -> Option<Call> {
        let at = self.calls.iter().rposition(|call| call.stream == stream)?;
        self.calls.remove(at)
    }

    /// Streams that a server will not work on any more.
    pub(super) fn end_above(&mut self, stream: u32) -> Vec<u32> {
        let above: Vec<u32> =
            self.calls.iter().map(|call| call.stream).filter(|open| *open > stream).collect();
        self.calls.retain(|call| call.stream <= stream);
        above
    }

    /// Bytes were lost: where in their messages calls are cannot be known any more.
    pub(super) fn lose(&mut self) {
        for call in &mut self.calls {
            call.followed = false;
        }
    }
}

impl Call {
    pub(super) fn is_stream(&self) -> bool {
        self.is_stream
    }

    pub(super) fn set_name(&mut self, request: &Request) {
        self.name = [request.request_type.clone(), request.domain.clone(), request.resource.clone()];
    }

    pub(super) fn side(&mut self, from_client: bool) -> &mut Messages {
        &mut self.sides[usize::from(!from_client)]
    }

    /// Takes bytes of a message's prefix; `here` is where the first of them is.
    pub(super) fn prefix(&mut self, from_client: bool, bytes: &[u8], here: Envelope, out: &mut Vec<Message>) {
        let id = u64::from(self.stream);
        let side = self.side(from_client);
        if side.have == 0 {
            side.begun = here;
        }
        for byte in bytes {
            side.prefix[side.have.min(PREFIX - 1)] = *byte;
            side.have += 1;
        }
        if side.have < PREFIX {
            return;
        }
        let [_, length @ ..] = side.prefix;
        side.have = 0;
        side.left = u64::from(u32::from_be_bytes(length));
        side.count = side.count.saturating_add(1);
        let message =
            Envelope { id, end_time: side.begun.start_time, length: side.left + PREFIX as u64, ..side.begun };
        let second = side.count == 2;
        self.message(from_client, second, message, out);
    }

    /// Bytes that the prefix still needs.
    pub(super) fn prefix_left(&mut self, from_client: bool) -> usize {
        PREFIX - self.side(from_client).have
    }

    fn message(&mut self, from_client: bool, second: bool, message: Envelope, out: &mut Vec<Message>) {
        if second && !self.is_stream {
            self.is_stream = true;
            if let Some(first) = self.held[0].take() {
                out.push(self.row(true, first));
            }
        }
        if from_client && self.is_stream {
            out.push(self.row(true, message));
        } else if from_client {
            self.held[0] = Some(message);
        } else if let Some(before) = self.held[1].replace(message)
            && self.is_stream
        {
            out.push(self.row(false, before));
        }
    }

    /// A message of a stream as a row of its own.
    fn row(&self, from_client: bool, envelope: Envelope) -> Message {
        let [request_type, domain, resource] = self.name.clone();
        if from_client {
            return Message::Request(Request {
                envelope,
                protocol: Some(L7Protocol::Grpc),
                version: "2",
                request_type,
                domain,
                endpoint: resource.clone(),
                resource,
                number: envelope.id,
                one_way: true,
                ..Request::default()
            });
        }
        Message::Response(Response {
            protocol: Some(L7Protocol::Grpc),
            version: "2",
            request_type,
            domain,
            endpoint: resource.clone(),
            resource,
            number: envelope.id,
            one_way: true,
            ..Response::new(envelope)
        })
    }
}
