//! Heads of HTTP/1 messages: first line, the headers that matter, and how the body is delimited.

use memchr::{memchr, memchr_iter};

use super::{Kind, Request, Response, outcome};
use crate::protocol::text::{NAME_MAX, TEXT_MAX, endpoint, text, trim};
use crate::protocol::trace::Trace;
use crate::protocol::{Context, Envelope, Recognition};
use crate::session::redact;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

pub(super) struct RequestHead {
    pub(super) request: Request,
    pub(super) framing: Framing,
    pub(super) kind: Kind,
}

pub(super) struct ResponseHead {
    pub(super) response: Response,
    pub(super) framing: Framing,
}

/// Methods of RFC 9110, PATCH, and the common ones of WebDAV; others are not worth the false recognitions.
const METHODS: [&[u8]; 18] = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"REPORT",
    b"SEARCH",
];
/// A first line that does not end within this is judged by its beginning.
const RECOGNISE_MAX: usize = 512;
/// The longest names that matter are X-B3-ParentSpanId and Transfer-Encoding.
const NAME_LENGTH_MAX: usize = 17;
/// More headers than any real message has: what follows is not looked at.
const HEADERS_MAX: usize = 256;

impl RequestHead {
    pub(super) fn parse(ctx: &Context<'_>, bytes: &[u8]) -> Option<Self> {
        let (method, target, version, rest) = request_line(bytes)?;
        let mut request = Request { version, request_type: text(method, NAME_MAX), ..Request::default() };
        let mut body = Body::default();
        headers(rest, |name, value| match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => request.domain = text(value, NAME_MAX),
            7 if name.eq_ignore_ascii_case(b"referer") => {
                request.referer = redact::url(ctx.config, value, TEXT_MAX)
            }
            10 if name.eq_ignore_ascii_case(b"user-agent") => request.user_agent = text(value, NAME_MAX),
            12 if name.eq_ignore_ascii_case(b"x-request-id") => request.x_request_id = text(value, NAME_MAX),
            15 if name.eq_ignore_ascii_case(b"x-forwarded-for") && request.proxy_client.is_empty() => {
                let first = value.split(|byte| *byte == b',').next().unwrap_or_default();
                request.proxy_client = text(trim(first), NAME_MAX);
            }
            14 | 17 if body.header(name, value) => {}
            _ => {
                request.trace.header(name, value);
            }
        });
        request.resource = redact::url(ctx.config, target, TEXT_MAX);
        request.endpoint = endpoint(&request.resource);
        let kind = match method {
            b"HEAD" => Kind::Head,
            b"CONNECT" => Kind::Connect,
            _ => Kind::Plain,
        };
        let framing =
            if kind == Kind::Connect { Framing::Length(0) } else { body.framing(Framing::Length(0)) };
        Some(RequestHead { request, framing, kind })
    }
}

impl ResponseHead {
    pub(super) fn parse(_ctx: &Context<'_>, bytes: &[u8]) -> Option<Self> {
        let (version, code, reason, rest) = status_line(bytes)?;
        let mut response = Response::new(Envelope::default());
        response.version = version;
        let reason = if code >= 400 { text(reason, NAME_MAX) } else { String::new() };
        response.outcome = outcome(code, reason);
        let mut body = Body::default();
        let mut trace = Trace::default();
        headers(rest, |name, value| match name.len() {
            12 if name.eq_ignore_ascii_case(b"x-request-id") => response.x_request_id = text(value, NAME_MAX),
            14 | 17 if body.header(name, value) => {}
            _ => {
                trace.header(name, value);
            }
        });
        response.trace = trace;
        Some(ResponseHead { response, framing: body.framing(Framing::UntilClose) })
    }
}

/// The headers that delimit a body.
#[derive(Default)]
struct Body {
    length: Option<u64>,
    chunked: bool,
}

impl Body {
    fn header(&mut self, name: &[u8], value: &[u8]) -> bool {
        if name.eq_ignore_ascii_case(b"content-length") {
            self.length = number(value).or(self.length);
            true
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = value.len() >= 7 && value[value.len() - 7..].eq_ignore_ascii_case(b"chunked");
            true
        } else {
            false
        }
    }

    fn framing(&self, default: Framing) -> Framing {
        match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => default,
        }
    }
}

/// Calls `each` with name and value of the header lines that may matter: they are told by their first letter.
fn headers<'a>(rest: &'a [u8], mut each: impl FnMut(&'a [u8], &'a [u8])) {
    let mut start = 0;
    for end in memchr_iter(b'\n', rest).take(HEADERS_MAX) {
        let line = &rest[start..end];
        start = end + 1;
        let Some(first) = line.first() else { return };
        if !matches!(first | 0x20, b'b' | b'c' | b'h' | b'r' | b's' | b't' | b'u' | b'x') {
            continue;
        }
        // Names are short: a plain loop finds their end sooner than a vectorised search begins.
        if let Some(colon) = line.iter().take(NAME_LENGTH_MAX + 1).position(|byte| *byte == b':') {
            each(&line[..colon], trim(&line[colon + 1..]));
        }
    }
}

/// Bytes of a head with its empty line; what is there when no more can be had and the first line is whole. None: incomplete.
pub(super) fn size(bytes: &[u8], last: bool) -> Option<usize> {
    let mut lines = 0;
    for end in memchr_iter(b'\n', bytes) {
        lines += 1;
        match bytes[end + 1..] {
            [b'\r', b'\n', ..] => return Some(end + 3),
            [b'\n', ..] => return Some(end + 2),
            _ => {}
        }
    }
    (last && (lines > 0 || request_line(bytes).is_some())).then_some(bytes.len())
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

type RequestLine<'a> = (&'a [u8], &'a [u8], &'static str, &'a [u8]);

/// Method, target, version, and what follows the line. A line that was cut in its target counts when the target is a path.
pub(super) fn request_line(bytes: &[u8]) -> Option<RequestLine<'_>> {
    let method =
        METHODS.iter().find(|method| bytes.starts_with(method) && bytes.get(method.len()) == Some(&b' '))?;
    let after = &bytes[method.len() + 1..];
    let Some((line, size)) = line(after, usize::MAX) else {
        return after.starts_with(b"/").then_some((*method, after, "", &[]));
    };
    let version = match line.get(line.len().checked_sub(9)?..)? {
        b" HTTP/1.1" => "1.1",
        b" HTTP/1.0" => "1.0",
        _ => return None,
    };
    Some((*method, trim(&line[..line.len() - 9]), version, &after[size..]))
}

type StatusLine<'a> = (&'static str, i32, &'a [u8], &'a [u8]);

/// Version, status, reason, and what follows the line.
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
    let (reason, rest) = line(&bytes[12..], usize::MAX)
        .map_or((&b""[..], &b""[..]), |(line, size)| (trim(line), &bytes[12 + size..]));
    Some((version, code, reason, rest))
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
            bytes[..count] == method[..count] && bytes.get(count).is_none_or(|byte| *byte == b' ')
        })
    };
    match (whole, request_line(bytes)) {
        (true, Some(_)) => Recognition::Request,
        (true, None) => Recognition::No,
        (false, _) if incomplete() => Recognition::More,
        (false, _) => Recognition::No,
    }
}
