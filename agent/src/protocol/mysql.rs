//! MySQL client/server protocol: login, commands, results, prepared statements, with or without compression.
//!
//! Rows are stepped over. Leaves out: what follows a switch to TLS, replication streams.

mod command;
mod packet;
mod reply;
mod value;

use metaflow_schema::enums::L7Protocol;

use self::command::Commands;
use self::packet::frame;
use self::reply::Reply;
use super::stream::{Step, Stream, View};
use super::{
    Context, Envelope, Message, Pairing, Parser, Probe, Progress, Protocol, Recognition, ResponseMore,
};
use crate::session::{Direction, Segment, Transport};

pub(crate) static PROTOCOL: Protocol = Protocol {
    number: L7Protocol::MySql,
    transports: &[Transport::Tcp],
    ports: &[3306, 3307, 6033, 33060],
    pairing: Pairing::Order,
    timeout_us: 120_000_000,
    recognise,
    parser: |_| Box::new(MySql::default()),
};

/// A packet's start that a step may ask for: a statement and its header.
const VIEW_MAX: usize = super::sql::STATEMENT_MAX + 64;

#[derive(Default)]
struct MySql {
    requests: Side,
    responses: Side,
    commands: Commands,
    reply: Reply,
    /// Frames of the compressed protocol around the packets; unknown until the login or the first command tells.
    compressed: Option<bool>,
    opaque: bool,
    /// Captured bytes of the server at the end of what was handed out of the current reply.
    told: u64,
}

#[derive(Default)]
struct Side {
    stream: Stream,
    /// Captured bytes at the end of what was handed out, while the rest of a command is being skipped.
    tail: Option<u64>,
}

impl Parser for MySql {
    fn parse(&mut self, ctx: &Context<'_>, segment: &Segment<'_>, out: &mut Vec<Message>) -> Progress {
        if self.opaque {
            return Progress::Done;
        }
        let MySql { requests, responses, commands, reply, compressed, opaque, told } = self;
        let received = responses.stream.progress().1;
        let mut work = Work { ctx, commands, reply, compressed, opaque, told, received, out };
        let lost = match segment.direction {
            Direction::ToServer => {
                let Side { stream, tail, .. } = requests;
                if stream.gap(segment) {
                    *tail = None;
                    work.reply.reset();
                    work.out.push(Message::Lost);
                }
                stream.feed(segment, VIEW_MAX, |view| work.request(tail, view))
            }
            Direction::ToClient => {
                let Side { stream, .. } = responses;
                if stream.gap(segment) {
                    work.reply.reset();
                    work.out.push(Message::Lost);
                }
                stream.feed(segment, VIEW_MAX, |view| work.response(view))
            }
        };
        if lost {
            reply.reset();
            out.push(Message::Lost);
        }
        if self.opaque { Progress::Done } else { Progress::Going }
    }

    fn finish(&mut self, _ctx: &Context<'_>, out: &mut Vec<Message>) {
        if self.reply.is_open() {
            let received = self.responses.stream.progress().1;
            out.push(rest_of_reply(self.reply.last_time(), received.saturating_sub(self.told)));
        }
    }
}

/// What a step of either direction works on.
struct Work<'a> {
    ctx: &'a Context<'a>,
    commands: &'a mut Commands,
    reply: &'a mut Reply,
    compressed: &'a mut Option<bool>,
    opaque: &'a mut bool,
    told: &'a mut u64,
    /// Captured bytes of the server so far, while the client speaks.
    received: u64,
    out: &'a mut Vec<Message>,
}

