//! Why a frame did not become a packet, and how often.

macro_rules! skips {
    ($( $(#[$doc:meta])* $variant:ident $name:literal, )+) => {
        /// Why a frame did not become a packet.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Skip { $( $(#[$doc])* $variant, )+ }

        impl Skip {
            /// Every reason.
            pub const ALL: &'static [Skip] = &[$( Skip::$variant, )+];

            /// Label for metrics.
            pub const fn name(self) -> &'static str {
                match self { $( Skip::$variant => $name, )+ }
            }
        }
    };
}

skips! {
    /// The link type of the interface or file is not known.
    UnknownLink "unknown_link",
    /// The capture ends inside the link header.
    TruncatedLink "truncated_link",
    /// Not IP: ARP, LLDP, IEEE 802.3 frames...
    NotIp "not_ip",
    /// The capture ends inside the IP header.
    TruncatedNetwork "truncated_network",
    /// An IP header that contradicts itself or the frame: version, header length, total length.
    BadNetwork "bad_network",
    /// The second or a later fragment of a datagram: it has no ports.
    LaterFragment "later_fragment",
    /// ICMP or ICMPv6.
    Icmp "icmp",
    /// IP, but neither TCP, UDP nor ICMP.
    OtherTransport "other_transport",
    /// The capture ends inside the transport header.
    TruncatedTransport "truncated_transport",
    /// A transport header that contradicts itself or the IP header.
    BadTransport "bad_transport",
}

/// How many frames were skipped, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skips {
    counts: [u64; Skip::ALL.len()],
}

impl Skips {
    pub fn count(&mut self, skip: Skip) {
        self.counts[skip as usize] += 1;
    }

    pub fn of(&self, skip: Skip) -> u64 {
        self.counts[skip as usize]
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Skip, u64)> + '_ {
        Skip::ALL.iter().map(|skip| (*skip, self.of(*skip)))
    }
}
