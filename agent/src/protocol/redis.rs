//! Redis serialization protocol, versions 2 and 3, with inline commands and pipelines.
//!
//! Values of any size and nesting are walked over, never held. Leaves out: replication streams, streamed (`$?`) values.

mod command;

use metaflow_schema::enums::{L7Protocol, ResponseStatus};

use self::command::Command;
use super::stream::{Step, Stream, View};
use super::text::{NAME_MAX, text};
use super::{
    Context, Envelope, Message, Outcome, Pairing, Parser, Probe, Progress, Protocol, Recognition, Response,
    ResponseMore,
};
use crate::session::{Config, Direction, Segment, Transport, redact};

pub(crate) static PROTOCOL: Protocol = Protocol {
    number: L7Protocol::Redis,
    transports: &[Transport::Tcp],
    ports: &[6379, 6380, 26379],
    pairing: Pairing::Order,
    timeout_us: 120_000_000,
    recognise,
    parser: |_| Box::new(Redis::default()),
};

/// Bytes that a step may ask for: an argument's shown part, a line of a simple value.
const VIEW_MAX: usize = 2 * 1024;
/// `*1048576\r\n` and `$536870912\r\n` are the longest that servers accept.
const SIZE_LINE_MAX: usize = 24;
/// Nesting of values; real replies stay below ten.
const DEPTH_MAX: usize = 32;

#[derive(Default)]
struct Redis {
    requests: Requests,
    responses: Responses,
    shared: Shared,
}

/// What both directions know.
#[derive(Default)]
struct Shared {
    /// Requests without a response so far.
    outstanding: u32,
    /// The server may speak unasked.
    subscribed: bool,
}

#[derive(Default)]
struct Requests {
    stream: Stream,
    command: Option<Command>,
    /// Captured bytes at the end of what was handed out, while the last argument is still being skipped.
    tail: Option<u64>,
}

#[derive(Default)]
struct Responses {
    stream: Stream,
    /// Elements still to come at each level of the current value.
    levels: Vec<u64>,
    /// Bytes of the stream at the end of what was handed out of the current value: on the wire, captured.
    told: Option<(u64, u64)>,
    /// The value answers nothing: push messages, attributes.
    silent: bool,
}

impl Parser for Redis {
    fn parse(&mut self, ctx: &Context<'_>, segment: &Segment<'_>, out: &mut Vec<Message>) -> Progress {
        let Redis { requests, responses, shared } = self;
        let lost = match segment.direction {
            Direction::ToServer => {
                let Requests { stream, command, tail } = requests;
                if stream.gap(segment) {
                    (*command, *tail, *shared) = (None, None, Shared::default());
                    out.push(Message::Lost);
                }
                let lost =
                    stream.feed(segment, VIEW_MAX, |view| request(ctx, command, tail, shared, view, out));
                if lost {
                    (*command, *tail) = (None, None);
                }
                lost
            }
            Direction::ToClient => {
                let Responses { stream, levels, told, silent } = responses;
                if stream.gap(segment) {
                    levels.clear();
                    (*told, *shared) = (None, Shared::default());
                    out.push(Message::Lost);
                }
                let mut walk = Walk { levels, told, silent, shared };
                let lost = stream.feed(segment, VIEW_MAX, |view| walk.step(ctx.config, view, out));
                if lost {
                    responses.levels.clear();
                    responses.told = None;
                }
                lost
            }
        };
        if lost {
            shared.outstanding = 0;
            out.push(Message::Lost);
        }
        Progress::Going
    }

    fn passes_over(&self, direction: Direction) -> u64 {
        match direction {
            Direction::ToServer => self.requests.stream.passes_over(),
            Direction::ToClient => self.responses.stream.passes_over(),
        }
    }

