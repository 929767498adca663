//! TCP and UDP headers.

use super::network::Datagram;
use super::{Skip, read_u16, read_u32};

/// TCP flag bits.
pub mod flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
}

/// What transports a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp(Tcp),
    Udp { source_port: u16, destination_port: u16 },
}

/// A TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// As in the header: not scaled.
    pub window: u16,
    /// Only read of SYN packets, which alone may carry them; timestamps are in every packet but need no decoding here.
    pub options: TcpOptions,
}

/// Options of a SYN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpOptions {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    /// Value and echo.
    pub timestamps: Option<(u32, u32)>,
}

impl Transport {
    #[inline]
    pub fn ports(&self) -> (u16, u16) {
        match self {
            Self::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
            Self::Udp { source_port, destination_port } => (*source_port, *destination_port),
        }
    }

    /// IANA protocol number.
    #[inline]
    pub fn number(&self) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp { .. } => 17,
        }
    }
}

pub(super) struct Decoded<'a> {
    pub(super) header: Transport,
    pub(super) payload: &'a [u8],
    pub(super) payload_length: u32,
}

#[inline]
pub(super) fn decode<'a>(datagram: &Datagram<'a>) -> Result<Decoded<'a>, Skip> {
    match datagram.protocol {
        6 => tcp(datagram),
        17 => udp(datagram),
        1 | 58 => Err(Skip::Icmp),
        _ => Err(Skip::OtherTransport),
    }
}

#[inline]
fn tcp<'a>(datagram: &Datagram<'a>) -> Result<Decoded<'a>, Skip> {
    let data = datagram.payload;
    let head: &[u8; 20] = data.first_chunk().ok_or(Skip::TruncatedTransport)?;
    let header = usize::from(head[12] >> 4) * 4;
    if header < 20 || header as u32 > datagram.payload_length {
        return Err(Skip::BadTransport);
    }
    let flags = head[13];
    let options = if flags & flags::SYN != 0 {
        options(&data[20..header.min(data.len())])
    } else {
        TcpOptions::default()
    };
    Ok(Decoded {
        header: Transport::Tcp(Tcp {
            source_port: u16::from_be_bytes([head[0], head[1]]),
            destination_port: u16::from_be_bytes([head[2], head[3]]),
            seq: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            ack: u32::from_be_bytes([head[8], head[9], head[10], head[11]]),
            flags,
            window: u16::from_be_bytes([head[14], head[15]]),
            options,
        }),
        payload: data.get(header..).unwrap_or_default(),
        payload_length: datagram.payload_length - header as u32,
    })
}

#[inline]
fn udp<'a>(datagram: &Datagram<'a>) -> Result<Decoded<'a>, Skip> {
    let data = datagram.payload;
    let head: &[u8; 8] = data.first_chunk().ok_or(Skip::TruncatedTransport)?;
    // Offload-size datagrams state 0.
    let length = match u32::from(u16::from_be_bytes([head[4], head[5]])) {
        0 => datagram.payload_length,
        stated => stated,
    };
    if length < 8 || (length > datagram.payload_length && !datagram.fragmented) {
        return Err(Skip::BadTransport);
    }
    let end = data.len().min(length as usize);
    Ok(Decoded {
        header: Transport::Udp {
            source_port: u16::from_be_bytes([head[0], head[1]]),
            destination_port: u16::from_be_bytes([head[2], head[3]]),
        },
        payload: &data[8..end],
        payload_length: length - 8,
    })
}

/// Reads options as far as they make sense: a wrong length ends them.
fn options(mut data: &[u8]) -> TcpOptions {
    let mut found = TcpOptions::default();
    while let Some(&kind) = data.first() {
        let length = match kind {
            0 => break,
            1 => 1,
            _ => match data.get(1) {
                Some(&length) if length >= 2 && usize::from(length) <= data.len() => usize::from(length),
                _ => break,
            },
        };
        match (kind, length) {
            (2, 4) => found.mss = read_u16(data, 2),
            // RFC 7323: a larger shift counts as 14.
            (3, 3) => found.window_scale = data.get(2).map(|shift| (*shift).min(14)),
            (4, 2) => found.sack_permitted = true,
            (8, 10) => found.timestamps = read_u32(data, 2).zip(read_u32(data, 6)),
            _ => {}
        }
        data = &data[length..];
    }
    found
}
