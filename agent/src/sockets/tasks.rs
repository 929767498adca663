//! Tasks of tokio: which request one works for, where requests go from task to task before they are sent.
//!
//! A task that reads requests works for them, and what it sends itself is sent for them; so does a task that it begins meanwhile. Many clients
//! leave their requests in a queue, from which another task takes them and sends them on a connection of all, over further queues and tasks
//! (tonic, redis, reqwest). All of them keep the order, and what is left in a queue is seen; so the task that writes takes what was left first in a queue
//! from which its work comes: over the queues at which it waits, the tasks that wake it, and what those get their work from.
//! Where several things are in these queues, that is a guess, because the order may be another one by a hair; where one is, it is not.
//!
//! A task that works for nothing and has its work from nowhere (a timer) leaves something in a queue, too: it is counted as work for nothing, so that
//! the next one is put to the right request. What was given up on its way, or was on its way when the probes came, would shift all that follows:
//! so what is left over each time, many times over, is taken out.

use std::collections::VecDeque;

use metaflow_schema::enums::{L7Protocol, ObservationPoint};
use rustc_hash::FxHashSet;

use super::threads::Recent;
use super::{Call, Key, Sockets};
use crate::events::{Act, Task, Way};

/// Sources of one task or queue.
const SOURCES_MAX: usize = 16;
/// Tasks and queues that are looked at to find what a task works for.
const VISITED_MAX: usize = 64;
/// Things in one queue.
const LEFT_MAX: usize = 4_096;
/// Requests that are not answered.
const OPEN_MAX: usize = 65_536;
/// After so many takings in which something was left over each time, that much is believed to be nobody's.
const TAKINGS: u32 = 64;

/// Where work comes from, within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Node {
    Task(u64),
    Queue(u64),
}

/// Something in a queue, for a request or for none (0).
#[derive(Debug, Clone, Copy)]
struct Left {
    order: u64,
    trace: u64,
    /// A task of which no source of work was known then; should one turn out, this is nothing. Else 0.
    unknown: u64,
}

/// What is left over when a task takes something.
#[derive(Debug, Clone, Copy, Default)]
struct Over {
    takings: u32,
    least: usize,
}

#[derive(Debug, Default)]
pub(super) struct Tasks {
    sources: Recent<(u32, Node), VecDeque<Node>>,
    queues: Recent<(u32, u64), VecDeque<Left>>,
    /// Which task waited last for what comes into a queue. Timers are waited for likewise; nobody leaves anything there.
    takers: Recent<(u32, u64), u64>,
    over: Recent<(u32, u64), Over>,
    open: FxHashSet<u64>,
    order: u64,
}

/// What a task that sends works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    trace: u64,
    is_guess: bool,
}

impl Tasks {
    pub(super) fn asked(&mut self, trace: u64) {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.open.insert(trace);
    }

    pub(super) fn answered(&mut self, trace: u64) {
        self.open.remove(&trace);
    }

    /// Its work comes out of a queue.
    fn takes(&mut self, Task { pid, coroutine, .. }: Task) -> bool {
        let sources = self.sources.touch(&(pid, Node::Task(coroutine)));
        sources.is_some_and(|sources| sources.iter().any(|node| matches!(node, Node::Queue(_))))
    }

    pub(super) fn has_sources(&mut self, Task { pid, coroutine, .. }: Task) -> bool {
        coroutine != 0 && self.sources.touch(&(pid, Node::Task(coroutine))).is_some()
    }

    fn source(&mut self, pid: u32, of: Node, source: Node) {
        let sources = self.sources.at((pid, of));
        sources.retain(|known| *known != source);
        sources.push_back(source);
        if sources.len() <= SOURCES_MAX {
            return;
        }
        // Tasks that come and go with each request wake others, too: those that take from a queue are what matters.
        let known = Vec::from_iter(sources.iter().copied());
        let matters = |node: &Node| match node {
            Node::Queue(_) => true,
            Node::Task(_) => {
                let behind = self.sources.get(&(pid, *node)).into_iter().flatten();
                behind.into_iter().any(|node| matches!(node, Node::Queue(_)))
            }
        };
        let least = known.iter().position(|node| !matters(node)).unwrap_or(0);
        self.sources.at((pid, of)).remove(least);
    }

