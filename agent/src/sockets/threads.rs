//! What threads and coroutines are at: the request that one works for, and which sockets it touched last.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::plain::Name;
use crate::events::{Task, Way};

/// Threads and coroutines that are remembered for certain; twice as many may be.
const WORKERS_MAX: usize = 32_768;
/// Transfers of one worker that are remembered: a call into a TLS library reads a header and a body, or writes once.
const TOUCHES: usize = 8;

/// Type, version and length of a record of TLS.
const RECORD_HEAD: u32 = 5;

/// Streams that wait for their connection.
pub(super) const EARLY_MAX: usize = 64;

/// Streams that were read and for which no task was begun: servers that begin none have no use for them.
const BEGUN_MAX: usize = 256;

/// A transfer through a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Touch {
    pub(super) time: u64,
    pub(super) socket: u64,
    pub(super) is_out: bool,
    pub(super) tcp_seq: u32,
    pub(super) length: u32,
}

#[derive(Debug, Default)]
pub(super) struct Thread {
    /// The request that came in last and is not answered; 0: none.
    pub(super) trace: u64,
    /// Where it read several answers at once: what it goes on with, in their order.
    pub(super) next: VecDeque<u64>,
    /// The socket on which it was asked something that nobody has begun to answer; 0: none.
    pub(super) asked: u64,
    /// Streams of a connection that is not known yet, and the numbers that they got.
    pub(super) early: Vec<(u32, u64)>,
    /// The socket whose plain text it got or gave last, which others may have filled and emptied for it; 0: none.
    pub(super) plain: u64,
    /// Of a coroutine: the socket on which it was asked last; 0: it serves nobody.
    pub(super) served: u64,
    /// It was asked on another one before it had answered.
    pub(super) shares: bool,
    /// It works for what the task that began it worked for then.
    pub(super) inherits: bool,
    /// Streams that it read of, for which it will begin tasks.
    pub(super) begun: VecDeque<u64>,
    /// Sessions of libraries that know no socket, with plain text that is on its way to one.
    pub(super) sending: Vec<Name>,
    touches: [Touch; TOUCHES],
    count: usize,
}

impl Thread {
    pub(super) fn touch(&mut self, touch: Touch) {
        self.touches[self.count % TOUCHES] = touch;
        self.count += 1;
    }

    pub(super) fn begin_stream(&mut self, trace: u64) {
        if self.begun.len() >= BEGUN_MAX {
            self.begun.pop_front();
        }
        self.begun.push_back(trace);
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

    /// The last one that read.
    pub(super) fn last_read(&self) -> Option<&Touch> {
        let first = self.count.saturating_sub(TOUCHES);
        (first..self.count).rev().map(|at| &self.touches[at % TOUCHES]).find(|touch| !touch.is_out)
    }

    /// The touch that carried what a TLS library handed over: of what was sent the first. A handshake may have been done in the same call, or
    /// other records read: of what was received, it is the head of the last record, where heads are read by themselves; else the first.
    pub(super) fn carrier(&self, from: u64, to: u64, way: Way) -> Option<Touch> {
        let is_out = way == Way::Out;
        let mut fitting = self.between(from, to).filter(|touch| touch.is_out == is_out);
        let first = fitting.next();
        let head = first.into_iter().chain(fitting).filter(|touch| !is_out && touch.length == RECORD_HEAD);
        head.last().or(first).or_else(|| self.between(from, to).next()).copied()
    }
}

/// A coroutine of a process, or a thread of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Worker {
    Thread(u32),
    Coroutine { pid: u32, number: u64 },
}

