//! Which processes work for several requests on one thread: event loops (nginx, Node), coroutines (tokio).
//!
//! They are told from others by what they do: a thread is asked on a second connection before the first is answered, another thread answers
//! than was asked, or responses on one connection overlap. From then on, until the process ends or becomes another program, its links are
//! guesses: a request is put to what its thread read last before it was sent, or, the first one on a new connection, to what the thread read
//! last before it began that connection. A proxy begins one as soon as it has read a request, and writes when the connection stands. Of
//! several answers that were read at once, each is gone on with once, in their order. Where work goes from thread to thread, threads say
//! nothing: there what was read first in the process is gone on with first.

use std::collections::VecDeque;

use metaflow_schema::enums::{L7Protocol, ObservationPoint};
use rustc_hash::FxHashSet;

use super::socket::Socket;
use super::threads::Thread;
use super::{Call, Key, Sockets};
use crate::events::{Task, Way};

/// Connections that were begun and are not established.
const CONNECTING_MAX: usize = 16_384;
/// Processes that are remembered.
const LOOPS_MAX: usize = 16_384;
/// Requests of one process that can be gone on with.
const READY_MAX: usize = 4_096;

/// A connection that is begun: by whom, and for which request, 0: for none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connecting {
    pub(super) pid: u32,
    pub(super) trace: u64,
}

/// What is known of such a process.
#[derive(Debug, Default)]
pub(super) struct Loop {
    /// Where work goes from thread to thread, a thread says nothing.
    moving: Option<Moving>,
}

#[derive(Debug, Default)]
struct Moving {
    /// Requests that are not answered.
    open: FxHashSet<u64>,
    /// Those of them that can be gone on with, since they were read or an answer to something asked for them was, in that order.
    ready: VecDeque<u64>,
}

impl Moving {
    /// The next one. One that was answered is skipped, else every later one would be put to the request before it.
    fn next(&mut self) -> Option<u64> {
        let Self { open, ready } = self;
        std::iter::from_fn(|| ready.pop_front()).find(|trace| open.contains(trace))
    }
}

impl Loop {
    /// A request came in.
    pub(super) fn asked(&mut self, trace: u64) {
        let Some(Moving { open, ready }) = &mut self.moving else { return };
        if ready.len() >= READY_MAX || open.len() >= READY_MAX {
            open.clear();
            ready.clear();
        }
        open.insert(trace);
        ready.push_back(trace);
    }

    /// A request is answered, or will never be.
    pub(super) fn answered(&mut self, trace: u64) {
        if let Some(Moving { open, ready }) = &mut self.moving {
            open.remove(&trace);
            ready.retain(|known| *known != trace);
        }
    }

    /// What a thread sends to a server is for. `begins`: a request begins.
    pub(super) fn choose(&mut self, thread: &mut Thread, socket: &mut Socket, begins: bool) {
        if !begins {
            return;
        }
        // The connection is written to when it stands, and by then the thread has read other things.
        let begun_for = if socket.has_sent { 0 } else { socket.begun_for };
        let first = self.moving.as_mut().map_or_else(|| thread.next.pop_front(), Moving::next);
        match (begun_for, first) {
            (0, Some(first)) => thread.trace = first,
            (0, None) => {}
            (trace, _) => thread.trace = trace,
        }
        socket.trace = thread.trace;
    }

    /// A request is answered, or what was asked for it.
    pub(super) fn after(&mut self, call: &Call) {
        let trace = call.traces[0];
        if call.point == ObservationPoint::ServerProcess {
            self.answered(trace);
        } else if let Some(moving) = &mut self.moving
            && moving.open.contains(&trace)
        {
            moving.ready.push_back(trace);
        }
    }
}

impl Sockets {
    /// A connection is begun for what its thread works for.
    pub(super) fn connecting(&mut self, socket: u64, task: Task) {
        let trace = self.threads.at(task).trace;
        if self.connecting.len() >= CONNECTING_MAX {
            self.connecting.clear();
        }
        self.connecting.insert(socket, Connecting { pid: task.pid, trace });
    }

    /// The other side of a conversation speaks: whether that shows that the process does not keep to one request a thread.
    pub(super) fn turn(&mut self, key: Key, task: Task, way: Way) {
        // Where coroutines are told apart, threads say nothing.
        if task.coroutine != 0 {
            return;
        }
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        if socket.protocol() == L7Protocol::Unknown || key.partner.is_some() {
            return;
        }
        let is_client = socket.is_client_now();
        if is_client == (way == Way::Out) {
            socket.asker = task.thread;
            let thread = self.threads.at(task);
            let asked = if is_client { 0 } else { std::mem::replace(&mut thread.asked, key.socket) };
            if asked != 0 && asked != key.socket {
                self.is_loop(task.pid, false);
            }
        } else {
            let asker = socket.asker;
            self.threads.answered(asker, key.socket);
            if asker != 0 && asker != task.thread {
                self.is_loop(task.pid, true);
            }
        }
    }

    /// `moves`: its work goes from thread to thread.
    pub(super) fn is_loop(&mut self, pid: u32, moves: bool) {
        if self.loops.len() >= LOOPS_MAX && !self.loops.contains_key(&pid) {
            self.loops.clear();
        }
        let known = self.loops.entry(pid).or_default();
        if moves {
            known.moving.get_or_insert_default();
        }
    }
}