    fn wakes(&mut self, Task { pid, coroutine, .. }: Task, other: u64) {
        self.source(pid, Node::Task(other), Node::Task(coroutine));
    }

    fn waits(&mut self, Task { pid, coroutine, .. }: Task, queue: u64) {
        *self.takers.at((pid, queue)) = coroutine;
        if self.queues.get(&(pid, queue)).is_some() {
            self.source(pid, Node::Task(coroutine), Node::Queue(queue));
        }
    }

    /// `work`: what the task works for. None: that is found by where its own work comes from.
    fn sends(&mut self, Task { pid, coroutine, .. }: Task, queue: u64, work: Option<u64>) {
        if self.queues.get(&(pid, queue)).is_none()
            && let Some(taker) = self.takers.get(&(pid, queue)).copied()
        {
            self.source(pid, Node::Task(taker), Node::Queue(queue));
        }
        let left = self.queues.at((pid, queue));
        match work {
            Some(trace) => {
                if left.len() >= LEFT_MAX {
                    left.clear();
                }
                self.order += 1;
                let unknown = if trace == 0 { coroutine } else { 0 };
                left.push_back(Left { order: self.order, trace, unknown });
            }
            None => self.source(pid, Node::Queue(queue), Node::Task(coroutine)),
        }
    }

    /// Queues with something in them from which a task's work comes.
    fn queues_of(&mut self, Task { pid, coroutine, .. }: Task) -> Vec<u64> {
        let Self { sources, queues, takers, open, .. } = self;
        let (mut nodes, mut at, mut found) = (vec![Node::Task(coroutine)], 0, Vec::new());
        while let Some(node) = nodes.get(at).copied() {
            at += 1;
            for source in sources.touch(&(pid, node)).into_iter().flatten() {
                let is_taken = match (source, node) {
                    (Node::Queue(queue), Node::Task(task)) => takers.touch(&(pid, *queue)) == Some(&task),
                    _ => true,
                };
                if is_taken && nodes.len() < VISITED_MAX && !nodes.contains(source) {
                    nodes.push(*source);
                }
            }
            let Node::Queue(queue) = node else { continue };
            let is_void = |left: &Left| match left.unknown {
                0 => !open.contains(&left.trace),
                task => sources.get(&(pid, Node::Task(task))).is_some(),
            };
            let left = queues.at((pid, queue));
            while left.front().is_some_and(is_void) {
                left.pop_front();
            }
            if !left.is_empty() {
                found.push(queue);
            }
        }
        found
    }

    /// Takes what was left first in these queues.
    fn pop(&mut self, pid: u32, queues: &[u64]) -> Option<u64> {
        let first = |queue: &u64| self.queues.get(&(pid, *queue))?.front().map(|left| left.order);
        let (_, queue) = queues.iter().filter_map(|queue| Some((first(queue)?, *queue))).min()?;
        self.queues.at((pid, queue)).pop_front().map(|left| left.trace)
    }

    /// What a task that sends works for. `one_by_one`: what it sends at one time is one of the things in its queues; else nothing is known where
    /// there are several.
    fn take(&mut self, task: Task, one_by_one: bool) -> Taken {
        let queues = self.queues_of(task);
        let count = |tasks: &Self| {
            let left = queues.iter().filter_map(|queue| tasks.queues.get(&(task.pid, *queue)));
            left.map(VecDeque::len).sum::<usize>()
        };
        let all = count(self);
        if all > 1 && !one_by_one {
            queues.iter().for_each(|queue| self.queues.at((task.pid, *queue)).clear());
            return Taken { trace: 0, is_guess: true };
        }
        let trace = self.pop(task.pid, &queues).unwrap_or(0);
        let left = count(self);
        let over = self.over.at((task.pid, task.coroutine));
        over.least = if over.takings == 0 { left } else { over.least.min(left) };
        over.takings += 1;
        if over.takings == TAKINGS {
            let Over { least, .. } = std::mem::take(over);
            for _ in 0..least {
                self.pop(task.pid, &queues);
            }
        }
        Taken { trace, is_guess: all > 1 }
    }
}

