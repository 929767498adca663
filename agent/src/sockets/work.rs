//! Which request threads and sockets are at, as bytes come and go.

use metaflow_schema::enums::{L7Protocol, L7Type, ObservationPoint};

use super::{Call, Key, Sockets};
use crate::events::{Task, Way};

impl Sockets {
    /// Which request a socket and a thread are at, when bytes come or go.
    pub(super) fn work_for(&mut self, key: Key, task: Task, way: Way, is_turn: bool, begins: Option<bool>) {
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        let thread = self.threads.at(task);
        let known = self.loops.get_mut(&task.pid).filter(|_| task.coroutine == 0);
        match (socket.is_client_now(), way) {
            (false, Way::In) => {
                let asked = is_turn || begins == Some(true);
                if asked {
                    self.trace = self.trace.wrapping_add(1).max(1);
                    socket.trace = self.trace;
                    if let Some(known) = known {
                        known.asked(socket.trace);
                    }
                }
                let trace = socket.trace;
                self.coroutine_is_asked(key, task, begins.unwrap_or(asked), begins.is_some());
                let thread = self.threads.at(task);
                thread.trace = trace;
                thread.next.clear();
            }
            (false, Way::Out) => thread.next.retain(|trace| *trace != socket.trace),
            (true, Way::Out) => {
                let alone = is_turn || socket.protocol() != L7Protocol::Http1;
                let begins = begins.unwrap_or(alone);
                if let Some(known) = known {
                    known.choose(thread, socket, begins);
                } else if task.coroutine != 0 {
                    self.coroutine_asks(key, task, begins);
                } else {
                    socket.trace = thread.trace;
                }
            }
            // A server that speaks first answers nothing.
            (true, Way::In) => {
                thread.next.clear();
                // Whoever serves works for what it was asked until that is answered, and what a task takes from others says what it works for.
                if socket.has_sent && thread.served == 0 && !self.tasks.has_sources(task) {
                    thread.trace = socket.trace;
                }
            }
        }
    }

    /// A finished request ends the work of its thread, which goes on with the `next` one if that is there; a response makes its thread go on with
    /// what it was asked for.
    pub(super) fn after(&mut self, task: Task, way: Way, next: u64, calls: &[Call]) {
        for call in calls.iter().filter(|call| call.session.l7_type == L7Type::Session) {
            self.tasks_after(call, way);
            let has_sources = self.tasks.has_sources(task);
            let thread = self.threads.at(task);
            if let Some(known) = self.loops.get_mut(&task.pid) {
                known.after(call);
            }
            match (call.point, way) {
                (ObservationPoint::ServerProcess, Way::Out) if thread.trace == call.traces[0] => {
                    thread.trace = next;
                }
                (ObservationPoint::ClientProcess, Way::In) if thread.served == 0 && !has_sources => {
                    thread.trace = call.traces[0];
                }
                _ => {}
            }
        }
        let answered = calls.iter().filter(|call| call.point == ObservationPoint::ClientProcess);
        if way == Way::In && calls.len() > 1 {
            self.threads.at(task).next = answered.map(|call| call.traces[0]).collect();
        }
    }
}
