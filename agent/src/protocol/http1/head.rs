//! Heads of HTTP/1 messages: first line, the headers that matter, and how the body is delimited.

use memchr::memchr;
use metaflow_schema::enums::ResponseStatus;

use crate::protocol::carrying::{Carried, carried};
use crate::protocol::text::{NAME_MAX, TEXT_MAX, endpoint, text, trim};
use crate::protocol::trace::{Carrier, Trace};
use crate::protocol::{Context, Envelope, Message, Outcome, Recognition, Request, Response};
use crate::session::{Config, redact};

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Methods of RFC 9110, PATCH, and the common ones of WebDAV; others are not worth the false recognitions.
const METHODS: [&str; 18] = [
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "CONNECT",
    "TRACE",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
];
/// A first line that does not end within this is judged by its beginning.
const RECOGNISE_MAX: usize = 512;
/// Trace headers of one message: room for each kind, and for one that comes twice.
const TRACES_MAX: usize = 8;

/// The headers of a message that matter.
///
/// They are found in one pass and not copied yet, so that a head which turns out to be incomplete costs no more than the search.
#[derive(Default)]
pub(super) struct Headers<'a> {
    host: &'a [u8],
    referer: &'a [u8],
    user_agent: &'a [u8],
    request_id: &'a [u8],
    /// The first one that is not empty.
    forwarded_for: &'a [u8],
    /// With their ranks.
    traces: [Option<(Carrier, u8, &'a [u8])>; TRACES_MAX],
    length: Option<u64>,
    chunked: bool,
    upgrade: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Takes in what follows a first line. Answers its size with the empty line that ends it, all of it when there will be no more;
    /// none: incomplete.
    pub(super) fn read(&mut self, rest: &'a [u8], last: bool) -> Option<usize> {
        let mut start = 0;
        while let Some(length) = memchr(b'\n', &rest[start..]) {
            let line = &rest[start..start + length];
            start += length + 1;
            match line {
                [] | [b'\r'] => return Some(start),
                [first, ..] => self.line(first | 0x20, line),
            }
        }
        last.then_some(rest.len())
    }

    /// Looks for headers that an operator named, once more through the same bytes: hardly anybody names some.
    pub(super) fn read_own(&mut self, config: &Config, bytes: &'a [u8]) {
        if !config.has_own_headers() {
            return;
        }
        (self.request_id, self.traces) = (b"", [None; TRACES_MAX]);
        let (mut rank, mut count) = (0, 0);
        for line in bytes.split(|byte| *byte == b'\n') {
            let Some(colon) = memchr(b':', line) else { continue };
            let value = trim(&line[colon + 1..]);
            match carried(config, &line[..colon]) {
                Some(Carried::Trace(carrier, rank)) if count < TRACES_MAX => {
                    self.traces[count] = Some((carrier, rank, value));
                    count += 1;
                }
                Some(Carried::RequestId(better)) if better > rank && !value.is_empty() => {
                    (rank, self.request_id) = (better, value);
                }
                _ => {}
            }
        }
    }

    pub(super) fn upgrades_to_http2(&self) -> bool {
        self.upgrade.eq_ignore_ascii_case(b"h2c")
    }

    /// How the body ends; `default` when the headers do not say it.
    pub(super) fn framing(&self, default: Framing) -> Framing {
        match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => default,
        }
    }

    /// The first letter tells most lines that do not matter.
    fn line(&mut self, first: u8, line: &'a [u8]) {
        match first {
            b'c' => {
                if let Some(value) = value(line, b"content-length") {
                    self.length = number(value).or(self.length);
                }
            }
            b'h' => set(&mut self.host, value(line, b"host")),
            b'r' => set(&mut self.referer, value(line, b"referer")),
            b'u' => match value(line, b"user-agent") {
                Some(value) => self.user_agent = value,
                None => match value(line, b"upgrade") {
                    Some(value) => self.upgrade = value,
                    None => self.trace(line),
                },
            },
            b't' => match value(line, b"transfer-encoding") {
                Some(value) => {
                    let coding = value.last_chunk::<7>();
                    self.chunked = coding.is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
                }
                None => self.trace(line),
            },
            b'x' => match (value(line, b"x-request-id"), value(line, b"x-forwarded-for")) {
                (Some(value), _) => self.request_id = value,
                (_, Some(value)) if self.forwarded_for.is_empty() => self.forwarded_for = first_item(value),
                _ => self.trace(line),
            },
            b'b' | b's' => self.trace(line),
            _ => {}
        }
    }

    fn trace(&mut self, line: &'a [u8]) {
        if let Some((carrier, value)) = Carrier::of_line(line)
            && let Some(place) = self.traces.iter_mut().find(|place| place.is_none())
        {
            *place = Some((carrier, carrier.rank(), value));
        }
    }
}

fn set<'a>(field: &mut &'a [u8], value: Option<&'a [u8]>) {
    *field = value.unwrap_or(field);
}

/// The value of a header line when its name is this one, given in lower case.
fn value<'a, const N: usize>(line: &'a [u8], name: &[u8; N]) -> Option<&'a [u8]> {
    let (found, rest) = line.split_first_chunk::<N>()?;
    // The colon's place tells nearly every other name, and without a way out of the loop all bytes are compared at once.
    let value = rest.strip_prefix(b":")?;
    let equal = |(byte, wanted): (&u8, &u8)| byte.to_ascii_lowercase() == *wanted;
    let is_it = found.iter().zip(name).fold(true, |all, pair| all & equal(pair));
    is_it.then(|| trim(value))
}

fn first_item(list: &[u8]) -> &[u8] {
    trim(list.split(|byte| *byte == b',').next().unwrap_or_default())
}

