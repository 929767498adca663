//! What the kernel need not copy: a classic BPF program for a packet socket.
//!
//! Drops the outgoing copy of what a loopback interface shows twice, and TCP and UDP packets from or to given ports. Works on any
//! link, because it reads from the network header. IPv6 packets with extension headers pass; the flow table sorts those out.

/// More ports than this are left to the flow table: jumps of a filter reach 255 instructions.
pub(super) const PORTS_MAX: usize = 64;

/// One instruction, as the kernel's `sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) jump_true: u8,
    pub(super) jump_false: u8,
    pub(super) k: u32,
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_INDEXED: u16 = 0x48;
const INDEX_IMMEDIATE: u16 = 0x01;
/// Index register = 4 * (low half of a byte): the length of an IPv4 header.
const INDEX_HEADER: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offsets that mean something else than a place in the frame.
const NETWORK: u32 = -0x10_0000_i32 as u32;
const ANCILLARY: u32 = -0x1000_i32 as u32;
const PROTOCOL: u32 = ANCILLARY;
const PACKET_TYPE: u32 = ANCILLARY + 4;
const HARDWARE_TYPE: u32 = ANCILLARY + 28;

const LOOPBACK: u32 = 772;
const OUTGOING: u32 = 4;

/// Where an instruction leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Next,
    NotLoopback,
    Ipv4,
    Ipv4Header,
    Ipv6,
    Ipv6Header,
    Ports,
    Accept,
    Drop,
}

/// A program whose jumps lead to places.
#[derive(Default)]
struct Draft {
    steps: Vec<(u16, u32, Place, Place)>,
    places: Vec<(Place, usize)>,
}

impl Draft {
    fn place(&mut self, place: Place) {
        self.places.push((place, self.steps.len()));
    }

    fn step(&mut self, code: u16, k: u32) {
        self.steps.push((code, k, Place::Next, Place::Next));
    }

    fn branch(&mut self, code: u16, k: u32, yes: Place, no: Place) {
        self.steps.push((code, k, yes, no));
    }

    fn finish(self) -> Vec<Instruction> {
        let distance = |from: usize, place: Place| {
            let at = self.places.iter().find(|(named, _)| *named == place).map_or(from + 1, |(_, at)| *at);
            u8::try_from(at - from - 1).expect("64 ports make a program of 160 instructions")
        };
        let instruction = |(from, &(code, k, yes, no)): (usize, &(u16, u32, Place, Place))| Instruction {
            code,
            jump_true: distance(from, yes),
            jump_false: distance(from, no),
            k,
        };
        self.steps.iter().enumerate().map(instruction).collect()
    }
}

/// A program that passes `snap_length` bytes of each frame that is not dropped.
pub(super) fn program(ports: &[u16], snap_length: u32) -> Vec<Instruction> {
    let mut draft = Draft::default();
    draft.step(LOAD_WORD, HARDWARE_TYPE);
    draft.branch(JUMP_EQUAL, LOOPBACK, Place::Next, Place::NotLoopback);
    draft.step(LOAD_WORD, PACKET_TYPE);
    draft.branch(JUMP_EQUAL, OUTGOING, Place::Drop, Place::NotLoopback);
    draft.place(Place::NotLoopback);
    if !ports.is_empty() {
        ports_of_packet(&mut draft);
        for offset in [0, 2] {
            draft.step(LOAD_HALF_INDEXED, NETWORK + offset);
            for port in ports.iter().take(PORTS_MAX) {
                draft.branch(JUMP_EQUAL, u32::from(*port), Place::Drop, Place::Next);
            }
        }
    }
    draft.place(Place::Accept);
    draft.step(RETURN, snap_length);
    draft.place(Place::Drop);
    draft.step(RETURN, 0);
    draft.finish()
}

