//! One direction of a connection: its frames, header blocks and data.

use metaflow_schema::enums::ResponseStatus;

use super::Shared;
use super::call::Call;
use super::field::Fields;
use super::frame::{self, Frame, HEADER, PREFACE};
use super::hpack::Decoder;
use crate::protocol::stream::{Step, Stream, View};
use crate::protocol::{Context, Envelope, Message, Outcome, Response, ResponseMore};
use crate::session::{Config, Segment};

/// A frame of headers in the size that peers allow unless they say otherwise.
const VIEW_MAX: usize = HEADER + 16 * 1024;
/// A header block above this is read as far as it goes; servers commonly refuse more than 8 to 16 KiB.
const BLOCK_MAX: usize = 32 * 1024;

pub(super) struct Side {
    stream: Stream,
    state: State,
}

struct State {
    decoder: Decoder,
    /// The first bytes were looked at: the preface can come no more.
    begun: bool,
    /// A frame was understood since the way was lost.
    certain: bool,
    block: Option<Block>,
    data: Option<Data>,
    /// The captured part of a frame is being skipped that belongs to this stream: captured bytes at the end of what was handed out.
    tail: Option<(u32, u64)>,
}

/// A header block that is being put together.
struct Block {
    stream: u32,
    bytes: Vec<u8>,
    ends_stream: bool,
    /// It is a pushed request's: it changes the table and says nothing.
    promise: bool,
    /// Some of it could not be had.
    cut: bool,
    envelope: Envelope,
}

/// A frame of data that is being passed.
struct Data {
    stream: u32,
    left: u64,
    pad: u64,
    ends_stream: bool,
    length: u64,
    /// Captured bytes at its beginning.
    captured: u64,
}

/// What a step works on.
struct Work<'a, 'b> {
    ctx: &'a Context<'b>,
    from_client: bool,
    shared: &'a mut Shared,
    out: &'a mut Vec<Message>,
}

impl Side {
    pub(super) fn new(config: &Config) -> Self {
        let decoder = Decoder::new(config);
        let state = State { decoder, begun: false, certain: false, block: None, data: None, tail: None };
        Self { stream: Stream::default(), state }
    }

    pub(super) fn segment(
        &mut self,
        ctx: &Context<'_>,
        from_client: bool,
        segment: &Segment<'_>,
        shared: &mut Shared,
        out: &mut Vec<Message>,
    ) {
        let Side { stream, state } = self;
        let mut work = Work { ctx, from_client, shared, out };
        if stream.gap(segment) {
            state.lose(&mut work);
        }
        if stream.feed(segment, VIEW_MAX, |view| state.step(view, &mut work)) {
            state.lose(&mut work);
        }
    }
}

impl State {
    fn lose(&mut self, work: &mut Work<'_, '_>) {
        self.decoder.forget();
        (self.begun, self.certain) = (true, false);
        (self.block, self.data, self.tail) = (None, None, None);
        work.shared.calls.lose();
        work.out.push(Message::Lost);
    }

    fn step(&mut self, view: View<'_>, work: &mut Work<'_, '_>) -> Step {
        if let Some((stream, told)) = self.tail.take() {
            let captured = view.captured.saturating_sub(told);
            let envelope =
                Envelope { id: u64::from(stream), end_time: view.now, captured, ..Envelope::default() };
            work.out.push(work.more(envelope));
            return Step::Take(0);
        }
        if self.data.is_some() {
            return self.data(view, 0, work);
        }
        if !self.begun && work.from_client {
            let count = view.bytes.len().min(PREFACE.len());
            if view.bytes[..count] == PREFACE[..count] {
                return if count < PREFACE.len() { Step::More } else { self.begin() };
            }
        }
        self.begun = true;
        let Some(frame) = Frame::read(view.bytes) else { return Step::More };
        if !frame.is_allowed(work.from_client, !self.certain) {
            return Step::Lost;
        }
        // Nothing may come between the parts of a header block.
        let continues = frame.kind == frame::CONTINUATION;
        let expected = self.block.as_ref().map(|block| block.stream);
        if continues && self.certain && expected.is_none() {
            return Step::Lost;
        }
        if expected.is_some_and(|stream| !continues || stream != frame.stream) {
            return Step::Lost;
        }
        let step = match frame.kind {
            frame::DATA => self.begin_data(frame, view, work),
            frame::HEADERS | frame::PUSH_PROMISE | frame::CONTINUATION => self.headers(frame, view, work),
            frame::RST_STREAM => reset(frame, view, work),
            frame::GOAWAY => go_away(frame, view, work),
            _ => Step::Take(frame.size()),
        };
        self.certain |= matches!(step, Step::Take(_));
        step
    }

    fn begin(&mut self) -> Step {
        (self.begun, self.certain) = (true, true);
        Step::Take(PREFACE.len() as u64)
    }