pub(super) fn request(
    ctx: &Context<'_>,
    line: &RequestLine<'_>,
    headers: &Headers<'_>,
    envelope: Envelope,
) -> Message {
    let resource = redact::url(ctx.config, line.target, TEXT_MAX);
    Message::Request(Request {
        envelope,
        protocol: None,
        version: line.version,
        request_type: line.method.to_owned(),
        domain: text(headers.host, NAME_MAX),
        endpoint: endpoint(&resource),
        resource,
        number: 0,
        trace: trace(headers),
        x_request_id: text(headers.request_id, NAME_MAX),
        user_agent: text(headers.user_agent, NAME_MAX),
        referer: redact::url(ctx.config, headers.referer, TEXT_MAX),
        proxy_client: text(headers.forwarded_for, NAME_MAX),
        one_way: false,
    })
}

pub(super) fn response(
    line: &StatusLine<'_>,
    headers: &Headers<'_>,
    envelope: Envelope,
    complete: bool,
) -> Message {
    Message::Response(Response {
        version: line.version,
        outcome: outcome(line.code, line.reason),
        trace: trace(headers),
        x_request_id: text(headers.request_id, NAME_MAX),
        complete,
        ..Response::new(envelope)
    })
}

fn trace(headers: &Headers<'_>) -> Trace {
    let mut trace = Trace::default();
    for (carrier, rank, value) in headers.traces.iter().flatten() {
        trace.add(*carrier, *rank, value);
    }
    trace
}

/// What a status code says about who failed.
fn outcome(code: i32, reason: &[u8]) -> Outcome {
    let status = match code {
        400..=499 => ResponseStatus::ClientError,
        500..=599 => ResponseStatus::ServerError,
        _ => return Outcome { status: ResponseStatus::Normal, code, exception: String::new() },
    };
    Outcome { status, code, exception: text(reason, NAME_MAX) }
}

/// A line without its end, and its size with it.
pub(super) fn line(bytes: &[u8], max: usize) -> Option<(&[u8], usize)> {
    let end = memchr(b'\n', &bytes[..bytes.len().min(max)])?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1))
}

/// Clients may send empty lines before a request.
pub(super) fn without_blank_lines(bytes: &[u8]) -> &[u8] {
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    &bytes[blank..]
}

/// The first line of a request.
pub(super) struct RequestLine<'a> {
    pub(super) method: &'static str,
    target: &'a [u8],
    version: &'static str,
    pub(super) size: usize,
}

/// A line that was cut in its target counts when the target is a path.
pub(super) fn request_line(bytes: &[u8]) -> Option<RequestLine<'_>> {
    let method = METHODS
        .iter()
        .find(|method| bytes.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.starts_with(b" ")))?;
    let after = &bytes[method.len() + 1..];
    let Some((line, size)) = line(after, usize::MAX) else {
        let cut = RequestLine { method, target: after, version: "", size: bytes.len() };
        return after.starts_with(b"/").then_some(cut);
    };
    let (target, version) = line.split_at(line.len().checked_sub(9)?);
    let version = match version {
        b" HTTP/1.1" => "1.1",
        b" HTTP/1.0" => "1.0",
        _ => return None,
    };
    Some(RequestLine { method, target: trim(target), version, size: method.len() + 1 + size })
}

/// The first line of a response.
pub(super) struct StatusLine<'a> {
    version: &'static str,
    pub(super) code: i32,
    reason: &'a [u8],
    /// None: the line goes on.
    pub(super) size: Option<usize>,
}

pub(super) fn status_line(bytes: &[u8]) -> Option<StatusLine<'_>> {
    let version = match bytes.get(..9)? {
        b"HTTP/1.1 " => "1.1",
        b"HTTP/1.0 " => "1.0",
        _ => return None,
    };
    let digits = bytes.get(9..12)?;
    if !digits.iter().all(u8::is_ascii_digit) || !(b'1'..=b'5').contains(&digits[0]) {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + i32::from(digit - b'0'));
    let (reason, size) = line(&bytes[12..], usize::MAX)
        .map_or((&[][..], None), |(reason, size)| (trim(reason), Some(12 + size)));
    Some(StatusLine { version, code, reason, size })
}

/// The hexadecimal size at the start of a chunk line, before extensions.
pub(super) fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 15 {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0u64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

/// Whether bytes start a message; `last` when there will be no more of them.
pub(super) fn begins(bytes: &[u8], last: bool) -> Recognition {
    if bytes.starts_with(b"HTTP/1.") {
        return match status_line(bytes) {
            Some(_) => Recognition::Response,
            None if bytes.len() < 12 && !last => Recognition::More,
            None => Recognition::No,
        };
    }
    let Some(first) = bytes.first() else { return Recognition::More };
    if !last && bytes.len() < 12 && b"HTTP/1.1 ".starts_with(&bytes[..bytes.len().min(9)]) {
        return Recognition::More;
    }
    if !first.is_ascii_uppercase() {
        return Recognition::No;
    }
    let whole = bytes.len() >= RECOGNISE_MAX || last || memchr(b'\n', bytes).is_some();
    let incomplete = || {
        METHODS.iter().any(|method| {
            let count = bytes.len().min(method.len());
            bytes[..count] == method.as_bytes()[..count] && bytes.get(count).is_none_or(|byte| *byte == b' ')
        })
    };
    match (whole, request_line(bytes)) {
        (true, Some(_)) => Recognition::Request,
        (true, None) => Recognition::No,
        (false, _) if incomplete() => Recognition::More,
        (false, _) => Recognition::No,
    }
}
