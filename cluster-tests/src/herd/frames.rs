//! As much of HTTP/2 (RFC 9113) as a client needs that holds one control stream and, if told so, an idle stream of batches.
//!
//! A library keeps 30 KiB a connection; this keeps what has not arrived whole, so that one process can be tens of thousands of agents.
//! Leaves out: the heads of answers, of which only their end matters here.

use anyhow::{Context as _, Result, bail, ensure};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const CONTROL: u32 = 1;
const BATCHES: u32 = 3;
/// Windows before either side says more (RFC 9113, 6.9.2).
const WINDOW: i64 = 65_535;
/// What was read is given back in steps of this.
const WINDOW_STEP: u32 = 16_384;
/// Largest frame that a peer may send unasked (RFC 9113, 4.2).
const FRAME_MAX: usize = 16_384;
/// Largest message that is put together.
const MESSAGE_MAX: usize = 4 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// One connection's state.
#[derive(Debug)]
pub(super) struct Connection {
    /// A frame that has not arrived whole.
    frame: Vec<u8>,
    /// A message that has not.
    message: Vec<u8>,
    /// Bytes that the server takes.
    room: i64,
    control_room: i64,
    /// The server's window for a new stream.
    initial_room: i64,
    /// Bytes that were read and not given back: of the connection, the control stream, the stream of batches.
    read: [u32; 3],
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            frame: Vec::new(),
            message: Vec::new(),
            room: WINDOW,
            control_room: WINDOW,
            initial_room: WINDOW,
            read: [0; 3],
        }
    }

    /// Opens the control stream, and one for batches if `batches`.
    pub(super) fn open(&self, authority: &str, batches: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        // No table for compressed heads: the server keeps none either.
        frame(out, SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        frame(out, HEADERS, END_HEADERS, CONTROL, &request(authority, "/metaflow.v1.AgentService/Sync"));
        if batches {
            frame(
                out,
                HEADERS,
                END_HEADERS,
                BATCHES,
                &request(authority, "/metaflow.v1.AgentService/Ingest"),
            );
        }
    }

    /// Writes a message to the control stream; false when the server has no room for it.
    pub(super) fn send(&mut self, message: &[u8], out: &mut Vec<u8>) -> bool {
        let mut payload = Vec::with_capacity(5 + message.len());
        payload.push(0);
        payload.extend_from_slice(&(message.len() as u32).to_be_bytes());
        payload.extend_from_slice(message);
        let length = payload.len() as i64;
        if length > self.room.min(self.control_room) || payload.len() > FRAME_MAX {
            return false;
        }
        self.room -= length;
        self.control_room -= length;
        frame(out, DATA, 0, CONTROL, &payload);
        true
    }

    /// Takes bytes of the server: messages of the control stream go to `take`, answers to `out`. An error is the end.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let joined;
        let mut input = bytes;
        if !self.frame.is_empty() {
            self.frame.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.frame);
            input = &joined;
        }
        while let Some((head, rest)) = input.split_first_chunk::<HEAD>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            ensure!(length <= FRAME_MAX, "a frame of {length} bytes");
            let Some((payload, after)) = rest.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            self.handle(head[3], head[4], stream, payload, out, &mut take)?;
            input = after;
        }
        self.frame.extend_from_slice(input);
        Ok(())
    }

    fn handle(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
        take: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match kind {
            DATA => {
                let at = if stream == CONTROL { 1 } else { 2 };
                self.give_back(0, 0, payload.len(), out);
                self.give_back(at, stream, payload.len(), out);
                if stream == CONTROL {
                    self.assemble(payload, take)?;
                }
                ensure!(flags & END_STREAM == 0, "stream {stream} ended");
            }
            HEADERS => ensure!(flags & END_STREAM == 0, "stream {stream} ended"),
            RST_STREAM => bail!("stream {stream} was reset"),
            GOAWAY => bail!("the server goes away"),
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if u16::from_be_bytes([setting[0], setting[1]]) == INITIAL_WINDOW_SIZE {
                        let size = i64::from(number(&setting[2..])?);
                        self.control_room += size - self.initial_room;
                        self.initial_room = size;
                    }
                }
                frame(out, SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => frame(out, PING, ACK, 0, payload),
            WINDOW_UPDATE => {
                let more = i64::from(number(payload)?);
                match stream {
                    0 => self.room += more,
                    CONTROL => self.control_room += more,
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Makes messages of the control stream's bytes.
    fn assemble(&mut self, payload: &[u8], take: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let joined;
        let mut input = payload;
        if !self.message.is_empty() {
            self.message.extend_from_slice(payload);
            joined = std::mem::take(&mut self.message);
            input = &joined;
        }
        while let Some((head, rest)) = input.split_first_chunk::<5>() {
            let length = number(&head[1..])? as usize;
            ensure!(head[0] == 0 && length <= MESSAGE_MAX, "a message that is compressed or too large");
            let Some((message, after)) = rest.split_at_checked(length) else { break };
            take(message)?;
            input = after;
        }
        self.message.extend_from_slice(input);
        Ok(())
    }

    fn give_back(&mut self, at: usize, stream: u32, bytes: usize, out: &mut Vec<u8>) {
        self.read[at] += bytes as u32;
        if self.read[at] >= WINDOW_STEP {
            frame(out, WINDOW_UPDATE, 0, stream, &self.read[at].to_be_bytes());
            self.read[at] = 0;
        }
    }
}

fn number(bytes: &[u8]) -> Result<u32> {
    let bytes = bytes.first_chunk().context("a frame is too short")?;
    Ok(u32::from_be_bytes(*bytes))
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The head of a gRPC call (RFC 7541: names by their numbers in the static table, values as they are).
fn request(authority: &str, path: &str) -> Vec<u8> {
    // POST, http.
    let mut head = vec![0x83, 0x86];
    let mut text = |name: &[u8], value: &str| {
        head.extend_from_slice(name);
        head.push(value.len().min(126) as u8);
        head.extend(value.bytes().take(126));
    };
    text(&[0x04], path);
    text(&[0x01], authority);
    // content-type, number 31.
    text(&[0x0f, 0x10], "application/grpc");
    text(b"\x00\x02te", "trailers");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, DATA, 0, stream, payload);
        out
    }

    /// Messages and answers of bytes that come in pieces of a size.
    fn receive(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut connection, mut messages, mut out) = (Connection::new(), Vec::new(), Vec::new());
        for part in bytes.chunks(piece) {
            let take = |message: &[u8]| {
                messages.push(message.to_vec());
                Ok(())
            };
            connection.receive(part, &mut out, take).unwrap();
        }
        assert!(connection.frame.is_empty() && connection.message.is_empty());
        (messages, out)
    }

    #[test]
    fn messages_come_whole_however_their_bytes_arrive() {
        let long = vec![7_u8; 300];
        let mut stream = [&[0, 0, 0, 0, 2, 1, 2, 0][..], &[0, 0, 1, 44]].concat();
        stream.extend_from_slice(&long);
        let mut bytes = Vec::new();
        for part in stream.chunks(100) {
            bytes.extend(data(CONTROL, part));
        }
        bytes.extend(data(BATCHES, &[9; 50]));
        for piece in [1, 7, 64, 10_000] {
            assert_eq!(receive(&bytes, piece).0, [vec![1, 2], long.clone()], "{piece}");
        }
    }

    #[test]
    fn pings_and_settings_are_answered_and_windows_given_back() {
        let mut bytes = Vec::new();
        frame(&mut bytes, SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]);
        frame(&mut bytes, PING, 0, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let (_, answers) = receive(&bytes, 5);
        assert_eq!(answers[3..5], [SETTINGS, ACK]);
        assert_eq!(answers[9 + 3..9 + 5], [PING, ACK]);
        let (_, answers) = receive(&data(BATCHES, &[0; FRAME_MAX]), FRAME_MAX);
        assert_eq!(answers.len(), 2 * (HEAD + 4), "of the connection and of the stream");
    }

    #[test]
    fn no_more_is_sent_than_the_server_takes() {
        let (mut connection, mut out) = (Connection::new(), Vec::new());
        let mut settings = Vec::new();
        frame(&mut settings, SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]);
        connection.receive(&settings, &mut out, |_| Ok(())).unwrap();
        assert!(connection.send(&[0; 5], &mut out));
        assert!(!connection.send(&[], &mut out));
        let mut update = Vec::new();
        frame(&mut update, WINDOW_UPDATE, 0, CONTROL, &[0, 0, 0, 5]);
        connection.receive(&update, &mut out, |_| Ok(())).unwrap();
        assert!(connection.send(&[], &mut out));
    }

    #[test]
    fn the_end_of_a_stream_is_the_end() {
        let mut trailers = Vec::new();
        frame(&mut trailers, HEADERS, END_STREAM | END_HEADERS, CONTROL, &[]);
        let mut away = Vec::new();
        frame(&mut away, GOAWAY, 0, 0, &[0; 8]);
        for bytes in [trailers, away] {
            assert!(Connection::new().receive(&bytes, &mut Vec::new(), |_| Ok(())).is_err());
        }
    }
}
