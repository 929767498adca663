//! Connections with TLS whose plain text nobody shows: their program has a library that cannot be looked into, or no names for its functions.
//!
//! They are counted, and their processes are named, so that it is known what is not seen. Who gives up during the handshake is not counted; who
//! asks nothing after it is, because the tickets that servers send look like an answer.

use super::{Key, Sockets};
use crate::events::Way;

/// So often sides speak until a request is answered: hello, hello, the end of the handshake with the request, the answer.
const TURNS: u8 = 4;
/// A library is found within a second, and its plain text comes with the next call.
const PATIENCE_US: u64 = 3_000_000;
/// Processes that are waiting to be named.
const PROCESSES_MAX: usize = 64;

/// How far a connection is whose plain text was not seen.
#[derive(Debug, Default)]
pub(super) struct Dark {
    way: Option<Way>,
    turns: u8,
    is_counted: bool,
}

impl Dark {
    /// Something encrypted came or went.
    pub(super) fn transfer(&mut self, way: Way) {
        if self.way.replace(way) != Some(way) {
            self.turns = self.turns.saturating_add(1);
        }
    }

    /// Whether it is to be counted, at this age.
    pub(super) fn is_due(&self, age_us: u64) -> bool {
        !self.is_counted && self.turns >= TURNS && age_us >= PATIENCE_US
    }
}

impl Sockets {
    /// Counts a connection, once, if its plain text was not seen.
    pub(super) fn count_dark(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        let dark = &mut socket.dark;
        if !self.config.tls || !socket.is_tls || socket.conversation.is_some() || dark.is_counted {
            return;
        }
        if dark.turns < TURNS {
            return;
        }
        dark.is_counted = true;
        self.counters.unseen_tls += 1;
        if self.dark.len() < PROCESSES_MAX && !self.dark.contains(&socket.pid) {
            self.dark.push(socket.pid);
        }
    }

    /// Processes whose TLS stays unseen, that were found since the last call.
    pub fn take_dark(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.dark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::tests::{GET, Host};

    const HELLO: &[u8] = &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5];
    const RECORD: &[u8] = &[0x17, 3, 3, 0, 5];

    fn talk(host: &mut Host, socket: u64, turns: usize) {
        host.open(socket);
        for turn in 0..turns {
            let way = if turn % 2 == 0 { Way::Out } else { Way::In };
            host.transfer(socket, 70, way, if turn == 0 { HELLO } else { RECORD });
            host.transfer(socket, 70, way, RECORD);
        }
    }

    #[test]
    fn a_connection_whose_plain_text_is_not_seen_is_counted_once_with_its_process() {
        let mut host = Host::new();
        talk(&mut host, 1, 4);
        // The peer went away.
        talk(&mut host, 2, 3);
        talk(&mut host, 3, 4);
        host.plain(0xa, 70, Way::Out, host.now(), GET);
        let count = |host: &Host| host.sockets.counters().unseen_tls;
        host.tick(1_000);
        assert_eq!(count(&host), 0, "its library may be found yet");
        host.tick(5_000);
        host.tick(7_000);
        assert_eq!((count(&host), host.sockets.take_dark()), (1, vec![7]));
        // One that ends before is counted as it ends.
        talk(&mut host, 4, 4);
        host.close(4);
        host.close(1);
        host.tick(8_000);
        assert_eq!((count(&host), host.sockets.take_dark()), (2, vec![7]));
        assert!(host.sockets.take_dark().is_empty());
    }
}