impl Worker {
    fn of(Task { pid, thread, coroutine }: Task) -> Self {
        match coroutine {
            0 => Self::Thread(thread),
            number => Self::Coroutine { pid, number },
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Threads {
    workers: Recent<Worker, Thread>,
    /// Requests whose work was left in a place of a process.
    places: Recent<(u32, u64), u64>,
}

impl Threads {
    pub(super) fn at(&mut self, task: Task) -> &mut Thread {
        self.workers.at(Worker::of(task))
    }

    /// What a thread was asked on a socket is being answered, or never will be.
    pub(super) fn answered(&mut self, thread: u32, socket: u64) {
        let worker = Worker::Thread(thread);
        if self.workers.get(&worker).is_some_and(|thread| thread.asked == socket) {
            self.workers.at(worker).asked = 0;
        }
    }

    pub(super) fn remove(&mut self, task: Task) {
        self.workers.remove(&Worker::of(Task { coroutine: 0, ..task }));
    }

    /// What a coroutine begins while it works for a request works for it, too.
    pub(super) fn spawn(&mut self, task: Task, child: u64) {
        let trace = self.workers.get(&Worker::of(task)).map_or(0, |parent| parent.trace);
        // Most coroutines are begun for no request, and need no place here.
        if trace != 0 {
            self.at(Task { coroutine: child, ..task }).trace = trace;
        }
    }

    pub(super) fn hand_over(&mut self, task: Task, place: u64) {
        let trace = self.workers.get(&Worker::of(task)).map_or(0, |worker| worker.trace);
        *self.places.at((task.pid, place)) = trace;
    }

    /// Who takes over works for what was handed over, and for nothing else.
    pub(super) fn take_over(&mut self, task: Task, place: u64) -> u64 {
        let trace = self.places.get(&(task.pid, place)).copied().unwrap_or(0);
        self.at(task).trace = trace;
        trace
    }
}

/// What was used last: when there is no room, what was not used for longest is forgotten, in one go.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: FxHashMap<K, V>,
    old: FxHashMap<K, V>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { young: FxHashMap::default(), old: FxHashMap::default() }
    }
}

impl<K: Copy + Eq + std::hash::Hash, V: Default> Recent<K, V> {
    pub(super) fn at(&mut self, key: K) -> &mut V {
        if self.young.len() >= WORKERS_MAX && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        let Self { young, old } = self;
        young.entry(key).or_insert_with(|| old.remove(&key).unwrap_or_default())
    }

    /// What is there, which counts as used.
    pub(super) fn touch(&mut self, key: &K) -> Option<&V> {
        if self.get(key).is_some() { Some(self.at(*key)) } else { None }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_read_came_with_the_last_record_whose_head_it_read() {
        let carrier = |lengths: &[(bool, u32)], way| {
            let mut thread = Thread::default();
            for (at, (is_out, length)) in lengths.iter().enumerate() {
                let (time, tcp_seq) = (at as u64, at as u32);
                thread.touch(Touch { time, socket: 1, is_out: *is_out, tcp_seq, length: *length });
            }
            thread.carrier(0, 100, way).map(|touch| touch.tcp_seq)
        };
        // A handshake, and then the request in two parts.
        let reads = [
            (false, 5),
            (false, 300),
            (true, 900),
            (false, 5),
            (false, 60),
            (false, 5),
            (false, 80),
            (false, 9),
        ];
        assert_eq!(carrier(&reads, Way::In), Some(5));
        // Many records in one go, then the rest of the last one.
        assert_eq!(carrier(&[(false, 4_000), (false, 100)], Way::In), Some(0));
        assert_eq!(carrier(&[(true, 5), (true, 16_000)], Way::Out), Some(0));
        assert_eq!(carrier(&[(true, 5)], Way::In), Some(0));
        assert_eq!(carrier(&[], Way::In), None);
    }

    #[test]
    fn who_is_busy_is_not_forgotten_for_those_who_come_and_go() {
        let mut threads = Threads::default();
        let task = |coroutine| Task { pid: 1, thread: 1, coroutine };
        threads.at(task(1)).trace = 7;
        for coroutine in 2..10 * WORKERS_MAX as u64 {
            threads.at(task(coroutine)).trace = coroutine;
            assert!(coroutine % 1_000 != 0 || threads.at(task(1)).trace == 7);
        }
        assert!(threads.workers.young.len() + threads.workers.old.len() <= 2 * WORKERS_MAX);
    }
}
