//! Packets and frames: length, sequence number, body; and the compressed protocol's frame around them.

use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::protocol::Recognition;
use crate::protocol::sql::STATEMENT_MAX;
use crate::protocol::stream::{Step, View};

const HEADER: usize = 4;
const COMPRESSED_HEADER: usize = 7;
/// Bytes of a compressed body that are read: a statement, an error text.
const UNSEALED_MAX: usize = STATEMENT_MAX;

/// A packet as far as it was seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Counts from 0 with each command.
    pub(super) sequence: u8,
    pub(super) body: &'a [u8],
    /// Bytes of the whole body.
    pub(super) body_length: usize,
    /// The body is compressed: packets are inside of it ([`unseal`]).
    pub(super) sealed: bool,
}

/// The start of what a sealed frame's body holds; empty when it is not zlib's or damaged.
pub(super) fn unseal(body: &[u8]) -> Vec<u8> {
    let mut start = vec![0; UNSEALED_MAX];
    let mut state = Box::<DecompressorOxide>::default();
    let flags =
        TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (_, _, count) = decompress(&mut state, body, &mut start, 0, flags);
    start.truncate(count);
    start
}

/// The first packet in the start of a frame's content.
pub(super) fn first_packet(content: &[u8]) -> Option<Frame<'_>> {
    let body = content.get(HEADER..)?;
    let length = length_at(content, 0);
    let body = &body[..body.len().min(length)];
    Some(Frame { sequence: content[3], body, body_length: length, sealed: false })
}

/// The packet at the start of a view and its size. A body's first part suffices when the rest cannot be had.
pub(super) fn frame<'a>(view: View<'a>, compressed: bool) -> Result<(u64, Frame<'a>), Step> {
    let bytes = view.bytes;
    let header = if compressed { COMPRESSED_HEADER } else { HEADER };
    if bytes.len() < header {
        return Err(if view.last { Step::Lost } else { Step::More });
    }
    let length = length_at(bytes, 0);
    let needed = length.min(STATEMENT_MAX);
    if bytes.len() < header + needed && !view.last {
        return Err(Step::More);
    }
    let content = &bytes[header..bytes.len().min(header + length)];
    let size = (header + length) as u64;
    let frame = Frame { sequence: bytes[3], body: content, body_length: length, sealed: false };
    if !compressed {
        return Ok((size, frame));
    }
    // Several packets share a frame when they are small; the first one tells what the frame is about.
    match first_packet(content) {
        Some(packet) if length_at(bytes, 4) == 0 => Ok((size, packet)),
        _ => Ok((size, Frame { sealed: true, ..frame })),
    }
}

/// Whether a client's first packet is in a compressed frame; None when too little was seen.
pub(super) fn is_compressed(bytes: &[u8], last: bool) -> Option<bool> {
    if bytes.len() < HEADER + 1 {
        return last.then_some(false);
    }
    let length = length_at(bytes, 0);
    // A plain command is never COM_SLEEP, which servers refuse: a zero there is the frame's length of what was not compressed.
    if bytes[3] != 0 || bytes[4] != 0 {
        return Some(false);
    }
    if bytes.len() < COMPRESSED_HEADER + HEADER {
        return if last { Some(false) } else { None };
    }
    let inner = length_at(bytes, COMPRESSED_HEADER);
    Some(length_at(bytes, 4) == 0 && inner + HEADER == length && bytes[COMPRESSED_HEADER + 3] == 0)
}

/// Whether a server's packet is in a compressed frame, for conversations that begin with one.
pub(super) fn is_compressed_reply(bytes: &[u8]) -> bool {
    bytes.len() >= COMPRESSED_HEADER + HEADER
        && length_at(bytes, 4) == 0
        && length_at(bytes, COMPRESSED_HEADER) + HEADER <= length_at(bytes, 0)
        && bytes[COMPRESSED_HEADER + 3] == 1
        && bytes.len() >= COMPRESSED_HEADER + length_at(bytes, 0)
}

/// Protocol version 10, a version text, and the fields behind it.
pub(super) fn is_greeting(frame: &Frame<'_>) -> bool {
    if frame.sequence != 0 || frame.body.first() != Some(&10) || frame.body_length > 512 {
        return false;
    }
    let Some(end) = frame.body.iter().take(96).position(|byte| *byte == 0) else { return false };
    let version = &frame.body[1..end];
    version.first().is_some_and(u8::is_ascii_digit)
        && version.iter().all(u8::is_ascii_graphic)
        && frame.body.get(end + 13) == Some(&0)
}

/// Whether few first bytes could begin a command or a greeting, on any port.
pub(super) fn plausible_start(bytes: &[u8]) -> Recognition {
    let sequence = bytes.get(3).is_none_or(|byte| *byte <= 1);
    let small = bytes.get(2).is_none_or(|byte| *byte == 0);
    let known = bytes.get(4).is_none_or(|byte| matches!(byte, 0 | 1 | 3 | 10 | 14 | 22 | 0x80..));
    if sequence && small && known { Recognition::More } else { Recognition::No }
}

/// Three bytes, little endian.
pub(super) fn length_at(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at..at + 3) {
        Some(&[low, middle, high]) => usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16,
        _ => 0,
    }
}

/// A length-encoded integer and what follows it.
pub(super) fn integer(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let size = match first {
        0..=0xfa => return Some((u64::from(*first), rest)),
        0xfc => 2,
        0xfd => 3,
        0xfe => 8,
        _ => return None,
    };
    let value = rest.get(..size)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Some((value, &rest[size..]))
}

/// Bytes up to a zero, and what follows it.
pub(super) fn until_zero(bytes: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(0, bytes) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn double_word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
