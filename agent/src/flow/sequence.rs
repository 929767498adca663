//! Sequence numbers of one direction: what is new, repeated, or out of order.

/// Holes remembered per direction; more at one time are counted as repetitions when they fill.
const HOLES_MAX: usize = 4;

/// A jump of the sequence number beyond any window (2^30 with the largest scale) is a new beginning, not a hole.
pub(super) const JUMP_MAX: u32 = 1 << 30;

/// Reordering in a network takes less than this where the round trip is not known: longer waits mean that the sender repeated.
pub(super) const REORDER_US: u64 = 3_000;

/// What a packet's sequence number says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Carries bytes (or SYN, FIN) that were not seen before.
    New,
    /// Nothing that counts in the stream: bare ACKs, keep-alives, window probes.
    Empty,
    /// All of it was seen before.
    Repeated,
    /// Fills a hole that a later packet left moments ago.
    OutOfOrder,
}

#[derive(Debug, Clone, Copy, Default)]
struct Hole {
    start: u32,
    end: u32,
    /// When the packet behind the hole came.
    since: u64,
}

/// What was seen of one direction's sequence space.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    started: bool,
    /// One past the highest byte seen.
    next: u32,
    holes: [Hole; HOLES_MAX],
    hole_count: u8,
}

/// Distance on the circle of sequence numbers: positive when `left` is ahead of `right`.
#[inline]
pub(super) fn ahead(left: u32, right: u32) -> i32 {
    left.wrapping_sub(right) as i32
}

impl Sequence {
    /// Takes in `length` units (payload bytes, SYN and FIN count one each) from `seq`; `only_data` without SYN and FIN.
    #[inline]
    pub(super) fn observe(
        &mut self,
        seq: u32,
        length: u32,
        only_data: bool,
        timestamp: u64,
        reorder_us: u64,
    ) -> Verdict {
        let end = seq.wrapping_add(length);
        if !self.started {
            if length > 0 {
                self.started = true;
                self.next = end;
                return Verdict::New;
            }
            return Verdict::Empty;
        }
        if length == 0 {
            return Verdict::Empty;
        }
        if seq == self.next {
            self.next = end;
            return Verdict::New;
        }
        if only_data && length == 1 && end == self.next {
            // The last byte once more, alone: a keep-alive or window probe.
            return Verdict::Empty;
        }
        self.elsewhere(seq, end, timestamp, reorder_us)
    }

    fn elsewhere(&mut self, seq: u32, end: u32, timestamp: u64, reorder_us: u64) -> Verdict {
        let jump = ahead(seq, self.next);
        if jump.unsigned_abs() > JUMP_MAX {
            self.hole_count = 0;
            self.next = end;
            return Verdict::New;
        }
        if jump > 0 {
            self.remember(Hole { start: self.next, end: seq, since: timestamp });
            self.next = end;
            return Verdict::New;
        }
        let filled = self.fill(seq, end);
        if ahead(end, self.next) > 0 {
            self.next = end;
            return Verdict::New;
        }
        match filled {
            Some(since) if timestamp.saturating_sub(since) <= reorder_us => Verdict::OutOfOrder,
            _ => Verdict::Repeated,
        }
    }

    fn remember(&mut self, hole: Hole) {
        let count = usize::from(self.hole_count);
        if count == HOLES_MAX {
            self.holes.rotate_left(1);
            self.holes[HOLES_MAX - 1] = hole;
        } else {
            self.holes[count] = hole;
            self.hole_count += 1;
        }
    }

    /// Takes the range out of the holes; says since when the hole was open.
    fn fill(&mut self, seq: u32, end: u32) -> Option<u64> {
        let count = usize::from(self.hole_count);
        let at = self.holes[..count]
            .iter()
            .position(|hole| ahead(end, hole.start) > 0 && ahead(hole.end, seq) > 0)?;
        let hole = self.holes[at];
        let before = ahead(seq, hole.start) > 0;
        let behind = ahead(hole.end, end) > 0;
        match (before, behind) {
            (true, true) => {
                self.holes[at].end = seq;
                if count < HOLES_MAX {
                    self.remember(Hole { start: end, ..hole });
                }
            }
            (true, false) => self.holes[at].end = seq,
            (false, true) => self.holes[at].start = end,
            (false, false) => {
                self.holes[at..count].rotate_left(1);
                self.hole_count -= 1;
            }
        }
        Some(hole.since)
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Empty, New, OutOfOrder, Repeated};
    use super::*;

    /// `(sequence number, length, time)` of each packet and what it is.
    fn check(packets: &[(u32, u32, u64, Verdict)]) {
        let mut sequence = Sequence::default();
        for (at, &(seq, length, time, expected)) in packets.iter().enumerate() {
            assert_eq!(
                sequence.observe(seq, length, true, time, REORDER_US),
                expected,
                "packet {at} of {packets:?}"
            );
        }
    }

    #[test]
    fn packets_are_told_apart_by_their_sequence() {
        check(&[(100, 10, 0, New), (110, 10, 1, New), (120, 0, 2, Empty)]);
        check(&[(100, 10, 0, New), (100, 10, 1, Repeated), (105, 5, 1, Repeated)]);
        check(&[(100, 10, 0, New), (105, 15, 1, New), (110, 10, 2, Repeated)]);
        check(&[(100, 10, 0, New), (109, 1, 1, Empty), (110, 5, 1, New)]);
        check(&[(u32::MAX - 4, 10, 0, New), (5, 10, 1, New), (0, 5, 2, Repeated)]);
    }

    #[test]
    fn a_hole_filled_at_once_is_disorder_and_later_a_repetition() {
        check(&[(0, 10, 0, New), (20, 10, 1, New), (10, 10, 2, OutOfOrder), (10, 10, 3, Repeated)]);
        check(&[(0, 10, 0, New), (20, 10, 1, New), (10, 10, 200_000, Repeated)]);
        check(&[
            (0, 10, 0, New),
            (30, 10, 1, New),
            (20, 5, 2, OutOfOrder),
            (10, 10, 3, OutOfOrder),
            (25, 5, 4, OutOfOrder),
        ]);
    }

    #[test]
    fn a_wild_sequence_number_begins_anew() {
        check(&[(0, 10, 0, New), (0x7000_0000, 10, 1, New), (0x7000_000a, 10, 2, New)]);
    }
}
