//! One direction's bytes in their order.
//!
//! Repeated bytes are cut off. Bytes that come too early wait for those before them, a few packets and a moment long; then, or when
//! the other side acknowledges what we never saw, the missing ones are given up and the next part says so. Bound: per direction and,
//! through [`Room`], per table.

use super::sequence::{JUMP_MAX, ahead};

/// Parts that wait in one direction: more than a network reorders.
const WAITING_MAX: usize = 16;

/// A part waits this long for those before it; a repetition takes about 200 ms.
const WAIT_US: u64 = 1_000_000;

/// What all streams of a table may hold together, in bytes.
#[derive(Debug)]
pub(super) struct Room {
    free: usize,
}

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        Self { free: bytes }
    }
}

/// Payload of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) timestamp: u64,
    pub(super) seq: u32,
    /// What was captured.
    pub(super) payload: &'a [u8],
    /// Bytes on the wire.
    pub(super) length: u32,
    /// Bytes before this part are missing.
    pub(super) gap: bool,
}

#[derive(Debug)]
struct Waiting {
    timestamp: u64,
    seq: u32,
    payload: Vec<u8>,
    length: u32,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    started: bool,
    /// Sequence number of the next byte to hand over.
    next: u32,
    /// By sequence number.
    waiting: Vec<Waiting>,
}

impl Stream {
    /// A stream whose first byte is known from the handshake.
    pub(super) fn starting_at(seq: u32) -> Self {
        Self { started: true, next: seq, waiting: Vec::new() }
    }

