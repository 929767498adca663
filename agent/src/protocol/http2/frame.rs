//! Frames (RFC 9113, section 4): what a header says, whether it can be one, and the names of error codes.

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 9;
/// What a client begins with.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame above this is not taken for one where the way is not certain; peers rarely raise the limit of 16 KiB.
const CERTAIN_MAX: u32 = 1 << 20;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const HAS_PRIORITY: u8 = 0x20;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) length: u32,
    pub(super) kind: u8,
    flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    pub(super) fn read(bytes: &[u8]) -> Option<Frame> {
        let [high, middle, low, kind, flags, stream @ ..] = bytes.first_chunk::<HEADER>()?;
        Some(Frame {
            length: u32::from_be_bytes([0, *high, *middle, *low]),
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes(*stream) & 0x7fff_ffff,
        })
    }

    /// Header and payload.
    pub(super) fn size(self) -> u64 {
        HEADER as u64 + u64::from(self.length)
    }

    pub(super) fn ends_stream(self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    pub(super) fn ends_headers(self) -> bool {
        self.flags & END_HEADERS != 0
    }

    pub(super) fn is_padded(self) -> bool {
        matches!(self.kind, DATA | HEADERS | PUSH_PROMISE) && self.flags & PADDED != 0
    }

    /// Whether the standard allows such a frame. `certain`: also not one that nobody sends.
    pub(super) fn is_allowed(self, from_client: bool, certain: bool) -> bool {
        let Frame { length, kind, flags, stream } = self;
        let shape = match kind {
            DATA | CONTINUATION => stream != 0,
            HEADERS => stream != 0 && length > 0,
            PRIORITY => stream != 0 && length == 5,
            RST_STREAM => stream != 0 && length == 4,
            SETTINGS => stream == 0 && length % 6 == 0 && (flags & ACK == 0 || length == 0),
            PUSH_PROMISE => stream != 0 && length > 4 && !from_client,
            PING => stream == 0 && length == 8,
            GOAWAY => stream == 0 && length >= 8,
            WINDOW_UPDATE => length == 4,
            _ => true,
        };
        let known = match kind {
            DATA => 0x9,
            HEADERS => 0x2d,
            SETTINGS | PING => 0x1,
            PUSH_PROMISE => 0xc,
            CONTINUATION => 0x4,
            _ => 0,
        };
        // ALTSVC, ORIGIN and PRIORITY_UPDATE are the extensions in use.
        let usual = flags & !known == 0 && length <= CERTAIN_MAX && matches!(kind, 0..=0xa | 0xc | 0x10);
        shape && (!certain || usual)
    }

    /// The header block fragment in the frame's payload as far as it is there; none when padding does not fit.
    pub(super) fn fragment(self, payload: &[u8]) -> Option<&[u8]> {
        let mut fragment = payload;
        let mut pad = 0;
        if self.is_padded() {
            let (first, rest) = fragment.split_first()?;
            (pad, fragment) = (usize::from(*first), rest);
        }
        let skipped = match self.kind {
            HEADERS if self.flags & HAS_PRIORITY != 0 => 5,
            PUSH_PROMISE => 4,
            _ => 0,
        };
        fragment = fragment.get(skipped..)?;
        // Padding is at the end, and may be what was not captured.
        let missing = (self.length as usize).saturating_sub(payload.len());
        fragment.get(..fragment.len().checked_sub(pad.saturating_sub(missing))?)
    }
}

/// The name of an error code of RST_STREAM and GOAWAY.
pub(super) fn error_name(code: u32) -> &'static str {
    match code {
        0 => "NO_ERROR",
        1 => "PROTOCOL_ERROR",
        2 => "INTERNAL_ERROR",
        3 => "FLOW_CONTROL_ERROR",
        4 => "SETTINGS_TIMEOUT",
        5 => "STREAM_CLOSED",
        6 => "FRAME_SIZE_ERROR",
        7 => "REFUSED_STREAM",
        8 => "CANCEL",
        9 => "COMPRESSION_ERROR",
        10 => "CONNECT_ERROR",
        11 => "ENHANCE_YOUR_CALM",
        12 => "INADEQUATE_SECURITY",
        13 => "HTTP_1_1_REQUIRED",
        _ => "unknown error code",
    }
}