    fn headers(&mut self, frame: Frame, view: View<'_>, work: &mut Work<'_, '_>) -> Step {
        let size = frame.size();
        let have = size.min(view.bytes.len() as u64);
        if have < size && !view.last {
            return Step::More;
        }
        let payload = &view.bytes[HEADER..have as usize];
        let fragment =
            if frame.kind == frame::CONTINUATION { Some(payload) } else { frame.fragment(payload) };
        let envelope = Envelope {
            id: u64::from(frame.stream),
            start_time: view.timestamp,
            end_time: view.now,
            tcp_seq: view.tcp_seq,
            length: size,
            captured: have,
        };
        let mut block = self.block.take().unwrap_or_else(|| Block {
            stream: frame.stream,
            bytes: Vec::new(),
            ends_stream: frame.ends_stream(),
            promise: frame.kind == frame::PUSH_PROMISE,
            // The first part was before what was seen.
            cut: frame.kind == frame::CONTINUATION,
            envelope: Envelope { length: 0, captured: 0, ..envelope },
        });
        block.envelope.length += envelope.length;
        block.envelope.captured += envelope.captured;
        block.envelope.end_time = envelope.end_time;
        let room = BLOCK_MAX - block.bytes.len().min(BLOCK_MAX);
        let fragment = fragment.unwrap_or_else(|| {
            block.cut = true;
            &[]
        });
        if !block.cut {
            block.bytes.extend_from_slice(&fragment[..fragment.len().min(room)]);
        }
        block.cut |= have < size || fragment.len() > room;
        let stream = block.stream;
        if frame.ends_headers() {
            self.end_block(block, work);
        } else {
            self.block = Some(block);
        }
        if have < size {
            self.tail = Some((stream, view.captured + have));
        }
        Step::Take(size)
    }

    fn end_block(&mut self, block: Block, work: &mut Work<'_, '_>) {
        let Block { stream, bytes, ends_stream, promise, cut, envelope } = block;
        let (mut fields, _) = Fields::read(Some(work.ctx), &mut self.decoder, &bytes);
        if cut {
            fields.unknown = true;
            self.decoder.forget();
        }
        if let Some(grpc) = fields.says_grpc() {
            work.shared.grpc = grpc;
        }
        // Streams with even numbers are the server's: pushed.
        if promise || stream % 2 == 0 {
            return;
        }
        if work.from_client {
            work.request_headers(fields, ends_stream, envelope);
        } else {
            work.response_headers(fields, ends_stream, envelope);
        }
    }

    fn begin_data(&mut self, frame: Frame, view: View<'_>, work: &mut Work<'_, '_>) -> Step {
        let (mut used, mut left, mut pad) = (HEADER, u64::from(frame.length), 0);
        if frame.is_padded() {
            let Some(byte) = view.bytes.get(HEADER) else { return Step::More };
            pad = u64::from(*byte);
            used += 1;
            let Some(rest) = left.checked_sub(pad + 1) else { return Step::Lost };
            left = rest;
        }
        self.data = Some(Data {
            stream: frame.stream,
            left,
            pad,
            ends_stream: frame.ends_stream(),
            length: frame.size(),
            captured: view.captured,
        });
        self.data(view, used, work)
    }

    /// Goes on in a frame of data, of which `used` bytes of the view are done with.
    fn data(&mut self, view: View<'_>, used: usize, work: &mut Work<'_, '_>) -> Step {
        let Some(mut data) = self.data.take() else { return Step::Take(used as u64) };
        let mut used = used as u64;
        let there = view.bytes.len() as u64;
        while used <= there {
            if data.left == 0 && data.pad == 0 {
                let captured = (view.captured + used).saturating_sub(data.captured);
                work.end_data(&data, captured, view);
                return Step::Take(used);
            }
            if data.left == 0 {
                used += std::mem::take(&mut data.pad);
                continue;
            }
            let Some(call) = work.shared.calls.find(data.stream).filter(|call| call.followed) else {
                used += std::mem::take(&mut data.left);
                continue;
            };
            let inside = call.side(work.from_client).left.min(data.left);
            if inside > 0 {
                call.side(work.from_client).left -= inside;
                data.left -= inside;
                used += inside;
                continue;
            }
            let wanted = (call.prefix_left(work.from_client) as u64).min(data.left);
            if there - used < wanted {
                if view.last {
                    // The sizes of messages can no longer be followed.
                    call.followed = false;
                    continue;
                }
                let step = if used == 0 { Step::More } else { Step::Take(used) };
                self.data = Some(data);
                return step;
            }
            let here = here(view, used, data.stream);
            call.prefix(
                work.from_client,
                &view.bytes[used as usize..(used + wanted) as usize],
                here,
                work.out,
            );
            data.left -= wanted;
            used += wanted;
        }
        self.data = Some(data);
        Step::Take(used)
    }
}

/// Where bytes inside a view are.
fn here(view: View<'_>, at: u64, stream: u32) -> Envelope {
    Envelope {
        id: u64::from(stream),
        start_time: view.timestamp,
        end_time: view.now,
        tcp_seq: view.tcp_seq.wrapping_add(at as u32),
        ..Envelope::default()
    }
}

impl Work<'_, '_> {
    fn more(&self, envelope: Envelope) -> Message {
        if self.from_client {
            Message::RequestMore(envelope)
        } else {
            Message::ResponseMore(ResponseMore { envelope, ..ResponseMore::default() })
        }
    }

