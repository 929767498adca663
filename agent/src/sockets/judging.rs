//! What the kernel is told about sockets: what it need not copy, or look at.

use super::{Judgement, Key, Sockets};
use crate::session::Transport;

impl Sockets {
    /// Nothing more is to be learnt from a socket, so the kernel need not copy its payload.
    pub(super) fn give_up(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        if socket.is_given_up || socket.is_tls || socket.ends.transport == Transport::Udp {
            return;
        }
        socket.is_given_up = true;
        let judgement = socket.parting();
        self.judge(key, judgement);
    }

    pub(super) fn judge(&mut self, key: Key, judgement: Judgement) {
        if let Some(socket) = self.sockets.get_mut(&key) {
            socket.is_judged = true;
            self.judgements.push((key.socket, judgement));
        }
    }

    /// The kernel has forgotten what it was told: says it again.
    pub fn judge_again(&mut self) {
        self.datagrams.judge_again();
        for (key, socket) in &mut self.sockets {
            socket.forget_skips();
            let judgement = if socket.is_tls {
                if self.config.tls { Judgement::NoPayload } else { Judgement::Ignore }
            } else if socket.is_given_up {
                socket.parting()
            } else {
                continue;
            };
            self.judgements.push((key.socket, judgement));
        }
    }
}
