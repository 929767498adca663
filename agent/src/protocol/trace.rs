//! Trace contexts as programs carry them in headers: W3C, SkyWalking, B3, Jaeger.

use super::text::{NAME_MAX, text, trim};

/// A request's place in a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) parent_span_id: String,
    /// Rank of the header that it came from: a better one replaces a worse one, the first of equals stays.
    rank: u8,
}

/// Headers that carry a trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    TraceParent,
    Sw8,
    B3,
    Uber,
    B3TraceId,
    B3SpanId,
    B3ParentSpanId,
    /// A header that an operator named: its value is the trace's id.
    Id,
}

/// Longest id that is taken from a header of an operator's choice.
const ID_MAX: usize = 128;

/// The longest name is X-B3-ParentSpanId.
const LONGEST: usize = 17;

impl Carrier {
    /// By a header's name, in any case.
    pub(crate) fn named(name: &[u8]) -> Option<Carrier> {
        let mut lower = [0; LONGEST];
        lower.get_mut(..name.len())?.copy_from_slice(name);
        lower.make_ascii_lowercase();
        match &lower[..name.len()] {
            b"b3" => Some(Carrier::B3),
            b"sw8" => Some(Carrier::Sw8),
            b"traceparent" => Some(Carrier::TraceParent),
            b"x-b3-spanid" => Some(Carrier::B3SpanId),
            b"x-b3-traceid" => Some(Carrier::B3TraceId),
            b"uber-trace-id" => Some(Carrier::Uber),
            b"x-b3-parentspanid" => Some(Carrier::B3ParentSpanId),
            _ => None,
        }
    }

    /// By a line `name: value`. The colon's place tells nearly every line that carries none.
    pub(crate) fn of_line(line: &[u8]) -> Option<(Carrier, &[u8])> {
        let colon =
            [2, 3, 11, 12, 13, LONGEST].into_iter().find(|length| line.get(*length) == Some(&b':'))?;
        Some((Carrier::named(&line[..colon])?, trim(&line[colon + 1..])))
    }

    /// Of two carriers the one of the higher rank counts.
    pub(crate) fn rank(self) -> u8 {
        match self {
            Self::TraceParent => 4,
            Self::Sw8 => 3,
            Self::B3 | Self::B3TraceId | Self::B3SpanId | Self::B3ParentSpanId => 2,
            Self::Uber | Self::Id => 1,
        }
    }

    /// In one header or in parts.
    pub(crate) fn is_of_b3(self) -> bool {
        matches!(self, Self::B3 | Self::B3TraceId | Self::B3SpanId | Self::B3ParentSpanId)
    }
}

impl Trace {
    pub(crate) fn is_empty(&self) -> bool {
        self.rank == 0
    }

    /// Takes a header in. `name` in any case; false when it is not a trace header.
    pub(crate) fn header(&mut self, name: &[u8], value: &[u8]) -> bool {
        let carrier = Carrier::named(name);
        carrier.inspect(|carrier| self.add(*carrier, carrier.rank(), value)).is_some()
    }

    /// Takes in what a carrier of a rank holds.
    pub(crate) fn add(&mut self, carrier: Carrier, rank: u8, value: &[u8]) {
        match carrier {
            Carrier::TraceParent => self.trace_parent(rank, value),
            Carrier::Sw8 => self.sw8(rank, value),
            Carrier::B3 => self.b3(rank, value),
            Carrier::Uber => self.uber(rank, value),
            Carrier::B3TraceId => self.b3_part(rank, value, |trace| &mut trace.trace_id),
            Carrier::B3SpanId => self.b3_part(rank, value, |trace| &mut trace.span_id),
            Carrier::B3ParentSpanId => self.b3_part(rank, value, |trace| &mut trace.parent_span_id),
            Carrier::Id => self.id(rank, value),
        }
    }

    /// `00-<trace>-<span>-<flags>`; later versions may add to it. Ids of zeros and the version `ff` are invalid.
    fn trace_parent(&mut self, rank: u8, value: &[u8]) {
        let (Some(version), Some(trace), Some(span)) = (value.get(..3), value.get(3..36), value.get(36..52))
        else {
            return;
        };
        let ends = value.get(52).is_none_or(|byte| *byte == b'-');
        let ([first, second, b'-'], [trace @ .., b'-']) = (version, trace) else { return };
        let version = [*first, *second];
        let version = is_hex(&version) && !version.eq_ignore_ascii_case(b"ff");
        if ends && version && is_id(trace) && is_id(span) {
            self.set(rank, trace, span, b"");
        }
    }

