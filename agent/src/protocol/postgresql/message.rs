//! Messages: a letter, a length, a body; and the packets without a letter that a connection begins with.

use crate::protocol::sql::{self, STATEMENT_MAX};
use crate::protocol::stream::{Step, View};
use crate::protocol::text::NAME_MAX;

/// Letter and length.
const HEADER: usize = 5;
/// Servers refuse longer start-up packets.
const START_MAX: usize = 10_000;
/// Servers refuse longer messages.
const LENGTH_MAX: usize = 1 << 30;
/// A command tag: a word or two and a count.
const TAG_MAX: usize = 256;

/// Codes of packets without a letter.
pub(super) const CANCEL: u32 = 80_877_102;
pub(super) const ASK_TLS: u32 = 80_877_103;
pub(super) const ASK_GSS: u32 = 80_877_104;
/// Major version 3 of the protocol, with any minor one.
const VERSION_3: u32 = 3;

/// A message as far as it was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// The letter; 0 for packets without one, whose body begins with their code.
    pub(super) kind: u8,
    /// The body's start: as much as its kind needs.
    pub(super) body: &'a [u8],
    pub(super) body_length: usize,
    pub(super) size: u64,
}

impl Frame<'_> {
    pub(super) fn code(&self) -> u32 {
        double_word(self.body).unwrap_or_default()
    }
}

/// The message at the start of a view.
pub(super) fn frame(view: View<'_>, from_client: bool) -> Result<Frame<'_>, Step> {
    let bytes = view.bytes;
    let more = || if view.last { Step::Lost } else { Step::More };
    let kind = *bytes.first().ok_or(Step::More)?;
    if kind == 0 && from_client {
        return start(view);
    }
    let wanted = wanted(kind, from_client).ok_or(Step::Lost)?;
    // The length's first byte tells most bytes that are no message.
    if bytes.get(1).is_some_and(|byte| *byte > 0x40) {
        return Err(Step::Lost);
    }
    let length = double_word(bytes.get(1..).unwrap_or_default()).ok_or_else(more)? as usize;
    if !(4..=LENGTH_MAX).contains(&length) || !fits(kind, length, from_client) {
        return Err(Step::Lost);
    }
    let body_length = length - 4;
    let wanted = body_length.min(wanted);
    let body = &bytes[HEADER..];
    if body.len() < wanted && !view.last {
        return Err(Step::More);
    }
    let body = &body[..body.len().min(wanted)];
    Ok(Frame { kind, body, body_length, size: (length + 1) as u64 })
}

fn start(view: View<'_>) -> Result<Frame<'_>, Step> {
    let bytes = view.bytes;
    let more = || if view.last { Step::Lost } else { Step::More };
    let length = double_word(bytes).ok_or_else(more)? as usize;
    if !(8..=START_MAX).contains(&length) {
        return Err(Step::Lost);
    }
    let code = double_word(bytes.get(4..).unwrap_or_default()).ok_or_else(more)?;
    let known = match code {
        CANCEL => length == 16,
        ASK_TLS | ASK_GSS => length == 8,
        _ => code >> 16 == VERSION_3 && code & 0xffff < 16 && length > 8,
    };
    if !known {
        return Err(Step::Lost);
    }
    if bytes.len() < length && !view.last {
        return Err(Step::More);
    }
    let body = &bytes[4..bytes.len().min(length)];
    Ok(Frame { kind: 0, body, body_length: length - 4, size: length as u64 })
}

/// Bytes of a body that are looked at; None for a letter that this side does not use.
fn wanted(kind: u8, from_client: bool) -> Option<usize> {
    Some(match (from_client, kind) {
        (true, b'Q' | b'P') => STATEMENT_MAX + NAME_MAX,
        (true, b'B') => 2 * NAME_MAX,
        (true, b'D' | b'C' | b'E') => NAME_MAX,
        (true, b'S' | b'H' | b'F' | b'p' | b'd' | b'c' | b'f' | b'X') => 0,
        // These may end a response, so they are waited for.
        (false, b'E' | b'T') => STATEMENT_MAX,
        (false, b'C') => TAG_MAX,
        (false, b'R') => 4,
        (false, b'Z') => 1,
        (
            false,
            b'D' | b'N' | b'S' | b'K' | b'1' | b'2' | b'3' | b't' | b'n' | b'I' | b's' | b'A' | b'G' | b'H'
            | b'W' | b'd' | b'c' | b'V' | b'v',
        ) => 0,
        _ => return None,
    })
}

/// Lengths that the protocol fixes.
fn fits(kind: u8, length: usize, from_client: bool) -> bool {
    match (from_client, kind) {
        (true, b'S' | b'H' | b'c' | b'X') | (false, b'1' | b'2' | b'3' | b'n' | b'I' | b's' | b'c') => {
            length == 4
        }
        (false, b'Z') => length == 5,
        (false, b'R') => (8..1 << 16).contains(&length),
        (false, b'C') => (6..=TAG_MAX).contains(&length),
        (false, b'E' | b'N') => length < 1 << 20,
        _ => true,
    }
}

/// Whether few first bytes could become a statement or a start-up packet, on any port.
pub(super) fn may_be_statement(bytes: &[u8]) -> bool {
    match bytes {
        [b'Q' | b'P', length @ ..] => {
            length.first().is_none_or(|byte| *byte == 0)
                && bytes.get(HEADER..).is_none_or(|body| body.len() < 16 || sql::begins_with_verb(body))
        }
        [0, rest @ ..] => rest.iter().zip([0]).all(|(byte, zero)| *byte == zero),
        _ => false,
    }
}

/// Four bytes, big endian.
pub(super) fn double_word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

/// Bytes up to a zero, and what follows it.
pub(super) fn until_zero(bytes: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(0, bytes) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}
