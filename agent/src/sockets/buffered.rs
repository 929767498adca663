//! Plain text of TLS libraries that know no socket (rustls): their callers read from the socket before, and write to it after.
//!
//! What was received belongs to the socket that its thread read from last. What is sent waits until its thread writes to a socket with TLS, which is
//! commonly the next thing that it does. Where a session was seen before, its socket is known; another one is none of its.

use super::plain::{Name, Waiting};
use super::{Call, Key, Sockets};
use crate::events::{Data, Task, Way};

/// Sessions for which a thread has something to send.
const SENDING_MAX: usize = 4;

impl Sockets {
    pub(super) fn buffered(&mut self, time: u64, session: u64, data: &Data<'_>, out: &mut Vec<Call>) {
        let name = (data.task.pid, session);
        let place = self.place_of(name);
        if data.way == Way::Out {
            let thread = self.threads.at(data.task);
            if !thread.sending.contains(&name) {
                if thread.sending.len() >= SENDING_MAX {
                    thread.sending.remove(0);
                }
                thread.sending.push(name);
            }
            self.wait(name, place, time, data);
            return;
        }
        // A server writes tickets after the handshake, with which the first request may have come.
        let last = self.threads.at(data.task).last_read().copied();
        let key = place.or_else(|| last.map(|touch| Key { socket: touch.socket, partner: None }));
        let key = key.filter(|key| self.sockets.get(key).is_some_and(|socket| socket.is_tls));
        let Some(key) = key else {
            self.counters.unplaced += 1;
            return;
        };
        self.plain.place(name, key.socket);
        let tcp_seq = last.filter(|touch| touch.socket == key.socket).map_or(0, |touch| touch.tcp_seq);
        self.talk(key, self.moment(time), tcp_seq, false, data, out);
    }

    /// The socket of a session, while it is open: the place of a session in memory is used again.
    fn place_of(&self, name: Name) -> Option<Key> {
        let key = Key { socket: self.plain.socket(name)?, partner: None };
        self.sockets.get(&key).is_some_and(|socket| socket.is_tls && !socket.is_closed).then_some(key)
    }

    fn wait(&mut self, name: Name, key: Option<Key>, time: u64, data: &Data<'_>) {
        let now = self.moment(time);
        let Data { way, task, length, payload } = *data;
        match self.plain.room(name, time) {
            Some(held) => {
                held.waiting.push(Waiting {
                    key,
                    now,
                    tcp_seq: 0,
                    way,
                    task,
                    length,
                    payload: payload.into(),
                });
            }
            None => self.counters.unplaced += 1,
        }
    }

    /// A thread wrote to a socket with TLS: what its sessions have to send goes there, unless it belongs to another one.
    pub(super) fn send_buffered(&mut self, key: Key, task: Task, tcp_seq: u32, out: &mut Vec<Call>) {
        let sending = std::mem::take(&mut self.threads.at(task).sending);
        let (here, elsewhere): (Vec<Name>, Vec<Name>) =
            sending.into_iter().partition(|name| self.place_of(*name).is_none_or(|place| place == key));
        self.threads.at(task).sending = elsewhere;
        for name in here {
            let waiting = self.plain.take(name);
            // What waited too long was told already, or given up.
            if !waiting.is_empty() {
                self.plain.place(name, key.socket);
            }
            for waiting in waiting {
                self.talk(key, waiting.now, tcp_seq, false, &waiting.data(), out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
