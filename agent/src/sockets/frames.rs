//! Where requests begin in what a client says in HTTP/2 (RFC 9113): one write may carry several, each sent for another one.

use crate::events::Data;

/// Length, type, flags, stream.
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A piece of what was transferred.
pub(super) struct Part<'a> {
    pub(super) offset: u32,
    /// A request begins with it.
    pub(super) begins: bool,
    pub(super) data: Data<'a>,
}

pub(super) fn is_preface(payload: &[u8]) -> bool {
    payload.starts_with(PREFACE)
}

/// Places of frames of headers, of bytes that begin with a frame, or with what comes before the first one.
pub(super) fn requests(payload: &[u8]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut at = if is_preface(payload) { PREFACE.len() } else { 0 };
    while let Some([a, b, c, kind, _, stream @ ..]) =
        payload.get(at..).and_then(|rest| rest.first_chunk::<FRAME_HEAD>())
    {
        // Clients number their streams oddly.
        if *kind == HEADERS && stream[3] % 2 == 1 {
            places.push(at);
        }
        at += FRAME_HEAD + u32::from_be_bytes([0, *a, *b, *c]) as usize;
    }
    places
}

/// What was transferred, cut where requests begin: their places are in order.
pub(super) fn parts<'a>(data: &Data<'a>, begins: &[usize]) -> impl Iterator<Item = Part<'a>> {
    let data = *data;
    // What comes before the first request is a part of its own.
    let before = (begins.first() != Some(&0)).then_some(0);
    let starts = before.into_iter().chain(begins.iter().copied());
    let ends = begins.iter().skip(usize::from(before.is_none())).copied().map(Some).chain([None]);
    starts.zip(ends).enumerate().map(move |(nth, (from, end))| {
        let payload = &data.payload[from..end.unwrap_or(data.payload.len())];
        // What was not copied belongs to the last.
        let length = end.map_or(data.length - from as u32, |end| (end - from) as u32);
        let begins = before.is_none() || nth > 0;
        Part { offset: from as u32, begins, data: Data { length, payload, ..data } }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Task, Way};

    fn frame(kind: u8, stream: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, 4, 0, 0, 0, stream][..], &vec![7; usize::from(length)]].concat()
    }

    #[test]
    fn a_write_is_cut_where_requests_begin() {
        let bytes = [frame(8, 0, 4), frame(1, 3, 5), frame(0, 3, 2), frame(1, 5, 6), frame(0, 5, 9)].concat();
        // The last frame was not copied as a whole.
        let payload = &bytes[..bytes.len() - 4];
        let begins = requests(payload);
        assert_eq!(begins, [13, 38]);
        let task = Task { pid: 1, thread: 1, coroutine: 0 };
        let data = Data { way: Way::Out, task, length: bytes.len() as u32, payload };
        let parts: Vec<_> = parts(&data, &begins).collect();
        let shown: Vec<_> = parts.iter().map(|part| (part.offset, part.begins, part.data.length)).collect();
        assert_eq!(shown, [(0, false, 13), (13, true, 25), (38, true, 33)]);
        assert_eq!(parts.iter().map(|part| part.data.payload).collect::<Vec<_>>().concat(), payload);
        assert!(requests(b"GET / HTTP/1.1").is_empty());
        assert_eq!(requests(&[PREFACE, payload].concat()), [37, 62]);
    }
}
