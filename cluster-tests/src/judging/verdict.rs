//! What was put together, against the truth.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use metaflow_actors::querier::trace::{Reason as TraceReason, Row as TraceRow, Span as TraceSpan, assemble};
use metaflow_schema::enums::{L7Type, ObservationPoint};

use super::{Chain, Seen};

/// Views that are missing, and links that are missing or false, of which so many are shown.
const SHOWN: usize = 8;

/// How well traces came out.
#[derive(Debug, Default)]
pub struct Verdict {
    pub name: String,
    pub traces: usize,
    /// Views of requests that there must be, and that there are: one at each end.
    pub views: usize,
    pub seen: usize,
    /// Traces of which nothing is missing and nothing is elsewhere.
    pub right: usize,
    /// Links that should not be, and those of them that are not marked as guesses.
    pub false_links: usize,
    pub false_certain: usize,
    /// Links by their reasons.
    pub reasons: BTreeMap<&'static str, usize>,
    pub dropped: u64,
    pub unseen: u64,
    /// Some of what is wrong.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Hundredths of requests that were seen.
    pub fn recall(&self) -> f64 {
        percent(self.seen, self.views)
    }

    /// Hundredths of traces that are complete and right.
    pub fn share(&self) -> f64 {
        percent(self.right, self.traces)
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, traces, false_links, false_certain, reasons, dropped, unseen, .. } = self;
        let reasons: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        write!(
            f,
            "{name:<44} {traces:>6} traces: recall {:6.2} %, complete and right {:6.2} %, false links {false_links} \
             ({false_certain} not marked as guesses), dropped {dropped}, unseen {unseen}; {}",
            self.recall(),
            self.share(),
            reasons.join(", ")
        )?;
        self.examples.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// The number that a request carries.
fn number(resource: &str) -> Option<usize> {
    let mut rest = resource;
    while let Some(at) = rest.find('t') {
        rest = &rest[at + 1..];
        let digits = rest.strip_prefix('/').unwrap_or(rest);
        let count = digits.bytes().take_while(u8::is_ascii_digit).count();
        if count > 0 && digits.as_bytes().get(count) == Some(&b'x') {
            return digits[..count].parse().ok();
        }
    }
    None
}

/// Judges what was seen of so many traces through a chain.
pub fn judge(name: &str, chain: &Chain, traces: usize, seen: Seen) -> Verdict {
    let Seen { rows, dropped, unseen } = seen;
    let ours =
        |row: &TraceRow| row.l7_type == L7Type::Session as u8 && number(&row.request_resource).is_some();
    let spans = assemble(rows.into_iter().filter(ours).collect());
    let mut verdict = Verdict { name: name.to_owned(), traces, dropped, unseen, ..Verdict::default() };
    verdict.views = traces * chain.parts.iter().map(|part| part.asked * 2).sum::<usize>();
    let mut views: HashMap<(usize, u16), usize> = HashMap::new();
    let mut wrong: BTreeSet<usize> = BTreeSet::new();
    for span in &spans {
        let Some(trace) = number(&span.row.request_resource) else { continue };
        *views.entry((trace, span.row.server_port)).or_default() += 1;
        if !link(&spans, span, trace, chain, &mut verdict) {
            wrong.insert(trace);
        }
    }
    for trace in 0..traces {
        for part in &chain.parts {
            let count = views.get(&(trace, part.port)).copied().unwrap_or(0);
            verdict.seen += count.min(part.asked * 2);
            if count != part.asked * 2 {
                wrong.insert(trace);
                if verdict.examples.len() < SHOWN {
                    let (expected, port) = (part.asked * 2, part.port);
                    verdict.examples.push(format!("{count} of {expected} views: trace {trace} :{port}"));
                }
            }
        }
    }
    verdict.right = traces - wrong.len().min(traces);
    verdict
}

/// Whether a span is where it must be.
fn link(spans: &[TraceSpan], span: &TraceSpan, trace: usize, chain: &Chain, verdict: &mut Verdict) -> bool {
    let row = &span.row;
    let expected = chain.parts.iter().find(|part| part.port == row.server_port).and_then(|part| part.below);
    let Some((above, reason)) = span.parent else {
        // What serves the driver is below what the driver asked.
        let missing = expected.is_some() || row.observation_point == ObservationPoint::ServerProcess as u8;
        if missing && verdict.examples.len() < SHOWN {
            verdict.examples.push(format!("no link: {}", shown(row)));
        }
        return !missing;
    };
    *verdict.reasons.entry(reason.name()).or_default() += 1;
    let parent = &spans[above].row;
    let port = if reason == TraceReason::TcpSequence { Some(row.server_port) } else { expected };
    let right = number(&parent.request_resource) == Some(trace) && Some(parent.server_port) == port;
    if !right {
        verdict.false_links += 1;
        verdict.false_certain += usize::from(reason != TraceReason::EventLoop);
        if verdict.examples.len() < SHOWN {
            verdict.examples.push(format!("{}: {} below {}", reason.name(), shown(row), shown(parent)));
        }
    }
    right
}

fn shown(row: &TraceRow) -> String {
    let TraceRow { request_resource, server_port, start_time, end_time, pid_0, pid_1, .. } = row;
    format!(
        "{request_resource} :{server_port} {} {pid_0}>{pid_1} {}+{}us",
        row.observed_at(),
        start_time % 100_000_000,
        end_time - start_time
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_number() {
        assert_eq!(number("/t/17x"), Some(17));
        assert_eq!(number("GET t9x:a"), Some(9));
        assert_eq!(number("select 't120x' from t"), Some(120));
        assert_eq!(number("SET a t12"), None);
    }
}