/// Puts the distance from network to transport header into the index register; accepts what has no ports.
fn ports_of_packet(draft: &mut Draft) {
    draft.step(LOAD_WORD, PROTOCOL);
    draft.branch(JUMP_EQUAL, 0x0800, Place::Ipv4, Place::Next);
    draft.branch(JUMP_EQUAL, 0x86dd, Place::Ipv6, Place::Accept);
    draft.place(Place::Ipv4);
    draft.step(LOAD_BYTE, NETWORK + 9);
    draft.branch(JUMP_EQUAL, 6, Place::Ipv4Header, Place::Next);
    draft.branch(JUMP_EQUAL, 17, Place::Next, Place::Accept);
    draft.place(Place::Ipv4Header);
    draft.step(LOAD_HALF, NETWORK + 6);
    draft.branch(JUMP_SET, 0x1fff, Place::Accept, Place::Next);
    draft.step(INDEX_HEADER, NETWORK);
    draft.branch(JUMP_EQUAL, 0, Place::Ports, Place::Ports);
    draft.place(Place::Ipv6);
    draft.step(LOAD_BYTE, NETWORK + 6);
    draft.branch(JUMP_EQUAL, 6, Place::Ipv6Header, Place::Next);
    draft.branch(JUMP_EQUAL, 17, Place::Next, Place::Accept);
    draft.place(Place::Ipv6Header);
    draft.step(INDEX_IMMEDIATE, 40);
    draft.place(Place::Ports);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as the kernel sees it: bytes from the network header, and what it knows besides.
    struct Packet {
        network: Vec<u8>,
        protocol: u32,
        hardware: u32,
        outgoing: bool,
    }

    /// Runs a program as the kernel does.
    fn run(program: &[Instruction], packet: &Packet) -> u32 {
        let load = |at: u32, size: usize| -> u32 {
            match at {
                PROTOCOL => packet.protocol,
                PACKET_TYPE => {
                    if packet.outgoing {
                        OUTGOING
                    } else {
                        0
                    }
                }
                HARDWARE_TYPE => packet.hardware,
                _ => {
                    let at = at.wrapping_sub(NETWORK) as usize;
                    packet.network[at..at + size].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
                }
            }
        };
        let (mut at, mut value, mut index) = (0, 0, 0);
        loop {
            let Instruction { code, jump_true, jump_false, k } = program[at];
            let jump = |yes: bool| usize::from(if yes { jump_true } else { jump_false });
            at += 1;
            match code {
                LOAD_WORD => value = load(k, 4),
                LOAD_HALF => value = load(k, 2),
                LOAD_BYTE => value = load(k, 1),
                LOAD_HALF_INDEXED => value = load(k.wrapping_add(index), 2),
                INDEX_IMMEDIATE => index = k,
                INDEX_HEADER => index = (load(k, 1) & 0xf) * 4,
                JUMP_EQUAL => at += jump(value == k),
                JUMP_SET => at += jump(value & k != 0),
                RETURN => return k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn ipv4(options: usize, protocol: u8, fragment: u8, ports: [u8; 4]) -> Packet {
        let mut network = vec![0; 20 + options];
        network[0] = 0x45 + options as u8 / 4;
        network[7] = fragment;
        network[9] = protocol;
        network.extend(ports);
        Packet { network, protocol: 0x0800, hardware: 1, outgoing: false }
    }

    fn ipv6(next: u8, ports: [u8; 4]) -> Packet {
        let mut network = vec![0; 40];
        network[6] = next;
        network.extend(ports);
        Packet { network, protocol: 0x86dd, hardware: 1, outgoing: false }
    }

    #[test]
    fn excluded_ports_and_second_copies_are_dropped() {
        let many: Vec<u16> = (5_000..5_000 + PORTS_MAX as u16 - 1).chain([443]).collect();
        let check = |packet: Packet, passes: bool| {
            assert_eq!(run(&program(&many, 96), &packet), if passes { 96 } else { 0 });
        };
        let (own, other) = ([0x01, 0xbb, 0, 1], [0, 1, 0, 2]);
        check(ipv4(0, 6, 0, own), false);
        check(ipv4(8, 17, 0, [0, 1, 0x01, 0xbb]), false);
        check(ipv4(0, 6, 0, [0x13, 0x88, 0, 1]), false);
        check(ipv4(0, 6, 0, other), true);
        check(ipv4(0, 6, 1, own), true);
        check(ipv4(0, 1, 0, own), true);
        check(ipv6(6, own), false);
        check(ipv6(17, [0, 1, 0x01, 0xbb]), false);
        check(ipv6(6, other), true);
        check(ipv6(58, own), true);
        check(Packet { protocol: 0x0806, ..ipv4(0, 6, 0, own) }, true);
        check(Packet { hardware: LOOPBACK, outgoing: true, ..ipv4(0, 6, 0, other) }, false);
        check(Packet { hardware: LOOPBACK, ..ipv4(0, 6, 0, other) }, true);
        check(Packet { outgoing: true, ..ipv4(0, 6, 0, other) }, true);
        assert_eq!(run(&program(&[], 7), &ipv4(0, 6, 0, own)), 7);
    }
}
