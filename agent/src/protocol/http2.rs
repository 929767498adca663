//! HTTP/2 (RFC 9113) and gRPC over it: header blocks are read, data is skipped but for the sizes of gRPC's messages.
//!
//! A connection may be joined in its middle: header fields that refer to what was said before are then unknown. Leaves out: server push
//! (read for the sake of the header table, and dropped), trailers of plain HTTP/2.

mod call;
mod field;
mod frame;
mod hpack;
mod huffman;
mod side;

use metaflow_schema::enums::L7Protocol;

use self::call::Calls;
use self::field::Fields;
use self::frame::{Frame, PREFACE};
use self::hpack::Decoder;
use self::side::Side;
use super::{Context, Message, Pairing, Parser, Probe, Progress, Protocol, Recognition};
use crate::session::{Direction, Segment, Transport};

pub(crate) static PROTOCOL: Protocol = Protocol {
    number: L7Protocol::Http2,
    transports: &[Transport::Tcp],
    ports: &[],
    pairing: Pairing::Id,
    timeout_us: 120_000_000,
    recognise,
    parser: |ctx: &Context<'_>| {
        let [requests, responses] = [(); 2].map(|()| Side::new(ctx.config));
        Box::new(Http2 { requests, responses, shared: Shared::default() })
    },
};

struct Http2 {
    requests: Side,
    responses: Side,
    shared: Shared,
}

/// What both directions know.
#[derive(Default)]
struct Shared {
    calls: Calls,
    /// The connection speaks gRPC, as far as could be seen.
    grpc: bool,
}

impl Parser for Http2 {
    fn parse(&mut self, ctx: &Context<'_>, segment: &Segment<'_>, out: &mut Vec<Message>) -> Progress {
        let from_client = segment.direction == Direction::ToServer;
        let side = if from_client { &mut self.requests } else { &mut self.responses };
        side.segment(ctx, from_client, segment, &mut self.shared, out);
        Progress::Going
    }

    fn finish(&mut self, _ctx: &Context<'_>, _out: &mut Vec<Message>) {}
}

/// The preface, or frames of which one has a header block that makes sense.
fn recognise(probe: &Probe<'_>) -> Recognition {
    let bytes = probe.bytes;
    let preface = bytes.len().min(PREFACE.len());
    if bytes[..preface] == PREFACE[..preface] {
        return match preface {
            0..3 if probe.last => Recognition::No,
            0..16 if !probe.last => Recognition::More,
            _ => Recognition::Request,
        };
    }
    let mut rest = bytes;
    let mut settings = false;
    if bytes.len() < frame::HEADER {
        // Frames are below 16 KiB and of few kinds.
        let may_be = bytes.first().is_none_or(|high| *high == 0)
            && bytes.get(1).is_none_or(|middle| *middle <= 0x40)
            && bytes.get(3).is_none_or(|kind| *kind <= frame::CONTINUATION);
        return if may_be && !probe.last { Recognition::More } else { Recognition::No };
    }
    while let Some(frame) = Frame::read(rest) {
        if !frame.is_allowed(false, true) {
            return Recognition::No;
        }
        let payload = &rest[frame::HEADER..];
        if frame.kind == frame::HEADERS {
            return headers(frame, payload, probe.last);
        }
        // What a server says first; a client has its preface before it.
        settings |=
            frame.kind == frame::SETTINGS && frame.length > 0 && known_settings(payload, frame.length);
        let Some(after) = payload.get(frame.length as usize..) else {
            let data = frame.kind == frame::DATA || probe.last;
            return if settings || data { found(settings) } else { Recognition::More };
        };
        rest = after;
    }
    if settings || probe.last { found(settings) } else { Recognition::More }
}

fn found(settings: bool) -> Recognition {
    if settings { Recognition::Response } else { Recognition::No }
}

fn headers(frame: Frame, payload: &[u8], last: bool) -> Recognition {
    let whole = payload.len() >= frame.length as usize;
    if !whole && !last {
        return Recognition::More;
    }
    let payload = &payload[..payload.len().min(frame.length as usize)];
    let Some(fragment) = frame.fragment(payload) else { return Recognition::No };
    let (fields, read) = Fields::read(None, &mut Decoder::default(), fragment);
    let cut = !whole || !frame.ends_headers();
    match () {
        () if !read && !cut => Recognition::No,
        () if fields.is_response() => Recognition::Response,
        () if fields.is_request() => Recognition::Request,
        () => Recognition::No,
    }
}

/// Settings that the standard or a widely used extension knows.
fn known_settings(payload: &[u8], length: u32) -> bool {
    let payload = &payload[..payload.len().min(length as usize)];
    payload.chunks_exact(6).all(|setting| setting[0] == 0 && (1..=16).contains(&setting[1]))
        && payload.len() >= 6
}

#[cfg(test)]
mod tests;
