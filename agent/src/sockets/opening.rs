//! Sockets that were not known: whether there is room for one, and which end of a connection it is.

use std::sync::Arc;

use super::socket::Socket;
use super::{FLOW_BIT, Key, Moment, Sockets};
use crate::events::{SocketEnds, Way};
use crate::session::Config;

/// Partners of datagram sockets may take this part of the room: they come and go without end, and connections must not wait for them.
const UDP_PART: usize = 4;

impl Sockets {
    /// How requests are searched for from now on.
    pub fn set_session(&mut self, session: Arc<Config>) {
        let conversations = self.sockets.values_mut().filter_map(|socket| socket.conversation.as_mut());
        conversations.for_each(|conversation| conversation.set_config(&session));
        self.config.session = session;
    }

    /// False when there is no room.
    pub(super) fn open(&mut self, key: Key, ends: SocketEnds, is_client: bool, now: Moment) -> bool {
        let sockets_max = self.config.sockets_max;
        let is_partner = key.partner.is_some();
        if self.sockets.len() >= sockets_max || (is_partner && self.partners >= sockets_max / UDP_PART) {
            return false;
        }
        self.flows += 1;
        self.partners += usize::from(is_partner);
        self.sockets.insert(key, Socket::new(ends, is_client, FLOW_BIT | self.flows, now));
        true
    }

    /// Which end is the client, where the beginning was not seen.
    pub(super) fn is_client(&self, ends: &SocketEnds, way: Way) -> bool {
        /// Below this port only privileged programs listen; from the other on Linux takes a client's port.
        const BOUNDS: [u16; 2] = [1_024, 32_768];
        let (local, remote) = (ends.local.port(), ends.remote.port());
        let serves = [self.servers.contains(&local), self.servers.contains(&remote)];
        if serves[0] != serves[1] {
            return serves[1];
        }
        for bound in BOUNDS {
            if (local < bound) != (remote < bound) {
                return remote < bound;
            }
        }
        // Who speaks first most likely asks.
        way == Way::Out
    }
}