    /// `<sample>-<trace>-<segment>-<span index>-...` with the ids in base64; a span is named by its segment and index.
    fn sw8(&mut self, rank: u8, value: &[u8]) {
        let mut parts = value.split(|byte| *byte == b'-');
        let (Some(_), Some(trace), Some(segment), Some(index)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let (Some(trace), Some(mut segment)) = (base64(trace), base64(segment)) else { return };
        if trace.is_empty()
            || segment.is_empty()
            || !matches!(index.len(), 1..=10)
            || !index.iter().all(u8::is_ascii_digit)
        {
            return;
        }
        segment.push(b'-');
        segment.extend_from_slice(index);
        self.set(rank, &trace, &segment, b"");
    }

    /// `<trace>-<span>[-<sampled>[-<parent>]]`.
    fn b3(&mut self, rank: u8, value: &[u8]) {
        let mut parts = value.split(|byte| *byte == b'-');
        let (Some(trace), Some(span)) = (parts.next(), parts.next()) else { return };
        let parent = parts.nth(1).filter(|parent| is_id(parent)).unwrap_or_default();
        if is_id(trace) && is_id(span) {
            self.set(rank, trace, span, parent);
        }
    }

    /// `<trace>:<span>:<parent>:<flags>`, in old clients with `%3A` for the colons; a parent of 0 means none.
    fn uber(&mut self, rank: u8, value: &[u8]) {
        let value = text(value, NAME_MAX).replace("%3A", ":").replace("%3a", ":");
        let mut parts = value.split(':').map(str::as_bytes);
        let (Some(trace), Some(span)) = (parts.next(), parts.next()) else { return };
        let parent = parts.next().filter(|parent| is_id(parent)).unwrap_or_default();
        if is_id(trace) && is_id(span) {
            self.set(rank, trace, span, parent);
        }
    }

    fn b3_part(&mut self, rank: u8, value: &[u8], field: impl Fn(&mut Trace) -> &mut String) {
        if self.rank > rank || !is_id(value) {
            return;
        }
        if self.rank < rank {
            *self = Trace { rank, ..Trace::default() };
        }
        *field(self) = text(value, NAME_MAX);
    }

    /// Visible ASCII that is not longer than ids are.
    fn id(&mut self, rank: u8, value: &[u8]) {
        let value = value.trim_ascii();
        if (1..=ID_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic) {
            self.set(rank, value, b"", b"");
        }
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
    // Without a way out of the loop it works on many bytes at a time.
    let digits = || bytes.iter().fold(true, |digits, byte| digits & byte.is_ascii_hexdigit());
    !bytes.is_empty() && bytes.len() <= 32 && digits()
}

/// An id that is not the one of zeros, which stands for none.
fn is_id(bytes: &[u8]) -> bool {
    is_hex(bytes) && bytes.iter().any(|digit| *digit != b'0')
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
        // What is malformed or names nothing is no trace; of B3 in parts, the parts that are good.
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        for value in [
            String::new(),
            "00".to_owned(),
            format!("ff-{trace}-{span}-01"),
            format!("0x-{trace}-{span}-01"),
            format!("00-{trace}-{span}01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{trace}g{span}-01"),
        ] {
            check(&[("traceparent", &value)], ("", "", ""));
        }
        check(&[("traceparent", &format!("01-{trace}-{span}-01-more"))], (trace, span, ""));
        for value in ["1", "1-YWJj-ZGVm", "1-YWJj-ZGVm-", "1--ZGVm-6-x", "1-YWJj-ZGVm-x-y", "1-Y*Jj-ZGVm-6-x"]
        {
            check(&[("sw8", value)], ("", "", ""));
        }
        check(&[("b3", "aa-bb-1-nonsense")], ("aa", "bb", ""));
        check(&[("b3", "00-bb")], ("", "", ""));
        check(&[("b3", "-")], ("", "", ""));
        check(&[("X-B3-TraceId", "xyz"), ("X-B3-SpanId", "bb")], ("", "bb", ""));
        check(&[("uber-trace-id", "aa:bb")], ("aa", "bb", ""));
        check(&[("uber-trace-id", "aa:bb:zz:1")], ("aa", "bb", ""));
        check(&[("uber-trace-id", "0:0:0:0")], ("", "", ""));
        // The better kind wins, whatever the order.
        check(
            &[("b3", "aa-bb"), w3c, ("sw8", "1-YWJj-ZGVm-6-x")],
            ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", ""),
        );
        assert!(!Trace::default().header(b"accept", b"*/*"));
    }
}