    fn finish(&mut self, _ctx: &Context<'_>, _out: &mut Vec<Message>) {}
}

/// One step of the client's direction: a command's start, one argument, or an inline command.
fn request(
    ctx: &Context<'_>,
    current: &mut Option<Command>,
    tail: &mut Option<u64>,
    shared: &mut Shared,
    view: View<'_>,
    out: &mut Vec<Message>,
) -> Step {
    if let Some(told) = tail.take() {
        let captured = view.captured.saturating_sub(told);
        out.push(Message::RequestMore(Envelope { end_time: view.now, captured, ..Envelope::default() }));
        return Step::Take(0);
    }
    let Some(first) = view.bytes.first() else { return Step::More };
    let Some(command) = current else {
        return match first {
            b'*' => match size_line(view) {
                Line::Whole(count @ 1.., size) => {
                    *current = Some(Command::new(count, view));
                    Step::Take(size as u64)
                }
                Line::Whole(_, size) => Step::Take(size as u64),
                Line::Incomplete => Step::More,
                Line::Bad => Step::Lost,
            },
            b'\r' | b'\n' => Step::Take(1),
            _ => inline(ctx, shared, view, out),
        };
    };
    if *first != b'$' {
        return Step::Lost;
    }
    let (length, header) = match size_line(view) {
        Line::Whole(length @ 0.., size) => (length as u64, size),
        Line::Whole(..) | Line::Bad => return Step::Lost,
        Line::Incomplete => return Step::More,
    };
    let rest = &view.bytes[header..];
    let shown = length.min(command::ARGUMENT_MAX as u64) as usize;
    if rest.len() < shown && !view.last {
        return Step::More;
    }
    let size = (header as u64).saturating_add(length).saturating_add(2);
    if command.argument(ctx.config, &rest[..shown.min(rest.len())], length) {
        return Step::Take(size);
    }
    let Some(command) = current.take() else { return Step::Lost };
    let have = size.min(view.bytes.len() as u64);
    if have < size {
        *tail = Some(view.captured + have);
    }
    let request = command.finish(view, size, have);
    shared.sent(&request.request_type);
    out.push(Message::Request(request));
    Step::Take(size)
}

/// `PING\r\n` as people type it.
fn inline(ctx: &Context<'_>, shared: &mut Shared, view: View<'_>, out: &mut Vec<Message>) -> Step {
    let Some(end) = memchr::memchr(b'\n', view.bytes) else {
        return if view.last || !view.bytes[0].is_ascii_alphabetic() { Step::Lost } else { Step::More };
    };
    let words = || view.bytes[..end].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    if !words().next().is_some_and(command::is_known) {
        return Step::Lost;
    }
    let mut command = Command::new(words().count() as i64, view);
    for word in words() {
        command.argument(ctx.config, &word[..word.len().min(command::ARGUMENT_MAX)], word.len() as u64);
    }
    let size = end as u64 + 1;
    let request = command.finish(view, size, size);
    shared.sent(&request.request_type);
    out.push(Message::Request(request));
    Step::Take(size)
}

impl Shared {
    fn sent(&mut self, name: &str) {
        self.outstanding = self.outstanding.saturating_add(1);
        self.subscribed |= matches!(name, "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "MONITOR");
    }
}

/// The server's direction while it steps.
struct Walk<'a> {
    levels: &'a mut Vec<u64>,
    told: &'a mut Option<(u64, u64)>,
    silent: &'a mut bool,
    shared: &'a mut Shared,
}

impl Walk<'_> {
    /// One element: its line, and for strings its bytes.
    fn step(&mut self, config: &Config, view: View<'_>, out: &mut Vec<Message>) -> Step {
        if self.levels.is_empty() && self.told.is_some() {
            self.end(view, 0, out);
            return Step::Take(0);
        }
        if view.bytes.is_empty() {
            return Step::More;
        }
        let top = self.levels.is_empty();
        let element = match element(view) {
            Ok(element) => element,
            Err(step) => return step,
        };
        if top && self.told.is_none() {
            match self.begin(config, &element, view, out) {
                Some(step) => return step,
                None => return self.walk(&element, view, out),
            }
        }
        self.walk(&element, view, out)
    }

    /// The first element of a reply tells everything about it. Some: that was all, or more must be seen.
    fn begin(
        &mut self,
        config: &Config,
        element: &Element,
        view: View<'_>,
        out: &mut Vec<Message>,
    ) -> Option<Step> {
        let unasked = match view.bytes[0] {
            b'>' | b'|' => true,
            b'*' if self.shared.subscribed => {
                if view.bytes.len() < element.size as usize + 16 && !view.last && element.children > 0 {
                    return Some(Step::More);
                }
                self.shared.outstanding == 0 || is_published(&view.bytes[element.size as usize..])
            }
            _ => self.shared.subscribed && self.shared.outstanding == 0,
        };
        *self.silent = unasked;
        let have = element.size.min(view.bytes.len() as u64);
        let whole = element.children == 0 && have == element.size;
        if !unasked {
            self.shared.outstanding = self.shared.outstanding.saturating_sub(1);
            let envelope = view.envelope(element.size, have);
            let mut response = Response::new(envelope);
            response.outcome = outcome(config, view.bytes);
            response.result = kind(view.bytes).to_owned();
            response.complete = whole;
            out.push(Message::Response(response));
        }
        if whole {
            return Some(Step::Take(element.size));
        }
        *self.told = Some((view.offset + element.size, view.captured + have));
        None
    }

