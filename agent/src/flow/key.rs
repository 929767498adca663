//! What makes two packets belong to one flow, and its hash.

use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;

use crate::packet::Packet;

/// The ends of a packet in an order that does not depend on its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    low: u128,
    high: u128,
    /// Both ports, the low end's first.
    ports: u32,
    interface_index: u32,
    vlan: u16,
    ip_protocol: u8,
    v6: bool,
}

impl Key {
    /// The key, and whether the packet's source is the low end.
    #[inline]
    pub(super) fn of(packet: &Packet<'_>) -> (Self, bool) {
        let (source_port, destination_port) = packet.transport.ports();
        let source = bits(packet.source);
        let destination = bits(packet.destination);
        let from_low = (source, source_port) <= (destination, destination_port);
        let (low, high, first, second) = if from_low {
            (source, destination, source_port, destination_port)
        } else {
            (destination, source, destination_port, source_port)
        };
        let key = Self {
            low,
            high,
            ports: u32::from(first) << 16 | u32::from(second),
            interface_index: packet.interface_index,
            vlan: packet.vlan,
            ip_protocol: packet.transport.number(),
            v6: packet.source.is_ipv6(),
        };
        (key, from_low)
    }
}

impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.v6 {
            for half in [self.low, self.high] {
                state.write_u64((half >> 64) as u64);
                state.write_u64(half as u64);
            }
        } else {
            state.write_u64((self.low as u64) << 32 | self.high as u64 & 0xffff_ffff);
        }
        let link = u64::from(self.interface_index) << 24 | u64::from(self.vlan) << 8;
        state.write_u64(
            u64::from(self.ports) << 32 ^ link.rotate_left(40) ^ link ^ u64::from(self.ip_protocol),
        );
    }
}

#[inline]
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Makes the hashes of one table. Senders choose addresses and ports, so the hash is keyed: with a fixed function they could
/// choose ones that collide.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyedHash {
    seed: u64,
}

impl KeyedHash {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed: fold(seed ^ 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93) | 1 }
    }
}

impl BuildHasher for KeyedHash {
    type Hasher = KeyHasher;

    #[inline]
    fn build_hasher(&self) -> KeyHasher {
        KeyHasher { state: self.seed, seed: self.seed }
    }
}

pub(super) struct KeyHasher {
    state: u64,
    seed: u64,
}

impl Hasher for KeyHasher {
    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.state = fold(self.state ^ word, self.seed).wrapping_add(word.rotate_left(29));
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        fold(self.state, 0x9e37_79b9_7f4a_7c15)
    }
}

/// Multiplies to 128 bits and folds the halves: every bit of both factors reaches every bit of the result.
#[inline]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product >> 64) as u64 ^ product as u64
}

/// A set of port numbers.
#[derive(Clone)]
pub(super) struct PortSet {
    words: Box<[u64; 1024]>,
    empty: bool,
}

impl PortSet {
    pub(super) fn new(ports: &[u16]) -> Self {
        let mut set = Self { words: Box::new([0; 1024]), empty: true };
        for port in ports {
            set.insert(*port);
        }
        set
    }

    #[inline]
    pub(super) fn insert(&mut self, port: u16) {
        self.words[usize::from(port >> 6)] |= 1 << (port & 63);
        self.empty = false;
    }

    #[inline]
    pub(super) fn contains(&self, port: u16) -> bool {
        !self.empty && self.words[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }
}