impl Work<'_> {
    fn request(&mut self, tail: &mut Option<u64>, view: View<'_>) -> Step {
        if let Some(told) = tail.take() {
            let captured = view.captured.saturating_sub(told);
            self.out.push(Message::RequestMore(Envelope {
                end_time: view.now,
                captured,
                ..Envelope::default()
            }));
            return Step::Take(0);
        }
        if *self.opaque {
            return Step::Take(u64::MAX >> 1);
        }
        if self.compressed.is_none() {
            *self.compressed = match packet::is_compressed(view.bytes, view.last) {
                Some(answer) => Some(answer),
                None => return Step::More,
            };
        }
        let compressed = *self.compressed == Some(true) && !self.reply.in_login();
        let (size, frame) = match frame(view, compressed) {
            Ok(found) => found,
            Err(step) => return step,
        };
        let unsealed = if frame.sealed { packet::unseal(frame.body) } else { Vec::new() };
        let frame = packet::first_packet(&unsealed).unwrap_or(frame);
        let Some(mut request) = self.commands.request(self.ctx, &frame) else {
            // The client's side of a login or file transfer, or the rest of a packet of more than 16 MiB.
            return if frame.sequence == 0 && frame.body_length > 0 { Step::Lost } else { Step::Take(size) };
        };
        let have = size.min(view.bytes.len() as u64);
        request.envelope = view.envelope(size, have);
        self.end_reply(view.now);
        if self.commands.switches_to_tls() {
            *self.opaque = true;
            return Step::Take(size);
        }
        if let Some(compressed) = self.commands.compression() {
            *self.compressed = Some(compressed);
            self.reply.without_markers = self.commands.without_markers();
        }
        if !request.one_way {
            self.reply.expect(self.commands.awaited());
        }
        self.out.push(Message::Request(request));
        if have < size {
            *tail = Some(view.captured + have);
        }
        Step::Take(size)
    }

    fn response(&mut self, view: View<'_>) -> Step {
        if view.bytes.is_empty() {
            return Step::More;
        }
        let compressed = match *self.compressed {
            Some(compressed) => compressed && !self.reply.in_login(),
            None => packet::is_compressed_reply(view.bytes),
        };
        let (size, frame) = match frame(view, compressed) {
            Ok(found) => found,
            Err(step) => return step,
        };
        if self.commands.greeting(&frame) {
            return Step::Take(size);
        }
        let have = size.min(view.bytes.len() as u64);
        // Of a reply in compressed frames the first one tells all that can be told without inflating every row.
        let sealed = frame.sealed && !self.reply.is_open();
        let unsealed = if sealed { packet::unseal(frame.body) } else { Vec::new() };
        let frame = packet::first_packet(&unsealed).unwrap_or(frame);
        // What was skipped of the packet before is told with this one.
        let begin = if self.reply.is_open() { *self.told } else { view.captured };
        *self.told = view.captured + have;
        let envelope = view.envelope(size, self.told.saturating_sub(begin));
        let answer = self.reply.packet(self.ctx.config, &frame, envelope, compressed);
        if let Some((number, parameters)) = answer.prepared {
            self.commands.prepared(number, parameters);
        }
        if let Some(message) = answer.message {
            self.out.push(message);
        }
        Step::Take(size)
    }

    /// A new command ends a reply whose end could not be seen.
    fn end_reply(&mut self, now: u64) {
        if self.reply.is_open() && self.reply.is_unclear() {
            let captured = self.received.saturating_sub(*self.told);
            self.out.push(rest_of_reply(self.reply.last_time().min(now), captured));
            self.reply.end();
        }
    }
}

/// The end of a reply that was not seen as such.
fn rest_of_reply(end_time: u64, captured: u64) -> Message {
    let envelope = Envelope { end_time, captured, ..Envelope::default() };
    ResponseMore::end(envelope)
}

/// A greeting, a login, or a command whose content makes sense.
fn recognise(probe: &Probe<'_>) -> Recognition {
    let view = View::of(probe);
    let Some(compressed) = packet::is_compressed(probe.bytes, probe.last) else {
        return if probe.usual_port { Recognition::More } else { packet::plausible_start(probe.bytes) };
    };
    match frame(view, compressed) {
        Ok((size, frame)) => {
            let whole = size >= probe.bytes.len() as u64;
            if packet::is_greeting(&frame) {
                Recognition::Response
            } else if command::is_certain(&frame, whole, probe.usual_port) {
                Recognition::Request
            } else if probe.usual_port && reply::is_likely(&frame) {
                Recognition::Response
            } else {
                Recognition::No
            }
        }
        Err(Step::More) if probe.usual_port => Recognition::More,
        Err(Step::More) => packet::plausible_start(probe.bytes),
        Err(_) => Recognition::No,
    }
}

#[cfg(test)]
mod tests;
