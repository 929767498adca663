//! From rows to a tree of spans: pure, so that every rule has a test of a few lines.
//!
//! Rows with the same sequence numbers are one request, seen from its client to its server; between requests a link is made only for a
//! reason that holds by itself, and every span says which. What has no reason stays beside the rest: a missing link is better than a
//! false one.

use std::collections::HashMap;

use super::{clock::Clocks, link::Links, row::Row};

/// Why a span is below another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The same request, seen nearer to its client.
    TcpSequence,
    /// The process sent it while it worked on the other, by the ids of its system calls.
    SystemCall,
    /// The same, where the process works for many requests on a thread: what the thread read last, and within the other in time. A guess.
    EventLoop,
    /// The sender named the other as its parent.
    ParentSpanId,
    /// Both carry the same span id.
    SpanId,
    /// A proxy put the same X-Request-ID into both.
    XRequestId,
    /// Same trace id, the server of one is the client of the other, and it lies within it in time.
    TraceId,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpSequence => "tcp_seq",
            Self::SystemCall => "syscall",
            Self::EventLoop => "event_loop",
            Self::ParentSpanId => "parent_span_id",
            Self::SpanId => "span_id",
            Self::XRequestId => "x_request_id",
            Self::TraceId => "trace_id",
        }
    }
}

/// A row in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub row: Row,
    /// Place of the span above, in the list of spans, and why it is above.
    pub parent: Option<(usize, Reason)>,
    /// Levels above.
    pub depth: usize,
    /// Microseconds since 1970 by the clock of the trace's first agent.
    pub start: u64,
    pub end: u64,
}

/// One request, from its client to its server.
#[derive(Debug)]
pub(super) struct Request {
    /// Places of its rows, the nearest to the client first.
    pub(super) rows: Vec<usize>,
}

impl Request {
    pub(super) fn first(&self) -> usize {
        self.rows[0]
    }

    pub(super) fn last(&self) -> usize {
        self.rows[self.rows.len() - 1]
    }
}

/// Spans of all rows, each tree from its root down and in the order of time.
pub fn assemble(mut rows: Vec<Row>) -> Vec<Span> {
    rows.sort_by_cached_key(|row| (row.start_time, row.id()));
    rows.dedup_by_key(|row| row.id());
    let requests = requests(&rows);
    let clocks = Clocks::of(&rows, &requests);
    let parents = Links::new(&rows, &requests, &clocks).parents();
    order(rows, &requests, &clocks, &parents)
}

/// Puts rows of the same request together.
fn requests(rows: &[Row]) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    let mut whole: HashMap<(u32, u32), Vec<usize>> = HashMap::new();
    let mut partial: Vec<usize> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        match (row.req_tcp_seq, row.resp_tcp_seq) {
            _ if row.is_app_span() => requests.push(Request { rows: vec![at] }),
            (0, 0) => requests.push(Request { rows: vec![at] }),
            (request, response) if request != 0 && response != 0 => {
                whole.entry((request, response)).or_default().push(at);
            }
            _ => partial.push(at),
        }
    }
    let mut by_half: HashMap<(u32, bool), Vec<usize>> = HashMap::new();
    for ((request, response), mut members) in whole {
        members.sort_unstable_by_key(|at| rows[*at].start_time);
        for half in [(request, false), (response, true)] {
            by_half.entry(half).or_default().push(requests.len());
        }
        requests.push(Request { rows: members });
    }
    by_half.values().for_each(|alike| join_ends(rows, &mut requests, alike));
    // A row that saw one side only belongs to the request with that number on the same connection.
    for at in partial {
        let row = &rows[at];
        let half = if row.req_tcp_seq != 0 { (row.req_tcp_seq, false) } else { (row.resp_tcp_seq, true) };
        let known = by_half.entry(half).or_default();
        let is_same = |request: &usize| {
            let first = requests[*request].rows.first();
            first.is_some_and(|first| same_connection(&rows[*first], row))
        };
        match known.iter().find(|request| is_same(request)) {
            Some(request) => requests[*request].rows.push(at),
            None => {
                known.push(requests.len());
                requests.push(Request { rows: vec![at] });
            }
        }
    }
    requests.retain(|request| !request.rows.is_empty());
    for request in &mut requests {
        request.rows.sort_by_key(|at| (rows[*at].position(), rows[*at].start_time, *at));
    }
    requests.sort_by_key(|request| request.rows.iter().copied().min());
    requests
}