    fn walk(&mut self, element: &Element, view: View<'_>, out: &mut Vec<Message>) -> Step {
        if element.children > 0 {
            if self.levels.len() >= DEPTH_MAX {
                return Step::Lost;
            }
            self.levels.push(element.children);
            return Step::Take(element.size);
        }
        while let Some(left) = self.levels.last_mut() {
            *left -= 1;
            if *left > 0 {
                return Step::Take(element.size);
            }
            self.levels.pop();
        }
        if element.size <= view.bytes.len() as u64 {
            self.end(view, element.size, out);
        }
        Step::Take(element.size)
    }

    /// The value is over after `size` more bytes.
    fn end(&mut self, view: View<'_>, size: u64, out: &mut Vec<Message>) {
        let Some((offset, captured)) = self.told.take() else { return };
        if !*self.silent {
            let envelope = Envelope {
                end_time: view.now,
                length: (view.offset + size).saturating_sub(offset),
                captured: (view.captured + size).saturating_sub(captured),
                ..Envelope::default()
            };
            out.push(ResponseMore::end(envelope));
        }
    }
}

/// A line of a value, with the bytes of a string.
struct Element {
    size: u64,
    children: u64,
}

fn element(view: View<'_>) -> Result<Element, Step> {
    let scalar = |size: u64| Ok(Element { size, children: 0 });
    match view.bytes[0] {
        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => match memchr::memchr(b'\n', view.bytes) {
            Some(end) => scalar(end as u64 + 1),
            None if view.last => Err(Step::Lost),
            None => Err(Step::More),
        },
        kind @ (b'$' | b'!' | b'=' | b'*' | b'~' | b'>' | b'%' | b'|') => match size_line(view) {
            Line::Incomplete => Err(Step::More),
            Line::Bad => Err(Step::Lost),
            Line::Whole(..=-1, size) => scalar(size as u64),
            Line::Whole(count, size) => match kind {
                b'$' | b'!' | b'=' => scalar((size as u64).saturating_add(count as u64).saturating_add(2)),
                b'%' | b'|' => Ok(Element { size: size as u64, children: (count as u64).saturating_mul(2) }),
                _ => Ok(Element { size: size as u64, children: count as u64 }),
            },
        },
        _ => Err(Step::Lost),
    }
}

enum Line {
    /// Number and size of the line.
    Whole(i64, usize),
    Incomplete,
    Bad,
}

/// A type byte, a number, CR LF.
fn size_line(view: View<'_>) -> Line {
    let bytes = &view.bytes[..view.bytes.len().min(SIZE_LINE_MAX)];
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() == SIZE_LINE_MAX || view.last { Line::Bad } else { Line::Incomplete };
    };
    let (digits, negative) = match &bytes[1..end] {
        [b'-', digits @ .., b'\r'] => (digits, true),
        [digits @ .., b'\r'] => (digits, false),
        _ => return Line::Bad,
    };
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_digit) {
        return Line::Bad;
    }
    let number = digits.iter().fold(0i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    Line::Whole(if negative { -number } else { number }, end + 1)
}

/// The body of an array that a publisher caused.
fn is_published(bytes: &[u8]) -> bool {
    [&b"$7\r\nmessage\r\n"[..], b"$8\r\npmessage\r\n", b"$8\r\nsmessage\r\n"]
        .iter()
        .any(|start| bytes.starts_with(start))
}

