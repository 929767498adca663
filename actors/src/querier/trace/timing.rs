//! What of a span's time is its own, and how long nothing happened before it.

use super::assemble::Span;

/// Microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// The span's time in which nothing below it ran.
    pub own: u64,
    /// From the begin of the span above, or the end of what ran below that before, to the span's begin.
    pub gap: u64,
}

/// Of each span.
pub fn timings(spans: &[Span]) -> Vec<Timing> {
    let mut timings: Vec<Timing> =
        spans.iter().map(|span| Timing { own: span.end - span.start, gap: 0 }).collect();
    // Up to where the time of each span is accounted for; spans come in the order of their begin below each parent.
    let mut until: Vec<u64> = spans.iter().map(|span| span.start).collect();
    for (at, span) in spans.iter().enumerate() {
        let Some((above, _)) = span.parent else { continue };
        let parent = &spans[above];
        let begin = span.start.clamp(parent.start, parent.end).max(until[above]);
        let end = span.end.clamp(parent.start, parent.end);
        timings[at].gap = span.start.saturating_sub(until[above]);
        timings[above].own = timings[above].own.saturating_sub(end.saturating_sub(begin));
        until[above] = until[above].max(end);
    }
    timings
}

#[cfg(test)]
mod tests {
    use super::super::{Reason, Row};
    use super::*;

    #[test]
    fn time_is_counted_once() {
        let span = |parent: Option<usize>, start, end| Span {
            row: Row::default(),
            parent: parent.map(|above| (above, Reason::SystemCall)),
            depth: 0,
            start,
            end,
        };
        let spans = [
            span(None, 100, 200),
            span(Some(0), 110, 130),
            span(Some(1), 110, 130),
            // Beside the one before, and one that goes on after its parent.
            span(Some(0), 120, 140),
            span(Some(0), 190, 250),
        ];
        let found: Vec<_> = timings(&spans).iter().map(|timing| (timing.own, timing.gap)).collect();
        assert_eq!(found, [(60, 0), (0, 10), (20, 0), (20, 0), (60, 50)]);
    }
}
