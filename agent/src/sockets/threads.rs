//! What threads are at: the request that a thread works for, and which sockets it touched last.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::events::Way;

/// Threads that are remembered.
const THREADS_MAX: usize = 65_536;
/// A thread that was silent for so long makes room.
const IDLE_NS: u64 = 60_000_000_000;
/// Transfers of one thread that are remembered: a call into a TLS library reads a header and a body, or writes once.
const TOUCHES: usize = 8;

/// A transfer through a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Touch {
    pub(super) time: u64,
    pub(super) socket: u64,
    pub(super) is_out: bool,
    pub(super) tcp_seq: u32,
}

#[derive(Debug, Default)]
pub(super) struct Thread {
    /// The request that came in last and is not answered; 0: none.
    pub(super) trace: u64,
    /// Where it read several answers at once: what it goes on with, in their order.
    pub(super) next: VecDeque<u64>,
    /// The socket on which it was asked something that nobody has begun to answer; 0: none.
    pub(super) asked: u64,
    touches: [Touch; TOUCHES],
    count: usize,
    used: u64,
}

impl Thread {
    pub(super) fn touch(&mut self, touch: Touch) {
        self.touches[self.count % TOUCHES] = touch;
        self.count += 1;
    }

    /// Touches within a time, the oldest first.
    pub(super) fn between(&self, from: u64, to: u64) -> impl Iterator<Item = &Touch> {
        let first = self.count.saturating_sub(TOUCHES);
        (first..self.count)
            .map(|at| &self.touches[at % TOUCHES])
            .filter(move |touch| (from..=to).contains(&touch.time))
    }

    pub(super) fn last(&self) -> Option<&Touch> {
        self.count.checked_sub(1).map(|at| &self.touches[at % TOUCHES])
    }

    /// The touch that carried what a TLS library handed over: the first of its direction, else any.
    pub(super) fn carrier(&self, from: u64, to: u64, way: Way) -> Option<Touch> {
        let is_out = way == Way::Out;
        self.between(from, to)
            .find(|touch| touch.is_out == is_out)
            .or_else(|| self.between(from, to).next())
            .copied()
    }
}

#[derive(Debug, Default)]
pub(super) struct Threads(FxHashMap<u32, Thread>);

impl Threads {
    pub(super) fn at(&mut self, thread: u32, now: u64) -> &mut Thread {
        if self.0.len() >= THREADS_MAX && !self.0.contains_key(&thread) {
            self.0.retain(|_, thread| now.saturating_sub(thread.used) < IDLE_NS);
            if self.0.len() >= THREADS_MAX {
                self.0.clear();
            }
        }
        let thread = self.0.entry(thread).or_default();
        thread.used = now;
        thread
    }

    /// What a thread was asked on a socket is being answered, or never will be.
    pub(super) fn answered(&mut self, thread: u32, socket: u64) {
        if let Some(thread) = self.0.get_mut(&thread).filter(|thread| thread.asked == socket) {
            thread.asked = 0;
        }
    }

    pub(super) fn remove(&mut self, thread: u32) {
        self.0.remove(&thread);
    }
}
