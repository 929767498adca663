//! One direction of a socket: which bytes came in which call.

use std::collections::VecDeque;

use crate::events::Task;

/// Calls that are remembered; calls of one thread that follow one another count as one.
const MARKS_MAX: usize = 128;
/// The same of connections that carry many requests at a time: a request is open while others come and go.
const MARKS_MULTIPLEXED_MAX: usize = 1_024;
/// Bytes of one mark: far from where sequence numbers wrap round.
const MARK_LENGTH_MAX: u32 = 1 << 30;

/// Which call a byte came with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) task: Task,
    pub(super) trace: u64,
    /// The number is a guess, whatever the process is.
    pub(super) is_guess: bool,
    pub(super) tcp_seq: u32,
}

#[derive(Debug)]
struct Mark {
    start: u32,
    length: u32,
    origin: Origin,
    /// Later bytes have later numbers; in TLS they do not.
    counts: bool,
}

/// Bytes are numbered by their place in the stream, whatever carries it (TCP, datagrams, TLS): parsers say with that number where a
/// message begins, and the marks say which call that was.
#[derive(Debug)]
pub(super) struct Stream {
    next: u32,
    /// TCP sequence number of the next byte, once one was seen.
    expected: Option<u32>,
    marks: VecDeque<Mark>,
    marks_max: usize,
}

impl Default for Stream {
    fn default() -> Self {
        // 0 is what parsers say of no byte.
        Self { next: 1, expected: None, marks: VecDeque::new(), marks_max: MARKS_MAX }
    }
}

impl Stream {
    /// It carries many requests at a time.
    pub(super) fn multiplex(&mut self) {
        self.marks_max = MARKS_MULTIPLEXED_MAX;
    }

    /// Bytes before this one were not seen. Notes what comes next.
    pub(super) fn is_gap(&mut self, tcp_seq: u32, length: u32) -> bool {
        let expected = self.expected.replace(tcp_seq.wrapping_add(length));
        expected.is_some_and(|expected| expected != tcp_seq)
    }

    /// Numbers the bytes of a call; gives the number of the first. `counts`: later bytes have later sequence numbers. `is_turn`: the other side
    /// spoke before.
    pub(super) fn push(&mut self, length: u32, origin: Origin, counts: bool, is_turn: bool) -> u32 {
        let start = self.next;
        self.next = match start.wrapping_add(length) {
            0 => 1,
            next => next,
        };
        if let Some(last) = self.marks.back_mut() {
            // Of plain text inside TLS, each message has the number of the record that carried its beginning.
            let follows = if counts {
                last.origin.tcp_seq.wrapping_add(last.length) == origin.tcp_seq
            } else {
                !is_turn
            };
            if last.origin.task == origin.task
                && last.origin.trace == origin.trace
                && last.origin.is_guess == origin.is_guess
                && last.counts == counts
                && follows
                && last.start.wrapping_add(last.length) == start
                && last.length < MARK_LENGTH_MAX
            {
                last.length += length;
                return start;
            }
        }
        if self.marks.len() >= self.marks_max {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark { start, length, origin, counts });
        start
    }

    /// What came from a byte on belongs to another request than what came before: says to which, which is `fresh` where that was not
    /// told apart. None: nothing came yet.
    pub(super) fn follow(&mut self, from: u32, before: u64, fresh: u64) -> Option<u64> {
        // It is among the last ones. Beginnings are compared as sequence numbers are.
        let is_after = |mark: &&Mark| (mark.start.wrapping_add(mark.length).wrapping_sub(from) as i32) > 0;
        let after = self.marks.iter().rev().take_while(is_after).count();
        if after == 0 {
            return None;
        }
        let at = self.marks.len() - after;
        let inside = from.wrapping_sub(self.marks[at].start);
        let mut at = at;
        if (1..self.marks[at].length).contains(&inside) {
            let first = &mut self.marks[at];
            let skipped = if first.counts { inside } else { 0 };
            let origin = Origin { tcp_seq: first.origin.tcp_seq.wrapping_add(skipped), ..first.origin };
            let rest = Mark { start: from, length: first.length - inside, origin, counts: first.counts };
            first.length = inside;
            at += 1;
            self.marks.insert(at, rest);
        }
        let rest = self.marks.range_mut(at..);
        for mark in rest.filter(|mark| mark.origin.trace == before) {
            mark.origin.trace = fresh;
        }
        self.marks.back().map(|mark| mark.origin.trace)
    }

    /// The call that a byte came with.
    pub(super) fn origin(&self, number: u32) -> Option<Origin> {
        let mark = self.marks.iter().rev().find(|mark| number.wrapping_sub(mark.start) < mark.length)?;
        let offset = if mark.counts { number.wrapping_sub(mark.start) } else { 0 };
        Some(Origin { tcp_seq: mark.origin.tcp_seq.wrapping_add(offset), ..mark.origin })
    }
}
