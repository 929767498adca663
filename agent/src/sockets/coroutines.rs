//! Coroutines that do the work of others, and requests that follow one another on a connection.

use super::socket::Socket;
use super::threads::EARLY_MAX;
use super::{Key, Sockets};
use crate::events::{Task, Way};

impl Sockets {
    /// Each stream that a server begins has a number of its own, however many come at once.
    pub(super) fn hand_over(&mut self, task: Task, place: u64, stream: u32) {
        let is_client = self.last_socket(task).map(|socket| socket.is_client_now());
        if stream != 0 && is_client != Some(true) {
            let trace = self.trace.wrapping_add(1).max(1);
            self.trace = trace;
            let thread = self.threads.at(task);
            thread.trace = trace;
            if let Some(socket) = self.last_socket(task) {
                socket.set_stream(stream, trace);
            } else {
                // It came with the handshake, which another coroutine did.
                let early = &mut self.threads.at(task).early;
                if early.len() < EARLY_MAX {
                    early.push((stream, trace));
                }
            }
        }
        self.threads.hand_over(task, place);
    }

    /// The connection that a task reads from is known from now on.
    pub(super) fn place_streams(&mut self, key: Key, task: Task) {
        let early = std::mem::take(&mut self.threads.at(task).early);
        let Some(socket) = self.sockets.get_mut(&key).filter(|socket| !socket.is_client_now()) else {
            return;
        };
        for (stream, trace) in early {
            socket.set_stream(stream, trace);
        }
    }

    pub(super) fn take_over(&mut self, task: Task, place: u64, stream: u32) {
        let trace = self.threads.take_over(task, place);
        if stream != 0
            && trace != 0
            && let Some(socket) = self.last_socket(task)
            && socket.is_client_now()
        {
            socket.set_stream(stream, trace);
        }
    }

    /// The connection that a task used last.
    fn last_socket(&mut self, task: Task) -> Option<&mut Socket> {
        let worker = self.threads.at(task);
        let socket = if worker.plain != 0 { worker.plain } else { worker.last()?.socket };
        self.sockets.get_mut(&Key { socket, partner: None })
    }

    /// The number of the request that a server goes on with, when a response is complete.
    pub(super) fn follow(&mut self, key: Key, way: Way) -> u64 {
        let (Some(session), Some(socket)) = (self.sessions.last(), self.sockets.get_mut(&key)) else {
            return 0;
        };
        let fresh = self.trace.wrapping_add(1).max(1);
        let next = if way == Way::Out { socket.follow(session, fresh) } else { None };
        if next == Some(fresh) {
            self.trace = fresh;
        }
        next.unwrap_or(0)
    }
}