fn kind(bytes: &[u8]) -> &'static str {
    match (bytes[0], bytes.get(1)) {
        (b'_', _) | (b'$' | b'*', Some(b'-')) => "Null",
        (b'+', _) => "SimpleString",
        (b'-' | b'!', _) => "Error",
        (b':', _) => "Integer",
        (b'$' | b'=', _) => "BulkString",
        (b'#', _) => "Boolean",
        (b',', _) => "Double",
        (b'(', _) => "BigNumber",
        (b'%', _) => "Map",
        (b'~', _) => "Set",
        _ => "Array",
    }
}

/// Errors name their kind in their first word.
fn outcome(config: &Config, bytes: &[u8]) -> Outcome {
    let message = match bytes[0] {
        b'-' => &bytes[1..],
        b'!' => memchr::memchr(b'\n', bytes).map_or(&[][..], |end| &bytes[end + 1..]),
        _ => return Outcome { status: ResponseStatus::Normal, code: 0, exception: String::new() },
    };
    let end = message.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(message.len());
    let exception = redact::quoted(config, &message[..end], '\'', NAME_MAX);
    let word = message[..end].split(|byte| *byte == b' ').next().unwrap_or_default();
    let status = match word {
        b"LOADING" | b"BUSY" | b"OOM" | b"MISCONF" | b"CLUSTERDOWN" | b"MASTERDOWN" | b"TRYAGAIN"
        | b"NOREPLICAS" | b"READONLY" | b"IOERR" | b"INPROG" | b"NOGOODSLAVE" => ResponseStatus::ServerError,
        // Redirections are how a cluster works.
        b"MOVED" | b"ASK" => ResponseStatus::Normal,
        b"ERR" if message.starts_with(b"ERR max number of clients") => ResponseStatus::ServerError,
        _ => ResponseStatus::ClientError,
    };
    Outcome { status, code: 0, exception }
}

/// A command is certain on any port; replies look like much else, so they count on usual ports alone.
fn recognise(probe: &Probe<'_>) -> Recognition {
    let view = View::of(probe);
    match probe.bytes.first() {
        None => Recognition::More,
        Some(b'*') => match size_line(view) {
            Line::Incomplete => Recognition::More,
            Line::Whole(1.., size) => {
                let rest = View { bytes: &probe.bytes[size..], ..view };
                first_argument(rest, probe.usual_port)
            }
            Line::Whole(..=0, _) if probe.usual_port => Recognition::Response,
            _ => Recognition::No,
        },
        Some(b'+' | b'-' | b':' | b'$' | b'_' | b'#' | b',' | b'%' | b'~' | b'>') if probe.usual_port => {
            match element(view) {
                Ok(_) => Recognition::Response,
                Err(Step::More) => Recognition::More,
                Err(_) => Recognition::No,
            }
        }
        Some(first) if probe.usual_port && first.is_ascii_alphabetic() => {
            let Some(end) = memchr::memchr(b'\n', probe.bytes) else {
                return if probe.last || probe.bytes.len() > NAME_MAX {
                    Recognition::No
                } else {
                    Recognition::More
                };
            };
            let word = probe.bytes[..end].split(u8::is_ascii_whitespace).next().unwrap_or_default();
            if command::is_known(word) { Recognition::Request } else { Recognition::No }
        }
        Some(_) => Recognition::No,
    }
}

/// The first element of an array: a command's name, or a reply's first value.
fn first_argument(view: View<'_>, usual_port: bool) -> Recognition {
    let reply = if usual_port { Recognition::Response } else { Recognition::No };
    let incomplete = if view.last { Recognition::No } else { Recognition::More };
    match view.bytes.first() {
        None => incomplete,
        Some(b'$') => match size_line(view) {
            Line::Incomplete => incomplete,
            Line::Whole(length @ 1..=32, size) => {
                let rest = &view.bytes[size..];
                match rest.get(..length as usize) {
                    None if view.last => Recognition::No,
                    None => Recognition::More,
                    Some(word) if command::is_known(word) => Recognition::Request,
                    Some(_) => reply,
                }
            }
            Line::Whole(..) => reply,
            Line::Bad => Recognition::No,
        },
        Some(b'*' | b':' | b'+' | b'-' | b'%' | b'~') => reply,
        Some(_) => Recognition::No,
    }
}

/// The first words of a command as a name: upper case and bounded.
fn name(bytes: &[u8]) -> String {
    let mut name = text(bytes, command::NAME_MAX);
    name.make_ascii_uppercase();
    name
}

#[cfg(test)]
mod tests;
