//! Which request a request was sent for.

use std::collections::HashMap;

use metaflow_schema::enums::L7Type;

use super::{
    assemble::{Reason, Request},
    clock::Clocks,
    row::Row,
};

/// Candidates that are looked at for a weak reason; a trace with more siblings at a time is not told apart by time.
const CANDIDATES_MAX: usize = 4_096;
/// Reading a clock twice, and rounding.
const TOLERANCE_US: u64 = 50;

pub(super) struct Links<'a> {
    rows: &'a [Row],
    requests: &'a [Request],
    clocks: &'a Clocks,
    /// By agent and joined ids of system calls: requests that were served there.
    served: HashMap<(u32, u64), Vec<usize>>,
    /// Ids of system calls that belong together on an agent, as a forest.
    joined: HashMap<(u32, u64), u64>,
    by_span: HashMap<(&'a str, &'a str), Vec<usize>>,
    by_x_request: HashMap<&'a str, Vec<usize>>,
    by_trace: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Links<'a> {
    pub(super) fn new(rows: &'a [Row], requests: &'a [Request], clocks: &'a Clocks) -> Self {
        let mut links = Self {
            rows,
            requests,
            clocks,
            served: HashMap::new(),
            joined: HashMap::new(),
            by_span: HashMap::new(),
            by_x_request: HashMap::new(),
            by_trace: HashMap::new(),
        };
        links.join();
        for (at, request) in requests.iter().enumerate() {
            links.list(at, request);
        }
        links
    }

    /// The parent of each request.
    pub(super) fn parents(&self) -> Vec<Option<(usize, Reason)>> {
        let mut parents = vec![None; self.requests.len()];
        for child in 0..self.requests.len() {
            let found = self.parent(child).filter(|(parent, _)| !reaches(&parents, *parent, child));
            parents[child] = found;
        }
        parents
    }

    /// The request's own response and what was sent next carry one id, so the ids of a row belong together.
    fn join(&mut self) {
        for row in self.rows {
            let mut ids = row.syscalls();
            if let (Some(first), Some(second)) = (ids.next(), ids.next()) {
                let (a, b) = (self.root(row.agent_id, first), self.root(row.agent_id, second));
                if a != b {
                    self.joined.insert((row.agent_id, a.max(b)), a.min(b));
                }
            }
        }
    }

    fn root(&self, agent: u32, mut id: u64) -> u64 {
        while let Some(above) = self.joined.get(&(agent, id)) {
            id = *above;
        }
        id
    }

    fn list(&mut self, at: usize, request: &Request) {
        for place in &request.rows {
            let row = &self.rows[*place];
            if row.is_server_process() {
                for id in row.syscalls() {
                    push(self.served.entry((row.agent_id, self.root(row.agent_id, id))).or_default(), at);
                }
            }
            if !row.span_id.is_empty() {
                push(self.by_span.entry((&row.trace_id, &row.span_id)).or_default(), at);
            }
            for id in row.x_request_ids() {
                push(self.by_x_request.entry(id).or_default(), at);
            }
            if !row.trace_id.is_empty() {
                push(self.by_trace.entry(&row.trace_id).or_default(), at);
            }
        }
    }

    fn parent(&self, child: usize) -> Option<(usize, Reason)> {
        let of_app = |at: &usize| self.rows[self.requests[*at].last()].is_app_span();
        let first = &self.rows[self.requests[child].first()];
        if let Some(parent) = self.by_span_id(child, of_app) {
            return Some(parent);
        }
        if first.is_app_span() {
            return self.by_parent_span(child);
        }
        let by_syscall = || self.by_syscall(child, first);
        let by_headers = || {
            (self.by_parent_span(child)).or_else(|| self.by_x_request(child)).or_else(|| self.by_trace(child))
        };
        // What a program says itself is better than a guess, and worse than what its system calls show.
        if first.is_guess() { by_headers().or_else(by_syscall) } else { by_syscall().or_else(by_headers) }
    }

    /// The app's own span for the request, or for an app's span the one that it names.
    fn by_span_id(&self, child: usize, of_app: impl Fn(&usize) -> bool) -> Option<(usize, Reason)> {
        let row = self.row_with(child, |row| &row.span_id)?;
        if row.is_app_span() {
            return None;
        }
        let candidates = self.by_span.get(&(row.trace_id.as_str(), row.span_id.as_str()))?;
        candidates.iter().find(|at| **at != child && of_app(at)).map(|at| (*at, Reason::SpanId))
    }

    fn by_parent_span(&self, child: usize) -> Option<(usize, Reason)> {
        let row = self.row_with(child, |row| &row.parent_span_id)?;
        let candidates = self.by_span.get(&(row.trace_id.as_str(), row.parent_span_id.as_str()))?;
        // What the network saw of the named span is nearer to an app's span than the sender's own.
        let (apps, seen): (Vec<usize>, Vec<usize>) = (candidates.iter().copied())
            .filter(|at| *at != child)
            .filter(|at| row.is_app_span() || self.holds(*at, child, false))
            .partition(|at| self.rows[self.requests[*at].first()].is_app_span());
        // A proxy that passes headers on has the same span id on both sides: the inner one is the nearer.
        self.innermost(seen.into_iter(), Reason::ParentSpanId)
            .or_else(|| self.innermost(apps.into_iter(), Reason::ParentSpanId))
    }

    fn by_syscall(&self, child: usize, first: &Row) -> Option<(usize, Reason)> {
        if !first.is_client_process() {
            return None;
        }
        let lists = first
            .syscalls()
            .filter_map(|id| self.served.get(&(first.agent_id, self.root(first.agent_id, id))));
        let same_process = |at: &usize| {
            let server = &self.rows[self.requests[*at].last()];
            server.pid_1 == 0 || first.pid_0 == 0 || server.pid_1 == first.pid_0
        };
        let is_guess = first.is_guess();
        let candidates = lists.flatten().copied().filter(|at| *at != child).filter(same_process);
        let mut candidates: Vec<usize> = candidates
            .filter(|at| self.holds(*at, child, is_guess))
            .filter(|at| !is_guess || !self.contradict(*at, child))
            .collect();
        candidates.sort_unstable();
        candidates.dedup();
        // Requests that came in together on one connection share an id: a guess among them would be one too many.
        if is_guess && candidates.len() > 1 {
            return None;
        }
        let reason = if is_guess { Reason::EventLoop } else { Reason::SystemCall };
        self.innermost(candidates.into_iter(), reason)
    }

    /// Both carry a trace id, and not the same.
    fn contradict(&self, parent: usize, child: usize) -> bool {
        let of = |request| self.row_with(request, |row| &row.trace_id).map(|row| &row.trace_id);
        matches!((of(parent), of(child)), (Some(one), Some(other)) if one != other)
    }

    fn by_x_request(&self, child: usize) -> Option<(usize, Reason)> {
        let first = &self.rows[self.requests[child].first()];
        // The proxy passes the id on in what it asks; in a response it came from below.
        let id = first.x_request_id_0.as_str();
        let candidates = self.by_x_request.get(id).filter(|_| !id.is_empty())?;
        self.only(candidates, child, Reason::XRequestId)
    }

    fn by_trace(&self, child: usize) -> Option<(usize, Reason)> {
        let row = self.row_with(child, |row| &row.trace_id)?;
        let candidates = self.by_trace.get(row.trace_id.as_str())?;
        self.only(candidates, child, Reason::TraceId)
    }

    /// For weak reasons: the innermost of the requests that the child's client served at the time. When two of them were served beside
    /// each other, and not one for the other, either could be it: that is no answer.
    fn only(&self, candidates: &[usize], child: usize, reason: Reason) -> Option<(usize, Reason)> {
        if candidates.len() > CANDIDATES_MAX {
            return None;
        }
        let below = |above: usize, at: usize| self.is_adjacent(above, at) && self.holds(above, at, true);
        let fitting = || candidates.iter().copied().filter(|at| *at != child && below(*at, child));
        let (best, reason) = self.innermost(fitting(), reason)?;
        fitting().all(|at| at == best || below(at, best)).then_some((best, reason))
    }

    /// The first row of a request that has such a value.
    fn row_with(&self, request: usize, value: impl Fn(&Row) -> &String) -> Option<&'a Row> {
        self.requests[request].rows.iter().map(|at| &self.rows[*at]).find(|row| !value(row).is_empty())
    }

    /// The one that began last.
    fn innermost(&self, candidates: impl Iterator<Item = usize>, reason: Reason) -> Option<(usize, Reason)> {
        let start = |at: usize| self.clocks.start(&self.rows[self.requests[at].last()]);
        let mut best: Option<usize> = None;
        for at in candidates {
            best = match best {
                Some(known) if known == at || start(known) >= start(at) => Some(known),
                _ => Some(at),
            };
        }
        best.map(|at| (at, reason))
    }

    /// Whether the child begins while the parent is served, and for a weak reason also ends in it.
    fn holds(&self, parent: usize, child: usize, whole: bool) -> bool {
        let above = &self.rows[self.requests[parent].last()];
        let below = &self.rows[self.requests[child].first()];
        // Without a response nobody knows when the server ended.
        let unanswered = above.l7_type == L7Type::Request as u8;
        let (start, end) = (self.clocks.start(above), self.clocks.end(above));
        let end = if unanswered { u64::MAX / 2 } else { end };
        let (begin, finish) = (self.clocks.start(below), self.clocks.end(below));
        let end = end + TOLERANCE_US;
        start <= begin + TOLERANCE_US && begin <= end && (!whole || finish <= end)
    }

    /// Whether the server of the one is the client of the other.
    fn is_adjacent(&self, parent: usize, child: usize) -> bool {
        let server = &self.rows[self.requests[parent].last()];
        let client = &self.rows[self.requests[child].first()];
        let pids = server.pid_1 != 0 && client.pid_0 != 0 && server.agent_id == client.agent_id;
        if pids && server.is_server_process() && client.is_client_process() {
            return server.pid_1 == client.pid_0;
        }
        let same = |a: &str, b: &str| !a.is_empty() && a == b;
        same(&server.ip_1, &client.ip_0)
            && !(server.auto_service_id_1 != 0
                && client.auto_service_id_0 != 0
                && server.auto_service_id_1 != client.auto_service_id_0)
    }
}

fn push(list: &mut Vec<usize>, at: usize) {
    if list.last() != Some(&at) {
        list.push(at);
    }
}

/// Whether the way up from `from` comes by `to`.
fn reaches(parents: &[Option<(usize, Reason)>], mut from: usize, to: usize) -> bool {
    loop {
        if from == to {
            return true;
        }
        match parents[from] {
            Some((above, _)) => from = above,
            None => return false,
        }
    }
}
