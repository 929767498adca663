//! One direction of a byte stream as a parser wants it: messages that span segments are joined, bytes that nobody needs are skipped
//! without copying, and losses are noticed.
//!
//! Holds at most one limit of bytes, and only while a message's head is incomplete.

use super::{Envelope, Probe};
use crate::session::Segment;

/// What a parser looks at: the stream from the first byte that it has not taken yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) bytes: &'a [u8],
    /// Time of the first byte.
    pub(crate) timestamp: u64,
    /// Time of the newest segment.
    pub(crate) now: u64,
    /// TCP sequence number of the first byte.
    pub(crate) tcp_seq: u32,
    /// Bytes on the wire before the first byte, since the stream was first seen.
    pub(crate) offset: u64,
    /// Of those, the ones that were captured.
    pub(crate) captured: u64,
    /// No more bytes can be joined to these (limit reached or not captured): decide now.
    pub(crate) last: bool,
}

impl<'a> View<'a> {
    /// The beginning of what is to be recognised.
    pub(crate) fn of(probe: &Probe<'a>) -> Self {
        Self {
            bytes: probe.bytes,
            timestamp: 0,
            now: 0,
            tcp_seq: 0,
            offset: 0,
            captured: 0,
            last: probe.last,
        }
    }

    /// A message of `length` bytes that begins here.
    pub(crate) fn envelope(&self, length: u64, captured: u64) -> Envelope {
        Envelope {
            id: 0,
            start_time: self.timestamp,
            end_time: self.now,
            tcp_seq: self.tcp_seq,
            length,
            captured,
        }
    }
}

/// What a parser wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes are done with. More than are there: the rest is skipped when it comes, and then the parser is called again.
    Take(u64),
    /// The message is incomplete.
    More,
    /// These bytes are not a message: start over at the next segment.
    Lost,
}

#[derive(Debug, Default)]
pub(crate) struct Stream {
    carry: Vec<u8>,
    carry_timestamp: u64,
    skip: u64,
    /// A skip ended and the parser was not called since.
    owed: bool,
    offset: u64,
    captured: u64,
    next_seq: Option<u32>,
    lost: bool,
}

/// Beyond this a carry gives its memory back when it is emptied: flows are many and rarely need it again.
const CARRY_KEPT: usize = 512;
/// A parser may answer `Take(0)` to change its state, but not for ever.
const IDLE_STEPS_MAX: u32 = 8;
/// A sequence jump above this is not a hole but a lost or reused connection.
const HOLE_MAX: u32 = 1 << 30;

