//! HTTP/1.0 and HTTP/1.1 (RFC 9112): heads are read, bodies are skipped.
//!
//! Leaves out: what follows CONNECT or an upgrade to anything but HTTP/2, bodies.

mod head;

use std::collections::VecDeque;

use metaflow_schema::enums::L7Protocol;

use self::head::{Framing, Headers};
use super::stream::{Step, Stream, View};
use super::{
    Context, Envelope, Message, Pairing, Parser, Probe, Progress, Protocol, Recognition, ResponseMore,
};
use crate::session::{Direction, Segment, Transport};

pub(crate) static PROTOCOL: Protocol = Protocol {
    number: L7Protocol::Http1,
    transports: &[Transport::Tcp],
    ports: &[80, 8080, 8000],
    pairing: Pairing::Order,
    timeout_us: 120_000_000,
    recognise: |probe: &Probe<'_>| head::begins(probe.bytes, probe.last),
    parser: |_| Box::new(Http1::default()),
};

/// A head above this is read as far as it goes; common servers refuse more than 8 KiB.
const HEAD_MAX: usize = 16 * 1024;
/// Chunk sizes with their extensions, and trailer lines.
const LINE_MAX: usize = 4 * 1024;
/// Requests whose kind is remembered for the framing of their responses; more than any client pipelines.
const OUTSTANDING_MAX: usize = 128;

#[derive(Default)]
struct Http1 {
    requests: Side,
    responses: Side,
    /// Kinds of the requests that wait for a response.
    outstanding: VecDeque<Kind>,
    /// The server's stream goes on as HTTP/2 from this byte on.
    upgraded: Option<u64>,
}

/// What a request's method means for its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Head,
    Connect,
}

/// One direction.
#[derive(Default)]
struct Side {
    stream: Stream,
    body: Body,
    /// Bytes of the stream at the end of what was handed out of the current message: on the wire, captured.
    told: (u64, u64),
    last_time: u64,
    /// The body's length was stated, so it was counted with the head.
    stated: bool,
    /// What follows is another protocol.
    opaque: bool,
}

/// Where in a message a direction is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Body {
    /// Before a head.
    #[default]
    None,
    /// The stream skips the body; at the next step it is over.
    Skipped,
    ChunkSize,
    Trailer,
    UntilClose,
}

impl Parser for Http1 {
    fn parse(&mut self, ctx: &Context<'_>, segment: &Segment<'_>, out: &mut Vec<Message>) -> Progress {
        if segment.direction == Direction::ToClient {
            match self.responses.body {
                Body::None => self.end_cut_request(ctx, out),
                Body::UntilClose if segment.payload.starts_with(b"HTTP/1.") => self.end_unstated_body(out),
                _ => {}
            }
        }
        let Http1 { requests, responses, outstanding, upgraded } = self;
        let side = match segment.direction {
            Direction::ToServer => &mut *requests,
            Direction::ToClient => &mut *responses,
        };
        side.last_time = segment.timestamp;
        if side.stream.gap(segment) {
            side.body = Body::None;
            outstanding.clear();
            out.push(Message::Lost);
        }
        let Side { stream, body, told, stated, opaque, .. } = side;
        let mut state = State { body, told, stated, opaque, outstanding, upgraded };
        let lost = stream.feed(segment, HEAD_MAX, |view| match segment.direction {
            Direction::ToServer => state.request(ctx, view, out),
            Direction::ToClient => state.response(ctx, view, out),
        });
        if lost {
            side.body = Body::None;
            outstanding.clear();
            out.push(Message::Lost);
        }
        if let Some(begin) = self.upgraded {
            let rest = self.responses.stream.progress().0.saturating_sub(begin);
            return Progress::Becomes { protocol: &super::http2::PROTOCOL, rest };
        }
        if self.requests.opaque || self.responses.opaque { Progress::Done } else { Progress::Going }
    }

    fn passes_over(&self, direction: Direction) -> u64 {
        let side = match direction {
            Direction::ToServer => &self.requests,
            Direction::ToClient => &self.responses,
        };
        // What ends a body that states no length is seen in the bytes.
        match side.body {
            Body::Skipped | Body::ChunkSize => side.stream.passes_over(),
            Body::None | Body::Trailer | Body::UntilClose => 0,
        }
    }