impl Sockets {
    pub(super) fn act(&mut self, task: Task, act: Act, other: u64) {
        let worker = self.threads.at(task);
        let serves = worker.served != 0;
        match act {
            Act::Spawns => {
                let trace = worker.begun.pop_front().unwrap_or(worker.trace);
                if trace != 0 {
                    let child = self.threads.at(Task { coroutine: other, ..task });
                    child.trace = trace;
                    child.inherits = true;
                }
            }
            // Whoever serves wakes those to whom it hands something, which is seen in queues.
            Act::Wakes => {
                let woken = self.threads.at(Task { coroutine: other, ..task }).served;
                if !serves && woken == 0 {
                    self.tasks.wakes(task, other);
                }
            }
            Act::Waits => self.tasks.waits(task, other),
            Act::Sends => {
                let (trace, inherits) = (worker.trace, worker.inherits);
                let is_open = self.tasks.open.contains(&trace);
                let work = if serves || (inherits && !self.tasks.takes(task)) {
                    Some(if is_open { trace } else { 0 })
                } else if self.tasks.has_sources(task) {
                    None
                } else {
                    Some(0)
                };
                self.tasks.sends(task, other, work);
            }
        }
    }

    /// A coroutine is asked, on a connection to it.
    pub(super) fn coroutine_is_asked(&mut self, key: Key, task: Task, begins: bool, is_stream: bool) {
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        socket.is_guess = false;
        if task.coroutine == 0 {
            return;
        }
        let worker = self.threads.at(task);
        worker.shares |= worker.trace != 0 && worker.served != 0 && worker.served != key.socket;
        worker.served = key.socket;
        if begins {
            if is_stream {
                worker.begin_stream(socket.trace);
            }
            self.tasks.asked(socket.trace);
        }
    }

    /// What a coroutine sends to a server is for. `begins`: a request begins.
    pub(super) fn coroutine_asks(&mut self, key: Key, task: Task, begins: bool) {
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        let worker = self.threads.at(task);
        let is_multiplexed = socket.protocol() == L7Protocol::Http2;
        let sends_itself = worker.served != 0
            || if worker.inherits {
                !is_multiplexed && !self.tasks.takes(task)
            } else {
                !self.tasks.has_sources(task)
            };
        if sends_itself {
            socket.trace =
                if worker.inherits && !self.tasks.open.contains(&worker.trace) { 0 } else { worker.trace };
            socket.is_guess = worker.shares;
        } else if begins {
            let one_by_one = is_multiplexed || socket.protocol() == L7Protocol::Http1;
            let Taken { trace, is_guess } = self.tasks.take(task, one_by_one);
            socket.trace = trace;
            socket.is_guess = is_guess;
        }
    }