    fn request_headers(&mut self, fields: Fields, ends_stream: bool, envelope: Envelope) {
        let stream = envelope.id as u32;
        // A second block of a request is its trailer.
        if let Some(call) = self.shared.calls.find(stream)
            && !call.ended[0]
            && !fields.is_request()
        {
            call.ended[0] = ends_stream;
            self.out.push(Message::RequestMore(envelope));
            return;
        }
        let grpc = fields.is_grpc(self.shared.grpc);
        let request = fields.request(self.ctx, grpc, envelope);
        let call = self.shared.calls.begin(stream, grpc);
        call.ended[0] = ends_stream;
        if grpc {
            call.set_name(&request);
        }
        self.out.push(Message::Request(request));
    }

    fn response_headers(&mut self, fields: Fields, ends_stream: bool, envelope: Envelope) {
        if fields.status.is_some_and(|status| (100..200).contains(&status)) {
            return;
        }
        let stream = envelope.id as u32;
        let habit = self.shared.grpc;
        let call = self.shared.calls.find(stream);
        let grpc = fields.is_grpc(call.as_ref().map_or(habit, |call| call.grpc));
        let answered = call.as_ref().is_some_and(|call| call.answered);
        let arrived = call.as_ref().is_some_and(|call| call.is_stream()).then_some(envelope.start_time);
        if answered {
            let failure = (grpc || fields.grpc_status.is_some()).then(|| fields.outcome(grpc, ends_stream));
            let more =
                ResponseMore { envelope, complete: ends_stream, failure, arrived, ..Default::default() };
            self.out.push(Message::ResponseMore(more));
        } else {
            if let Some(call) = call {
                call.answered = true;
            } else if !ends_stream {
                // The request was before what was seen.
                self.shared.calls.begin(stream, grpc).answered = true;
            }
            self.out.push(Message::Response(fields.response(grpc, envelope, ends_stream)));
        }
        if ends_stream {
            self.shared.calls.end(stream);
        }
    }

    fn end_data(&mut self, data: &Data, captured: u64, view: View<'_>) {
        let Data { stream, ends_stream, length, .. } = *data;
        if stream % 2 == 0 {
            return;
        }
        let envelope =
            Envelope { id: u64::from(stream), end_time: view.now, length, captured, ..here(view, 0, stream) };
        if self.from_client {
            if let Some(call) = self.shared.calls.find(stream) {
                call.ended[0] |= ends_stream;
            }
            self.out.push(Message::RequestMore(envelope));
            return;
        }
        let arrived = self.shared.calls.find(stream).filter(|call| call.is_stream()).map(|_| view.now);
        let more = ResponseMore { envelope, complete: ends_stream, arrived, ..Default::default() };
        self.out.push(Message::ResponseMore(more));
        if ends_stream {
            self.shared.calls.end(stream);
        }
    }

    /// A stream ends before its response did.
    fn fail(&mut self, call: Option<&Call>, envelope: Envelope, outcome: Outcome) {
        let message = match call {
            Some(call) if call.answered => Message::ResponseMore(ResponseMore {
                envelope,
                complete: true,
                failure: Some(outcome),
                ..ResponseMore::default()
            }),
            Some(_) if !self.from_client => {
                Message::Response(Response { outcome, ..Response::new(envelope) })
            }
            _ => Message::Failed { envelope, outcome },
        };
        self.out.push(message);
    }
}

fn reset(frame: Frame, view: View<'_>, work: &mut Work<'_, '_>) -> Step {
    let Some(code) = view.bytes.get(HEADER..).and_then(|code| code.first_chunk()) else { return Step::More };
    let code = u32::from_be_bytes(*code);
    let stream = frame.stream;
    let Some(call) = work.shared.calls.end(stream) else { return Step::Take(frame.size()) };
    let status = if work.from_client { ResponseStatus::ClientError } else { ResponseStatus::ServerError };
    let exception = format!("RST_STREAM {}", frame::error_name(code));
    let envelope = Envelope {
        end_time: view.now,
        length: frame.size(),
        captured: frame.size(),
        ..here(view, 0, stream)
    };
    work.fail(Some(&call), envelope, Outcome { status, code: 0, exception });
    Step::Take(frame.size())
}

fn go_away(frame: Frame, view: View<'_>, work: &mut Work<'_, '_>) -> Step {
    let Some([last @ .., _, _, _, _]) = view.bytes.get(HEADER..).and_then(|both| both.first_chunk::<8>())
    else {
        return Step::More;
    };
    let last = u32::from_be_bytes(*last) & 0x7fff_ffff;
    if !work.from_client {
        for stream in work.shared.calls.end_above(last) {
            let exception = "GOAWAY: not processed".to_owned();
            let outcome = Outcome { status: ResponseStatus::ServerError, code: 0, exception };
            let envelope = Envelope { end_time: view.now, ..here(view, 0, stream) };
            work.fail(None, envelope, outcome);
        }
    }
    Step::Take(frame.size())
}