    fn finish(&mut self, ctx: &Context<'_>, out: &mut Vec<Message>) {
        let Http1 { requests, responses, outstanding, upgraded } = self;
        for (side, is_request) in [(requests, true), (responses, false)] {
            let Side { stream, body, told, stated, opaque, .. } = side;
            let mut state = State { body, told, stated, opaque, outstanding, upgraded };
            match stream.carry() {
                Some(view) if *state.body == Body::None && is_request => state.request(ctx, view, out),
                Some(view) if *state.body == Body::None => state.response(ctx, view, out),
                _ => Step::More,
            };
            side.end_body(is_request, out);
        }
    }
}

impl Http1 {
    /// A response to a request whose head goes on in bytes that nobody captured: the request is what was seen of it.
    fn end_cut_request(&mut self, ctx: &Context<'_>, out: &mut Vec<Message>) {
        let Http1 { requests, outstanding, upgraded, .. } = self;
        let Side { stream, body, told, stated, opaque, .. } = requests;
        if !outstanding.is_empty() || *body != Body::None {
            return;
        }
        if let Some(view) = stream.carry() {
            State { body, told, stated, opaque, outstanding, upgraded }.request(ctx, view, out);
            requests.stream.abandon();
            requests.body = Body::None;
        }
    }

    /// A response that did not state its length and was no last one either: the next one begins, for which a request waits.
    fn end_unstated_body(&mut self, out: &mut Vec<Message>) {
        if !self.outstanding.is_empty() {
            self.responses.end_body(false, out);
            self.responses.stream.abandon();
        }
    }
}

impl Side {
    /// The body ends here for want of anything better.
    fn end_body(&mut self, is_request: bool, out: &mut Vec<Message>) {
        if self.body == Body::None {
            return;
        }
        self.body = Body::None;
        let (offset, captured) = self.stream.progress();
        let envelope = Envelope {
            end_time: self.last_time,
            length: if self.stated { 0 } else { offset.saturating_sub(self.told.0) },
            captured: captured.saturating_sub(self.told.1),
            ..Envelope::default()
        };
        out.push(more(envelope, is_request, true));
    }
}

/// What a step works on: one side without its stream, and what both share.
struct State<'a> {
    body: &'a mut Body,
    told: &'a mut (u64, u64),
    stated: &'a mut bool,
    opaque: &'a mut bool,
    outstanding: &'a mut VecDeque<Kind>,
    upgraded: &'a mut Option<u64>,
}