    /// What is answered needs nothing more.
    pub(super) fn tasks_after(&mut self, call: &Call, way: Way) {
        if call.point == ObservationPoint::ServerProcess && way == Way::Out {
            self.tasks.answered(call.traces[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(coroutine: u64) -> Task {
        Task { pid: 1, thread: 1, coroutine }
    }

    #[test]
    fn work_is_found_over_queues_and_tasks() {
        let [first, second, elsewhere] = [100, 101, 102];
        let (worker, dispatcher, writer, other) = (task(20), task(21), task(22), task(23));
        let mut tasks = Tasks::default();
        (1..=3).for_each(|trace| tasks.asked(trace));
        tasks.waits(worker, first);
        tasks.sends(task(1), first, Some(1));
        // What one task hands on to the next was for the same.
        tasks.sends(worker, second, None);
        tasks.waits(dispatcher, second);
        tasks.wakes(dispatcher, writer.coroutine);
        tasks.waits(other, elsewhere);
        tasks.sends(task(2), elsewhere, Some(2));
        assert_eq!(tasks.take(writer, true), Taken { trace: 1, is_guess: false });
        assert_eq!(tasks.take(writer, true), Taken { trace: 0, is_guess: false });
        tasks.sends(task(3), first, Some(3));
        tasks.sends(task(1), first, Some(1));
        assert_eq!(tasks.take(writer, true), Taken { trace: 3, is_guess: true });
        // What was answered meanwhile is passed over.
        tasks.sends(task(3), first, Some(3));
        tasks.answered(1);
        assert_eq!(tasks.take(writer, true), Taken { trace: 3, is_guess: false });
        assert_eq!(tasks.take(other, true), Taken { trace: 2, is_guess: false });
        // Tasks that come and go wake the writer.
        (1_000..2_000).for_each(|number| tasks.wakes(task(number), writer.coroutine));
        tasks.sends(task(3), first, Some(3));
        assert_eq!(tasks.take(writer, true), Taken { trace: 3, is_guess: false });
    }

    #[test]
    fn several_things_sent_at_once_are_for_nobody() {
        let mut tasks = Tasks::default();
        (1..=3).for_each(|trace| tasks.asked(trace));
        tasks.waits(task(20), 100);
        tasks.sends(task(1), 100, Some(1));
        tasks.sends(task(2), 100, Some(2));
        assert_eq!(tasks.take(task(20), false), Taken { trace: 0, is_guess: true });
        tasks.sends(task(3), 100, Some(3));
        assert_eq!(tasks.take(task(20), false), Taken { trace: 3, is_guess: false });
    }

    #[test]
    fn nothing_grows_without_end() {
        let mut tasks = Tasks::default();
        for number in 1..=200_000 {
            tasks.asked(number);
            tasks.sends(task(number), 100, Some(number));
            tasks.wakes(task(number), 20);
        }
        assert!(tasks.open.len() <= OPEN_MAX && tasks.queues.at((1, 100)).len() <= LEFT_MAX);
        assert_eq!(tasks.sources.at((1, Node::Task(20))).len(), SOURCES_MAX);
    }

    #[test]
    fn what_was_given_up_does_not_shift_the_rest_for_ever() {
        let mut tasks = Tasks::default();
        (1..=300).for_each(|trace| tasks.asked(trace));
        tasks.waits(task(20), 100);
        tasks.sends(task(1), 100, Some(1));
        let mut shifted = 0;
        for trace in 2..=300 {
            tasks.sends(task(trace), 100, Some(trace));
            let taken = tasks.take(task(20), true);
            assert!(taken.trace == trace || taken.is_guess);
            shifted += u64::from(taken.trace != trace);
        }
        assert_eq!(shifted, u64::from(TAKINGS));
    }

    #[test]
    fn a_task_whose_work_comes_from_elsewhere_leaves_nothing_of_its_own() {
        let mut tasks = Tasks::default();
        tasks.asked(1);
        // The probes come while something is on its way.
        tasks.sends(task(20), 101, Some(0));
        tasks.waits(task(21), 101);
        tasks.sends(task(1), 100, Some(1));
        tasks.waits(task(20), 100);
        tasks.sends(task(20), 101, None);
        assert_eq!(tasks.take(task(21), true), Taken { trace: 1, is_guess: false });
        // A timer's does count.
        tasks.sends(task(30), 100, Some(0));
        tasks.sends(task(1), 100, Some(1));
        assert_eq!(tasks.take(task(21), true), Taken { trace: 0, is_guess: true });
        assert_eq!(tasks.take(task(21), true), Taken { trace: 1, is_guess: false });
    }
}
