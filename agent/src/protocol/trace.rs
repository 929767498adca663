//! Trace contexts as programs carry them in headers: W3C, SkyWalking, B3, Jaeger.

use super::text::{NAME_MAX, text};

/// A request's place in a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) parent_span_id: String,
    /// Rank of the header that it came from: a better one replaces a worse one, the first of equals stays.
    rank: u8,
}

impl Trace {
    pub(crate) fn is_empty(&self) -> bool {
        self.rank == 0
    }

    /// Takes a header in. `name` in any case; false when it is not a trace header.
    pub(crate) fn header(&mut self, name: &[u8], value: &[u8]) -> bool {
        // All of them begin with one of these: most headers are told by their first byte.
        if !name.first().is_some_and(|first| matches!(first | 0x20, b't' | b's' | b'b' | b'x' | b'u')) {
            return false;
        }
        match name.len() {
            11 if name.eq_ignore_ascii_case(b"traceparent") => self.traceparent(value),
            3 if name.eq_ignore_ascii_case(b"sw8") => self.sw8(value),
            2 if name.eq_ignore_ascii_case(b"b3") => self.b3(value),
            13 if name.eq_ignore_ascii_case(b"uber-trace-id") => self.uber(value),
            12 if name.eq_ignore_ascii_case(b"x-b3-traceid") => {
                self.b3_part(value, |trace| &mut trace.trace_id)
            }
            11 if name.eq_ignore_ascii_case(b"x-b3-spanid") => {
                self.b3_part(value, |trace| &mut trace.span_id)
            }
            17 if name.eq_ignore_ascii_case(b"x-b3-parentspanid") => {
                self.b3_part(value, |trace| &mut trace.parent_span_id);
            }
            _ => return false,
        }
        true
    }

    /// `00-<trace>-<span>-<flags>`.
    fn traceparent(&mut self, value: &[u8]) {
        let mut parts = value.split(|byte| *byte == b'-');
        let (Some(version), Some(trace), Some(span)) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        if version.len() == 2 && trace.len() == 32 && span.len() == 16 && is_hex(trace) && is_hex(span) {
            self.set(4, trace, span, b"");
        }
    }

    /// `<sample>-<trace>-<segment>-<span index>-...` with the ids in base64; a span is named by its segment and index.
    fn sw8(&mut self, value: &[u8]) {
        let mut parts = value.split(|byte| *byte == b'-');
        let (Some(_), Some(trace), Some(segment), Some(index)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let (Some(trace), Some(mut segment)) = (base64(trace), base64(segment)) else { return };
        if index.len() > 10 || !index.iter().all(u8::is_ascii_digit) {
            return;
        }
        segment.push(b'-');
        segment.extend_from_slice(index);
        self.set(3, &trace, &segment, b"");
    }

    /// `<trace>-<span>[-<sampled>[-<parent>]]`.
    fn b3(&mut self, value: &[u8]) {
        let mut parts = value.split(|byte| *byte == b'-');
        let (Some(trace), Some(span)) = (parts.next(), parts.next()) else { return };
        if is_hex(trace) && is_hex(span) {
            self.set(2, trace, span, parts.nth(1).unwrap_or_default());
        }
    }

    /// `<trace>:<span>:<parent>:<flags>`, in old clients with `%3A` for the colons; a parent of 0 means none.
    fn uber(&mut self, value: &[u8]) {
        let value = text(value, NAME_MAX).replace("%3A", ":").replace("%3a", ":");
        let mut parts = value.split(':').map(str::as_bytes);
        let (Some(trace), Some(span)) = (parts.next(), parts.next()) else { return };
        let parent = parts.next().filter(|parent| *parent != b"0").unwrap_or_default();
        if is_hex(trace) && is_hex(span) && (parent.is_empty() || is_hex(parent)) {
            self.set(1, trace, span, parent);
        }
    }

    fn b3_part(&mut self, value: &[u8], field: impl Fn(&mut Trace) -> &mut String) {
        if self.rank > 2 || !is_hex(value) {
            return;
        }
        if self.rank < 2 {
            *self = Trace { rank: 2, ..Trace::default() };
        }
        *field(self) = text(value, NAME_MAX);
    }

    fn set(&mut self, rank: u8, trace: &[u8], span: &[u8], parent: &[u8]) {
        if rank > self.rank {
            *self = Trace {
                trace_id: text(trace, NAME_MAX),
                span_id: text(span, NAME_MAX),
                parent_span_id: text(parent, NAME_MAX),
                rank,
            };
        }
    }
}

fn is_hex(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.len() <= 32 && bytes.iter().all(u8::is_ascii_hexdigit)
}

/// Standard base64 of short texts, padding optional.
fn base64(encoded: &[u8]) -> Option<Vec<u8>> {
    if encoded.len() > NAME_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(encoded.len());
    let (mut bits, mut count) = (0u32, 0);
    for byte in encoded.iter().take_while(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_header_is_read() {
        #[track_caller]
        fn check(headers: &[(&str, &str)], expected: (&str, &str, &str)) {
            let mut trace = Trace::default();
            for (name, value) in headers {
                assert!(trace.header(name.as_bytes(), value.as_bytes()), "{name}");
            }
            assert_eq!((&*trace.trace_id, &*trace.span_id, &*trace.parent_span_id), expected);
        }
        let w3c = ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        check(&[w3c], ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", ""));
        check(&[("traceparent", "00-xyz-b7ad6b7169203331-01")], ("", "", ""));
        check(&[("sw8", "1-YWJj-ZGVm-6-x")], ("abc", "def-6", ""));
        check(
            &[("b3", "80f198ee56343ba8-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90")],
            ("80f198ee56343ba8", "e457b5a2e4d86bd1", "05e3ac9a4f6e3b90"),
        );
        check(&[("b3", "0")], ("", "", ""));
        check(
            &[("X-B3-TraceId", "aa"), ("X-B3-SpanId", "bb"), ("X-B3-ParentSpanId", "cc")],
            ("aa", "bb", "cc"),
        );
        check(&[("uber-trace-id", "aa:bb:0:1")], ("aa", "bb", ""));
        check(&[("uber-trace-id", "aa%3Abb%3Acc%3A1")], ("aa", "bb", "cc"));
        // The better kind wins, whatever the order.
        check(
            &[("b3", "aa-bb"), w3c, ("sw8", "1-YWJj-ZGVm-6-x")],
            ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", ""),
        );
        assert!(!Trace::default().header(b"accept", b"*/*"));
    }
}