    /// Something waits for bytes before it.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes in a part and hands over what is in order by then.
    #[inline]
    pub(super) fn push(&mut self, part: Part<'_>, room: &mut Room, each: &mut dyn FnMut(Part<'_>)) {
        if !self.started {
            self.started = true;
            self.next = part.seq;
        }
        if part.seq == self.next && self.waiting.is_empty() {
            self.next = part.seq.wrapping_add(part.length);
            each(part);
            return;
        }
        self.push_disordered(part, room, each);
    }

    /// The other side has everything before `ack`: what we miss of it will not come.
    #[inline]
    pub(super) fn acknowledged(&mut self, ack: u32, room: &mut Room, each: &mut dyn FnMut(Part<'_>)) {
        while !self.waiting.is_empty() && ahead(ack, self.next) > 0 {
            self.give_up(room, each);
        }
    }

    /// Hands over all that waits.
    pub(super) fn finish(&mut self, room: &mut Room, each: &mut dyn FnMut(Part<'_>)) {
        while !self.waiting.is_empty() {
            self.give_up(room, each);
        }
    }

    fn push_disordered(&mut self, part: Part<'_>, room: &mut Room, each: &mut dyn FnMut(Part<'_>)) {
        if ahead(part.seq, self.next).unsigned_abs() > JUMP_MAX {
            self.finish(room, each);
            self.next = part.seq.wrapping_add(part.length);
            each(Part { gap: true, ..part });
            return;
        }
        while let Some(first) = self.waiting.first()
            && ahead(part.seq, self.next) > 0
            && (part.timestamp.saturating_sub(first.timestamp) > WAIT_US
                || self.waiting.len() == WAITING_MAX
                || room.free < part.payload.len())
        {
            self.give_up(room, each);
        }
        if ahead(part.seq, self.next) <= 0 {
            self.hand_over(part, each);
            self.hand_over_waiting(room, each);
        } else if room.free < part.payload.len() {
            self.next = part.seq;
            self.hand_over(Part { gap: true, ..part }, each);
        } else {
            room.free -= part.payload.len();
            let at = self.waiting.partition_point(|waiting| ahead(waiting.seq, part.seq) <= 0);
            let Part { timestamp, seq, payload, length, gap: _ } = part;
            self.waiting.insert(at, Waiting { timestamp, seq, payload: payload.to_vec(), length });
        }
    }

    /// Hands over the part of a part that is new; its beginning is not ahead of what is expected.
    fn hand_over(&mut self, part: Part<'_>, each: &mut dyn FnMut(Part<'_>)) {
        let end = part.seq.wrapping_add(part.length);
        if ahead(end, self.next) <= 0 {
            return;
        }
        let seen = self.next.wrapping_sub(part.seq);
        let payload = part.payload.get(seen as usize..).unwrap_or_default();
        let seq = self.next;
        self.next = end;
        each(Part { seq, payload, length: part.length - seen, ..part });
    }

    fn hand_over_waiting(&mut self, room: &mut Room, each: &mut dyn FnMut(Part<'_>)) {
        while let Some(first) = self.waiting.first()
            && ahead(first.seq, self.next) <= 0
        {
            self.hand_over_first(false, room, each);
        }
    }

    /// Gives up what is missing before the first part that waits.
    fn give_up(&mut self, room: &mut Room, each: &mut dyn FnMut(Part<'_>)) {
        let Some(first) = self.waiting.first() else { return };
        let gap = ahead(first.seq, self.next) > 0;
        if gap {
            self.next = first.seq;
        }
        self.hand_over_first(gap, room, each);
        self.hand_over_waiting(room, each);
    }

    fn hand_over_first(&mut self, gap: bool, room: &mut Room, each: &mut dyn FnMut(Part<'_>)) {
        let Waiting { timestamp, seq, payload, length } = self.waiting.remove(0);
        room.free += payload.len();
        self.hand_over(Part { timestamp, seq, payload: &payload, length, gap }, each);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

    /// Pushes `(first byte, length, time)` and gives what came out as text, a gap as `|`.
    fn run(parts: &[(u32, u32, u64)], room: usize, ack: Option<u32>) -> String {
        let (mut stream, mut room, mut text) =
            (Stream::starting_at(u32::MAX - 4), Room::new(room), String::new());
        let all = room.free;
        let mut each = |part: Part<'_>| {
            text.push_str(if part.gap { "|" } else { "" });
            text.push_str(std::str::from_utf8(part.payload).unwrap());
            assert_eq!(part.payload.len(), part.length as usize);
        };
        for &(at, length, timestamp) in parts {
            let payload = &BYTES[at as usize..(at + length) as usize];
            let seq = at.wrapping_sub(5);
            stream.push(Part { timestamp, seq, payload, length, gap: false }, &mut room, &mut each);
        }
        if let Some(ack) = ack {
            stream.acknowledged(ack.wrapping_sub(5), &mut room, &mut each);
        } else {
            stream.finish(&mut room, &mut each);
            assert_eq!(room.free, all, "all room is given back");
        }
        text
    }

    #[test]
    fn bytes_come_once_and_in_order() {
        let check = |parts: &[(u32, u32, u64)], expected: &str| {
            assert_eq!(run(parts, 1_000, None), expected, "{parts:?}")
        };
        check(&[(0, 4, 0), (4, 4, 0)], "01234567");
        check(&[(0, 4, 0), (0, 4, 0), (2, 4, 0), (4, 1, 0)], "012345");
        check(&[(0, 2, 0), (4, 2, 0), (6, 2, 0), (2, 2, 0)], "01234567");
        check(&[(0, 2, 0), (6, 2, 0), (4, 3, 0), (2, 3, 0)], "01234567");
        check(&[(0, 2, 0), (4, 2, 0)], "01|45");
        check(&[(2, 2, 0), (6, 2, 0)], "|23|67");
        check(&[(0, 2, 0), (4, 2, 0), (6, 2, 1_500_000)], "01|4567");
    }

    #[test]
    fn waiting_is_bounded() {
        let early: Vec<_> = (1..18).map(|at| (at * 2, 1, 0)).collect();
        assert!(run(&early, 1_000, None).starts_with("|2|4|6"));
        assert_eq!(run(&[(2, 5, 0)], 4, None), "|23456");
        assert_eq!(run(&[(2, 3, 0), (8, 3, 0), (5, 3, 0)], 4, None), "|23456789a");
    }

    #[test]
    fn what_the_other_side_has_is_not_waited_for() {
        assert_eq!(run(&[(0, 2, 0), (4, 2, 0)], 1_000, Some(2)), "01");
        assert_eq!(run(&[(0, 2, 0), (4, 2, 0)], 1_000, Some(6)), "01|45");
    }

    proptest::proptest! {
        #[test]
        fn any_order_gives_every_byte_at_most_once(
            parts in proptest::collection::vec((0u32..20, 1u32..12, 0u64..3_000_000), 0..40),
            room in 0usize..50,
        ) {
            let text = run(&parts, room, None).replace('|', "");
            let mut letters = text.clone().into_bytes();
            letters.sort_unstable();
            letters.dedup();
            proptest::prop_assert_eq!(text.into_bytes(), letters, "the alphabet is in order");
        }
    }
}
