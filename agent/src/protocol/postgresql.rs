//! PostgreSQL frontend/backend protocol 3: start-up, simple and extended queries, prepared statements, COPY, errors.
//!
//! A request is a simple query, or everything up to and with an Execute; what is prepared without being executed is one too. Rows and
//! data of COPY are stepped over. Leaves out: what follows a switch to TLS or GSSAPI encryption, replication streams.

mod command;
mod message;
mod reply;

use metaflow_schema::enums::L7Protocol;

use self::command::{Commands, Said};
use self::message::{Frame, frame};
use self::reply::Replies;
use super::stream::{Step, Stream, View};
use super::{
    Context, Envelope, Message, Pairing, Parser, Probe, Progress, Protocol, Recognition, ResponseMore,
};
use crate::session::{Direction, Segment, Transport};

pub(crate) static PROTOCOL: Protocol = Protocol {
    number: L7Protocol::PostgreSql,
    transports: &[Transport::Tcp],
    ports: &[5432, 5433, 6432, 26257],
    pairing: Pairing::Order,
    timeout_us: 120_000_000,
    recognise,
    parser: |_| Box::new(PostgreSql::default()),
};

/// A message's start that a step may ask for: a statement with its names and header.
const VIEW_MAX: usize = super::sql::STATEMENT_MAX + 1024;

#[derive(Default)]
struct PostgreSql {
    requests: Stream,
    responses: Stream,
    shared: Shared,
}

/// What both directions work on.
#[derive(Default)]
struct Shared {
    commands: Commands,
    replies: Replies,
    /// Captured bytes of the client at the end of what was handed out, while the rest of a message is being skipped.
    tail: Option<u64>,
    /// The client asked for encryption, and the server has not answered yet.
    asked_encryption: bool,
    opaque: bool,
}

impl Parser for PostgreSql {
    fn parse(&mut self, ctx: &Context<'_>, segment: &Segment<'_>, out: &mut Vec<Message>) -> Progress {
        let PostgreSql { requests, responses, shared } = self;
        let to_server = segment.direction == Direction::ToServer;
        let stream = if to_server { requests } else { responses };
        if stream.gap(segment) {
            shared.lose(out);
        }
        let lost = stream.feed(segment, VIEW_MAX, |view| {
            if to_server { shared.request(ctx, view, out) } else { shared.response(ctx, view, out) }
        });
        if lost {
            shared.lose(out);
        }
        if shared.opaque { Progress::Done } else { Progress::Going }
    }

    fn finish(&mut self, _ctx: &Context<'_>, out: &mut Vec<Message>) {
        if let Some(request) = self.shared.commands.flush() {
            out.push(Message::Request(request.request));
        }
        let (offset, captured) = self.responses.progress();
        out.extend(self.shared.replies.finish(offset, captured));
    }
}

impl Shared {
    fn lose(&mut self, out: &mut Vec<Message>) {
        self.commands.forget_group();
        self.replies = Replies::default();
        (self.tail, self.asked_encryption) = (None, false);
        out.push(Message::Lost);
    }

    fn request(&mut self, ctx: &Context<'_>, view: View<'_>, out: &mut Vec<Message>) -> Step {
        if let Some(told) = self.tail.take() {
            let captured = view.captured.saturating_sub(told);
            let more = Envelope { end_time: view.now, captured, ..Envelope::default() };
            self.more_of_request(more, out);
            return Step::Take(0);
        }
        if self.opaque {
            return Step::Take(u64::MAX >> 1);
        }
        let frame = match frame(view, true) {
            Ok(frame) => frame,
            Err(step) => return step,
        };
        let have = frame.size.min(view.bytes.len() as u64);
        let envelope = view.envelope(frame.size, have);
        let said = self.commands.message(ctx, &frame, envelope);
        let counts = !matches!(said, Said::Nothing | Said::AskedEncryption | Said::OneWay(_));
        match said {
            Said::Nothing | Said::Group => {}
            Said::Part => self.more_of_request(envelope, out),
            Said::AskedEncryption => self.asked_encryption = true,
            Said::Requests(requests) => {
                for said in requests.into_iter().flatten() {
                    self.replies.expect(said.awaited);
                    out.push(Message::Request(said.request));
                }
            }
            Said::Sync(request) => {
                if let Some(said) = request {
                    self.replies.expect(said.awaited);
                    out.push(Message::Request(said.request));
                }
                self.replies.expect(reply::Awaited::Sync);
            }
            Said::OneWay(request) => out.push(Message::Request(request)),
        }
        if counts && have < frame.size {
            self.tail = Some(view.captured + have);
        }
        Step::Take(frame.size)
    }

    /// More of what will become a request, or of the one that was handed out last.
    fn more_of_request(&mut self, more: Envelope, out: &mut Vec<Message>) {
        if !self.commands.extend(more) {
            out.push(Message::RequestMore(more));
        }
    }

    fn response(&mut self, ctx: &Context<'_>, view: View<'_>, out: &mut Vec<Message>) -> Step {
        let Some(first) = view.bytes.first() else { return Step::More };
        if self.opaque {
            return Step::Take(u64::MAX >> 1);
        }
        if self.asked_encryption {
            self.asked_encryption = false;
            match first {
                b'S' | b'G' => {
                    self.opaque = true;
                    return Step::Take(1);
                }
                b'N' => return Step::Take(1),
                _ => {}
            }
        }
        let frame = match frame(view, false) {
            Ok(frame) => frame,
            Err(step) => return step,
        };
        let have = frame.size.min(view.bytes.len() as u64);
        self.replies.message(ctx.config, &frame, view.envelope(frame.size, have), view, out);
        Step::Take(frame.size)
    }
}

/// A start-up packet, a statement, or on a usual port whatever only one side can say.
fn recognise(probe: &Probe<'_>) -> Recognition {
    let view = View::of(probe);
    match frame(view, true) {
        Ok(Frame { kind: 0, .. }) => return Recognition::Request,
        Ok(frame) if command::is_certain(&frame, probe.usual_port) => return Recognition::Request,
        Err(Step::More) if probe.usual_port || message::may_be_statement(probe.bytes) => {
            return Recognition::More;
        }
        _ => {}
    }
    match frame(view, false) {
        Ok(frame) if reply::is_certain(&frame, probe.usual_port) => Recognition::Response,
        Err(Step::More) if probe.usual_port => Recognition::More,
        _ => Recognition::No,
    }
}

#[cfg(test)]
mod tests;
