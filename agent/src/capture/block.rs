//! Blocks of a TPACKET_V3 ring: how frames lie in them. Pure reading of bytes; whatever they say, nothing is read outside of the block.

use crate::packet::{Frame, LinkType};

/// Where the kernel and we tell each other whose the block is.
pub(super) const STATUS: usize = 8;

const FRAME_COUNT: usize = 12;
const FIRST_FRAME: usize = 16;

/// `sockaddr_ll` follows the frame's header, which is 48 bytes long.
const ADDRESS: usize = 48;
/// `TP_STATUS_VLAN_VALID`.
const VLAN_VALID: u32 = 1 << 4;
const LOOPBACK: u16 = 772;
const OUTGOING: u8 = 4;

/// What a block held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) frames: u64,
    pub(super) ignored: u64,
}

/// Hands over the frames of a block.
pub(super) fn frames(block: &[u8], each: &mut dyn FnMut(&Frame<'_>)) -> Seen {
    let mut seen = Seen::default();
    let count = read_u32(block, FRAME_COUNT).unwrap_or(0);
    let mut at = read_u32(block, FIRST_FRAME).unwrap_or(0) as usize;
    for number in 0..count {
        let Some((frame, next)) = block.get(at..).and_then(frame) else {
            seen.ignored += u64::from(count - number);
            break;
        };
        match frame {
            Some(frame) => {
                seen.frames += 1;
                each(&frame);
            }
            None => seen.ignored += 1,
        }
        at += next;
        if next == 0 {
            seen.ignored += u64::from(count - number - 1);
            break;
        }
    }
    seen
}

/// One frame, none if it is a second copy, and the distance to the next.
fn frame(data: &[u8]) -> Option<(Option<Frame<'_>>, usize)> {
    let next = read_u32(data, 0)? as usize;
    let (seconds, nanoseconds) = (read_u32(data, 4)?, read_u32(data, 8)?);
    let (captured, wire_length, status) = (read_u32(data, 12)?, read_u32(data, 16)?, read_u32(data, 20)?);
    let start = usize::from(read_u16(data, 24)?);
    let tag = read_u32(data, 32)?;
    let interface_index = read_u32(data, ADDRESS + 4)?;
    let hardware = read_u16(data, ADDRESS + 8)?;
    let packet_type = *data.get(ADDRESS + 10)?;
    let frame = data.get(start..start.checked_add(captured as usize)?)?;
    let second_copy = hardware == LOOPBACK && packet_type == OUTGOING;
    let frame = (!second_copy).then_some(Frame {
        timestamp: u64::from(seconds) * 1_000_000 + u64::from(nanoseconds) / 1_000,
        interface_index,
        link: LinkType::from_interface(hardware),
        vlan: if status & VLAN_VALID == 0 { 0 } else { tag as u16 & 0x0fff },
        data: frame,
        wire_length,
    });
    Some((frame, next))
}

fn read_u16(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes before the first frame: version, private offset and `tpacket_hdr_v1`.
    const HEADER: usize = 48;

    fn frame_bytes(next: u32, payload: &[u8], hardware: u16, packet_type: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [next, 10, 5_000, payload.len() as u32, 99, VLAN_VALID] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(72_u16.to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(0x6007_u32.to_ne_bytes());
        bytes.resize(ADDRESS + 4, 0);
        bytes.extend(3_u32.to_ne_bytes());
        bytes.extend(hardware.to_ne_bytes());
        bytes.push(packet_type);
        bytes.resize(72, 0);
        bytes.extend(payload);
        bytes.resize((next as usize).max(72 + payload.len()), 0);
        bytes
    }

    fn block(count: u32, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[FRAME_COUNT..FRAME_COUNT + 4].copy_from_slice(&count.to_ne_bytes());
        bytes[FIRST_FRAME..FIRST_FRAME + 4].copy_from_slice(&(HEADER as u32).to_ne_bytes());
        frames.iter().for_each(|frame| bytes.extend(frame));
        bytes
    }

    #[test]
    fn frames_come_with_what_the_kernel_knows() {
        let block = block(
            3,
            &[frame_bytes(96, b"abc", 1, 4), frame_bytes(80, b"x", 772, 4), frame_bytes(0, b"de", 772, 0)],
        );
        let mut found = Vec::new();
        let seen = frames(&block, &mut |frame| {
            assert_eq!(
                (frame.timestamp, frame.interface_index, frame.vlan, frame.wire_length),
                (10_000_005, 3, 7, 99)
            );
            found.push(frame.data.to_vec());
        });
        assert_eq!(found, [b"abc".to_vec(), b"de".to_vec()]);
        assert_eq!(seen, Seen { frames: 2, ignored: 1 });
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_blocks_stay_inside(mut bytes: Vec<u8>, count in 0u32..9, first in 0u32..80, at in 0usize..300, value: u8) {
            let mut good = block(count, &[frame_bytes(96, b"abc", 1, 0), frame_bytes(0, b"de", 1, 0)]);
            let end = good.len();
            good[at % end] = value;
            for mut any in [good, { bytes.splice(0..0, first.to_ne_bytes()); bytes }] {
                any.truncate(300);
                let seen = frames(&any, &mut |frame| assert!(frame.data.len() <= 300));
                proptest::prop_assert!(seen.frames <= 300 || seen.ignored > 0);
            }
        }
    }
}