impl State<'_> {
    fn request(&mut self, ctx: &Context<'_>, view: View<'_>, out: &mut Vec<Message>) -> Step {
        if *self.body != Body::None {
            return self.body_step(view, true, out);
        }
        let bytes = head::without_blank_lines(view.bytes);
        let blank = view.bytes.len() - bytes.len();
        if blank > 0 || bytes.is_empty() {
            return if bytes.is_empty() && blank == 0 { Step::More } else { Step::Take(blank as u64) };
        }
        let Some(line) = head::request_line(bytes) else { return no_head(bytes, view.last) };
        let mut headers = Headers::default();
        let Some(size) = headers.read(&bytes[line.size..], view.last) else {
            return incomplete(bytes, view.last);
        };
        headers.read_own(ctx.config, &bytes[line.size..][..size]);
        let (kind, framing) = match line.method {
            "CONNECT" => (Kind::Connect, Framing::Length(0)),
            "HEAD" => (Kind::Head, headers.framing(Framing::Length(0))),
            _ => (Kind::Plain, headers.framing(Framing::Length(0))),
        };
        if self.outstanding.len() < OUTSTANDING_MAX {
            self.outstanding.push_back(kind);
        }
        let (envelope, step) = self.begin(view, line.size + size, framing);
        out.push(head::request(ctx, &line, &headers, envelope));
        step
    }

    fn response(&mut self, ctx: &Context<'_>, view: View<'_>, out: &mut Vec<Message>) -> Step {
        if *self.body != Body::None {
            return self.body_step(view, false, out);
        }
        if *self.opaque {
            return Step::Take(u64::MAX >> 1);
        }
        if view.bytes.is_empty() {
            return Step::More;
        }
        let Some(line) = head::status_line(view.bytes) else { return no_head(view.bytes, view.last) };
        let mut headers = Headers::default();
        let read = |size: usize| Some(size + headers.read(&view.bytes[size..], view.last)?);
        let Some(size) = line.size.and_then(read) else { return incomplete(view.bytes, view.last) };
        let code = line.code;
        if (100..200).contains(&code) && code != 101 {
            return Step::Take(size as u64);
        }
        if code == 101 && headers.upgrades_to_http2() {
            // The response itself comes as the first stream of HTTP/2.
            *self.upgraded = Some(view.offset + size as u64);
            *self.opaque = true;
            return Step::Take(size as u64);
        }
        headers.read_own(ctx.config, &view.bytes[..size]);
        let kind = self.outstanding.pop_front().unwrap_or(Kind::Plain);
        let framing = match (kind, code) {
            (_, 101) | (Kind::Connect, 200..=299) => {
                *self.opaque = true;
                Framing::Length(0)
            }
            (Kind::Head, _) | (_, 204 | 304) => Framing::Length(0),
            _ => headers.framing(Framing::UntilClose),
        };
        let (envelope, step) = self.begin(view, size, framing);
        let complete = *self.body == Body::None;
        out.push(head::response(&line, &headers, envelope, complete));
        step
    }

    /// Sets out to skip a message's body; answers what is known of the message now.
    fn begin(&mut self, view: View<'_>, head: usize, framing: Framing) -> (Envelope, Step) {
        let head = head as u64;
        let (length, step) = match framing {
            Framing::Length(body) => (head.saturating_add(body), Step::Take(head.saturating_add(body))),
            Framing::Chunked | Framing::UntilClose => (head, Step::Take(head)),
        };
        *self.stated = matches!(framing, Framing::Length(_));
        *self.body = match framing {
            Framing::Length(_) if length <= view.bytes.len() as u64 => Body::None,
            Framing::Length(_) => Body::Skipped,
            Framing::Chunked => Body::ChunkSize,
            Framing::UntilClose => Body::UntilClose,
        };
        let captured = length.min(view.bytes.len() as u64);
        *self.told = (view.offset + head, view.captured + captured);
        (view.envelope(length, captured), step)
    }

    fn body_step(&mut self, view: View<'_>, is_request: bool, out: &mut Vec<Message>) -> Step {
        match *self.body {
            Body::None => Step::More,
            Body::Skipped => self.end(view, 0, is_request, out),
            Body::UntilClose => Step::Take(u64::MAX >> 1),
            Body::ChunkSize => match head::line(view.bytes, LINE_MAX) {
                Some((line, size)) => match head::chunk_size(line) {
                    Some(0) => {
                        *self.body = Body::Trailer;
                        Step::Take(size as u64)
                    }
                    Some(chunk) => Step::Take((size as u64).saturating_add(chunk).saturating_add(2)),
                    None => self.stray(view, is_request, out),
                },
                None if view.bytes.len() >= LINE_MAX || view.last => self.stray(view, is_request, out),
                None => Step::More,
            },
            Body::Trailer => match head::line(view.bytes, LINE_MAX) {
                Some((b"", size)) => self.end(view, size, is_request, out),
                Some((_, size)) => Step::Take(size as u64),
                None if view.bytes.len() >= LINE_MAX || view.last => self.stray(view, is_request, out),
                None => Step::More,
            },
        }
    }

    /// The message is over after `size` more bytes.
    fn end(&mut self, view: View<'_>, size: usize, is_request: bool, out: &mut Vec<Message>) -> Step {
        *self.body = Body::None;
        let size = size as u64;
        let length = if *self.stated { 0 } else { (view.offset + size).saturating_sub(self.told.0) };
        let captured = (view.captured + size).saturating_sub(self.told.1);
        let envelope = Envelope { end_time: view.now, length, captured, ..Envelope::default() };
        out.push(more(envelope, is_request, true));
        Step::Take(size)
    }

    /// A body that breaks the rules ends here, and the way is lost.
    fn stray(&mut self, view: View<'_>, is_request: bool, out: &mut Vec<Message>) -> Step {
        self.end(view, 0, is_request, out);
        Step::Lost
    }
}

/// What begins with no first line is lost, unless its head is incomplete and more bytes can tell.
fn no_head(bytes: &[u8], last: bool) -> Step {
    if Headers::default().read(bytes, last).is_some() { Step::Lost } else { incomplete(bytes, last) }
}

/// Waits for the rest of a head, unless this is none.
fn incomplete(bytes: &[u8], last: bool) -> Step {
    if head::begins(bytes, last) == Recognition::No { Step::Lost } else { Step::More }
}

fn more(envelope: Envelope, is_request: bool, complete: bool) -> Message {
    if is_request {
        Message::RequestMore(envelope)
    } else {
        Message::ResponseMore(ResponseMore { envelope, complete, ..ResponseMore::default() })
    }
}

#[cfg(test)]
mod tests;
