//! Datagrams as an attacker would write them, for the tests.

use std::net::SocketAddr;

use super::screen::Identity;

/// Bytes in the gossip library's format.
#[derive(Debug, Clone, Default)]
pub(super) struct Forged(pub(super) Vec<u8>);

impl Forged {
    /// A message of a kind: 0 syn, 1 syn-ack, 2 ack, 3 another cluster.
    pub(super) fn message(kind: u8) -> Self {
        Self(vec![0x53, 0xb0, 1, kind])
    }

    pub(super) fn u8(mut self, number: u8) -> Self {
        self.0.push(number);
        self
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn text(mut self, text: &str) -> Self {
        self.0.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    pub(super) fn identity(self, identity: &Identity) -> Self {
        let mut forged = self.text(&identity.node).number(identity.generation);
        match identity.address {
            SocketAddr::V4(address) => {
                forged = forged.u8(4);
                forged.0.extend(address.ip().octets());
            }
            SocketAddr::V6(address) => {
                forged = forged.u8(6);
                forged.0.extend(address.ip().octets());
            }
        }
        forged.0.extend(identity.address.port().to_le_bytes());
        forged
    }

    /// An entry of a digest.
    pub(super) fn entry(self, identity: &Identity, heartbeat: u64, version: u64) -> Self {
        self.identity(identity).number(heartbeat).number(0).number(version)
    }

    /// The part of a delta that says whose values follow.
    pub(super) fn of(self, identity: &Identity) -> Self {
        self.u8(0).identity(identity).number(0).number(0)
    }

    pub(super) fn value(self, key: &str, value: &str, version: u64) -> Self {
        self.u8(1).text(key).text(value).number(version).u8(0)
    }

    /// Appends a stream of uncompressed blocks with `content`.
    pub(super) fn stream(mut self, content: &Self) -> Self {
        for block in content.0.chunks(16_384) {
            self.0.push(2);
            self.0.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
            self.0.extend(block);
        }
        self.u8(0)
    }

    /// Appends a compressed block, without the end of its stream.
    pub(super) fn compressed(mut self, content: &[u8]) -> Self {
        let block = zstd::bulk::compress(content, 3).unwrap();
        self.0.push(1);
        self.0.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
        self.0.extend(block);
        self
    }
}

pub(super) fn identity(node: &str, generation: u64) -> Identity {
    Identity { node: node.into(), generation, address: "10.0.0.1:20037".parse().unwrap() }
}