/// Of requests that have one number in common. Inside TLS, the first request of a connection may be read together with the end of the
/// handshake, and the first response with what servers send after it, whose number it then has: so one number of two may be another one at
/// the other end. Where there is one request at each end, they are the same.
fn join_ends(rows: &[Row], requests: &mut [Request], alike: &[usize]) {
    let seen_by = |is_there: fn(&Row) -> bool| {
        let mut found = alike.iter().copied().filter(|request| {
            let views = &requests[*request].rows;
            !views.is_empty() && views.iter().all(|at| is_there(&rows[*at]))
        });
        found.next().filter(|_| found.next().is_none())
    };
    let (Some(client), Some(server)) = (seen_by(Row::is_client_process), seen_by(Row::is_server_process))
    else {
        return;
    };
    let (asked, served) = (&rows[requests[client].first()], &rows[requests[server].first()]);
    // Calls into TLS libraries are seen at their end, when the other side may be done already.
    let is_then = asked.agent_id != served.agent_id
        || asked.start_time <= served.end_time && served.start_time <= asked.end_time;
    if is_then && asked.request_id == served.request_id && same_connection(asked, served) {
        let views = std::mem::take(&mut requests[server].rows);
        requests[client].rows.extend(views);
    }
}

fn same_connection(a: &Row, b: &Row) -> bool {
    a.client_port == b.client_port
        && a.server_port == b.server_port
        && a.ip_0 == b.ip_0
        && a.ip_1 == b.ip_1
        && a.l7_protocol == b.l7_protocol
}

/// Spans in the order in which a reader goes through the trees.
fn order(
    rows: Vec<Row>,
    requests: &[Request],
    clocks: &Clocks,
    parents: &[Option<(usize, Reason)>],
) -> Vec<Span> {
    let start = |request: usize| clocks.start(&rows[requests[request].first()]);
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); requests.len()];
    let mut roots = Vec::new();
    for (request, parent) in parents.iter().enumerate() {
        match parent {
            Some((parent, _)) => below[*parent].push(request),
            None => roots.push(request),
        }
    }
    for list in below.iter_mut().chain([&mut roots]) {
        list.sort_by_key(|request| (start(*request), *request));
    }
    let mut spans: Vec<Span> = Vec::with_capacity(rows.len());
    // Requests to show: the span above and the reason; the next one is on top.
    let mut open: Vec<(usize, Option<(usize, Reason)>)> =
        roots.iter().rev().map(|request| (*request, None)).collect();
    let mut rows: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
    while let Some((request, mut parent)) = open.pop() {
        for at in &requests[request].rows {
            let Some(row) = rows[*at].take() else { continue };
            let depth = parent.map_or(0, |(above, _)| spans[above].depth + 1);
            let (start, end) = (clocks.start(&row), clocks.end(&row));
            spans.push(Span { row, parent, depth, start, end });
            parent = Some((spans.len() - 1, Reason::TcpSequence));
        }
        let above = spans.len().saturating_sub(1);
        open.extend(
            below[request]
                .iter()
                .rev()
                .map(|child| (*child, parents[*child].map(|(_, reason)| (above, reason)))),
        );
    }
    spans
}

/// Of spans only the trees in which one is wanted.
pub fn trees_with(spans: Vec<Span>, wanted: impl Fn(&Row) -> bool) -> Vec<Span> {
    let mut root = Vec::with_capacity(spans.len());
    for (at, span) in spans.iter().enumerate() {
        root.push(span.parent.map_or(at, |(above, _)| root[above]));
    }
    let mut keep = vec![false; spans.len()];
    for (at, span) in spans.iter().enumerate() {
        keep[root[at]] |= wanted(&span.row);
    }
    let mut places = vec![0; spans.len()];
    let mut kept: Vec<Span> = Vec::with_capacity(spans.len());
    for (at, mut span) in spans.into_iter().enumerate() {
        if keep[root[at]] {
            places[at] = kept.len();
            span.parent = span.parent.map(|(above, reason)| (places[above], reason));
            kept.push(span);
        }
    }
    kept
}