impl Stream {
    /// Bytes on the wire and captured bytes so far, without what is still to be skipped.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.offset, self.captured)
    }

    /// Bytes that come next and that nobody needs.
    pub(crate) fn passes_over(&self) -> u64 {
        self.skip
    }

    /// The incomplete message that waits for more.
    pub(crate) fn carry(&self) -> Option<View<'_>> {
        let seq = self.next_seq.unwrap_or(0).wrapping_sub(self.carry.len() as u32);
        let timestamp = self.carry_timestamp;
        (!self.carry.is_empty()).then(|| self.view(&self.carry, (timestamp, timestamp), seq, true))
    }

    /// To be called before [`Self::feed`]: answers whether bytes are missing before the segment that were not to be skipped anyway.
    pub(crate) fn gap(&mut self, segment: &Segment<'_>) -> bool {
        let lost = segment.gap && !self.pass_hole(segment.tcp_seq);
        lost && self.lose()
    }

    /// Runs `step` over the segment. Answers whether the way was lost, once until it is found again.
    pub(crate) fn feed(
        &mut self,
        segment: &Segment<'_>,
        limit: usize,
        mut step: impl FnMut(View<'_>) -> Step,
    ) -> bool {
        let mut lost = false;
        self.next_seq = Some(segment.tcp_seq.wrapping_add(segment.payload_length));
        let uncaptured = u64::from(segment.payload_length).saturating_sub(segment.payload.len() as u64);
        let mut rest = self.skip_over(segment.payload);
        if !self.run(segment, &mut rest, limit, uncaptured > 0, &mut step) {
            lost = self.lose();
            self.advance(rest.len() as u64, true);
        }
        if uncaptured > 0 {
            if self.skip >= uncaptured {
                self.skip -= uncaptured;
                self.owed = self.skip == 0;
            } else {
                let known = self.skip == 0 && self.carry.is_empty();
                lost |= self.lose() && !known;
            }
            self.advance(uncaptured, false);
        }
        if self.owed && self.skip == 0 {
            let end = segment.payload.len();
            lost |= !self.run(segment, &mut &segment.payload[end..], limit, false, &mut step) && self.lose();
        }
        lost
    }

    /// Steps until the bytes are used up. False when the parser lost its way; `rest` is then what it did not look at.
    fn run(
        &mut self,
        segment: &Segment<'_>,
        rest: &mut &[u8],
        limit: usize,
        truncated: bool,
        step: &mut impl FnMut(View<'_>) -> Step,
    ) -> bool {
        let mut idle = 0;
        while self.skip == 0 && (self.owed || !rest.is_empty()) {
            self.owed = false;
            let joined = self.carry.len();
            let added = rest.len().min(limit.saturating_sub(joined));
            let last = joined + added >= limit || (truncated && added == rest.len());
            let before = segment.payload.len() - rest.len();
            let seq = segment.tcp_seq.wrapping_add(before as u32).wrapping_sub(joined as u32);
            let answer = if joined == 0 {
                step(self.view(&rest[..added], (segment.timestamp, segment.timestamp), seq, last))
            } else {
                self.carry.extend_from_slice(&rest[..added]);
                step(self.view(&self.carry, (self.carry_timestamp, segment.timestamp), seq, last))
            };
            match answer {
                Step::Take(count) => {
                    self.lost = false;
                    idle = if count == 0 { idle + 1 } else { 0 };
                    if idle > IDLE_STEPS_MAX {
                        return false;
                    }
                    self.owed = count == 0;
                    self.take(count, joined, rest);
                }
                Step::More if !last => {
                    if joined == 0 && added > 0 {
                        self.carry.extend_from_slice(rest);
                        self.carry_timestamp = segment.timestamp;
                    }
                    *rest = &rest[rest.len()..];
                }
                Step::More | Step::Lost => {
                    self.carry.truncate(joined);
                    return false;
                }
            }
        }
        true
    }

    /// Removes `count` bytes: first from the carry (of which `joined` are older than `rest`), then from `rest`, then from the future.
    fn take(&mut self, count: u64, joined: usize, rest: &mut &[u8]) {
        if count < joined as u64 {
            self.carry.truncate(joined);
            self.carry.drain(..count as usize);
            self.advance(count, true);
            self.owed = true;
            return;
        }
        self.drop_carry();
        let from_rest = (count - joined as u64).min(rest.len() as u64);
        *rest = &rest[from_rest as usize..];
        self.advance(joined as u64 + from_rest, true);
        self.skip = count - joined as u64 - from_rest;
    }

    fn skip_over<'a>(&mut self, payload: &'a [u8]) -> &'a [u8] {
        if self.skip == 0 {
            return payload;
        }
        let count = self.skip.min(payload.len() as u64);
        self.skip -= count;
        self.advance(count, true);
        self.owed = self.skip == 0;
        &payload[count as usize..]
    }

    /// True when the missing bytes before `tcp_seq` all belong to what is skipped anyway.
    fn pass_hole(&mut self, tcp_seq: u32) -> bool {
        let Some(expected) = self.next_seq else { return false };
        let hole = tcp_seq.wrapping_sub(expected);
        if hole == 0 || hole > HOLE_MAX || u64::from(hole) > self.skip {
            return false;
        }
        self.skip -= u64::from(hole);
        self.advance(u64::from(hole), false);
        self.owed = self.skip == 0;
        true
    }

    /// Gives up the incomplete message that waits for more.
    pub(crate) fn abandon(&mut self) {
        self.lose();
    }

    /// Starts over at the next segment. False when the way was lost already.
    fn lose(&mut self) -> bool {
        let carried = self.carry.len() as u64;
        self.advance(carried, true);
        self.drop_carry();
        self.skip = 0;
        self.owed = false;
        !std::mem::replace(&mut self.lost, true)
    }

    fn drop_carry(&mut self) {
        if self.carry.capacity() > CARRY_KEPT {
            self.carry = Vec::new();
        } else {
            self.carry.clear();
        }
    }

    fn advance(&mut self, count: u64, captured: bool) {
        self.offset = self.offset.wrapping_add(count);
        if captured {
            self.captured = self.captured.wrapping_add(count);
        }
    }

    fn view<'a>(&self, bytes: &'a [u8], (timestamp, now): (u64, u64), tcp_seq: u32, last: bool) -> View<'a> {
        View { bytes, timestamp, now, tcp_seq, offset: self.offset, captured: self.captured, last }
    }
}
