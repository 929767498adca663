//! What rows of a trace have in common, and the statements that find more of them.
//!
//! Statements are in the language that users write, so that they go through the same compiler: nothing here reaches the engine as text.

use std::collections::BTreeSet;

use metaflow_schema::enums::ObservationPoint;

use super::row::{COLUMNS, Row, UNNAMED};

/// Values in one statement: of numbers with twenty digits so many stay far below the longest accepted text.
const VALUES_MAX: usize = 1_500;
/// Windows in one statement.
const WINDOWS_MAX: usize = 1_000;
/// Rows that a statement may bring.
pub(super) const ROWS_MAX: usize = 10_000;
/// A longer id is not looked for.
const ID_BYTES_MAX: usize = 256;
/// How far clocks of hosts may differ, and how far before its first row a trace may have begun.
const BEFORE_SECONDS: u64 = 5;
/// A request above the known ones ends later than they do: as long as a slow request takes.
const AFTER_SECONDS: u64 = 60;

/// Whole seconds, both included, of the ends of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: u64,
    pub to: u64,
}

impl Span {
    /// Where rows that belong to these may be.
    pub(super) fn around(rows: &[Row]) -> Self {
        let first = rows.iter().map(|row| row.start_time).min().unwrap_or(0) / 1_000_000;
        let last = rows.iter().map(|row| row.end_time).max().unwrap_or(0) / 1_000_000;
        Self { from: first.saturating_sub(BEFORE_SECONDS), to: last.saturating_add(AFTER_SECONDS) }
    }
}

/// What a thread or coroutine did while it served a request, or served while it sent one. Each answer that it gets begins a new id of system
/// calls, so a request with many calls in turn would be followed one call a round without this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    agent_id: u32,
    /// Of the coroutine, else of the thread.
    worker: (&'static str, u64),
    start: u64,
    end: u64,
    /// What was sent within it is looked for; else what was served around it.
    sent: bool,
}

/// Columns of workers, and whether what they sent is looked for.
const WORKERS: [(&str, bool); 4] = [
    ("syscall_coroutine_0", true),
    ("syscall_thread_0", true),
    ("syscall_coroutine_1", false),
    ("syscall_thread_1", false),
];

impl Window {
    fn of(row: &Row) -> Option<Self> {
        let sent = row.is_server_process();
        if !sent && !row.is_client_process() {
            return None;
        }
        let worker = match (sent, row.syscall_coroutine_0, row.syscall_coroutine_1) {
            (true, _, 1..) => ("syscall_coroutine_0", row.syscall_coroutine_1),
            (true, _, _) => ("syscall_thread_0", u64::from(row.syscall_thread_1)),
            (false, 1.., _) => ("syscall_coroutine_1", row.syscall_coroutine_0),
            (false, _, _) => ("syscall_thread_1", u64::from(row.syscall_thread_0)),
        };
        let Row { agent_id, start_time: start, end_time: end, .. } = *row;
        (worker.1 != 0).then_some(Self { agent_id, worker, start, end, sent })
    }

    /// Whether a row of its worker is in it.
    fn holds(&self, row: &Row) -> bool {
        if self.sent {
            row.is_client_process() && row.start_time >= self.start && row.start_time <= self.end
        } else {
            row.is_server_process() && row.start_time <= self.start && row.end_time >= self.end
        }
    }
}

/// Windows of one direction and kind of worker as one condition, which holds for more: a list is read at once where each window by itself
/// would be tried on every row. [`Keys::wants`] says what of it is meant.
fn condition(windows: &[Window], column: &str, sent: bool) -> Option<String> {
    let chosen = || windows.iter().filter(|window| window.worker.0 == column && window.sent == sent);
    let list = |values: BTreeSet<u64>| values.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let agents = list(chosen().map(|window| u64::from(window.agent_id)).collect());
    let workers = list(chosen().map(|window| window.worker.1).collect());
    let first = chosen().map(|window| if sent { window.start } else { window.end }).min()?;
    let last = chosen().map(|window| if sent { window.end } else { window.start }).max()?;
    let time = if sent {
        format!("start_time >= {first} AND start_time <= {last}")
    } else {
        format!("end_time >= {first} AND start_time <= {last}")
    };
    let point = if sent { ObservationPoint::ClientProcess } else { ObservationPoint::ServerProcess } as u8;
    Some(format!(
        "(observation_point = {point} AND {column} IN ({workers}) AND agent_id IN ({agents}) AND {time})"
    ))
}

/// Values by which rows are found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Keys {
    traces: BTreeSet<String>,
    syscalls: BTreeSet<u64>,
    requests: BTreeSet<u32>,
    responses: BTreeSet<u32>,
    x_requests: BTreeSet<String>,
    windows: BTreeSet<Window>,
}

impl Keys {
    pub(super) fn of_trace(id: &str) -> Self {
        Self { traces: BTreeSet::from([id.to_owned()]), ..Self::default() }
    }

    pub(super) fn add(&mut self, row: &Row) {
        if !row.trace_id.is_empty() {
            self.traces.insert(row.trace_id.clone());
        }
        self.syscalls.extend(row.syscalls());
        self.requests.extend(Some(row.req_tcp_seq).filter(|seq| *seq != 0));
        self.responses.extend(Some(row.resp_tcp_seq).filter(|seq| *seq != 0));
        self.x_requests.extend(row.x_request_ids().map(str::to_owned));
        self.windows.extend(Window::of(row));
    }

    /// Those by which a request is found elsewhere on its way.
    pub(super) fn on_the_way(self) -> Self {
        Self { syscalls: BTreeSet::new(), windows: BTreeSet::new(), ..self }
    }

    /// Those by which a process is found to have worked on something else as well.
    pub(super) fn in_processes(self) -> Self {
        Self { syscalls: self.syscalls, windows: self.windows, ..Self::default() }
    }

    pub(super) fn merge(&mut self, more: Self) {
        let Self { traces, syscalls, requests, responses, x_requests, windows } = more;
        self.traces.extend(traces);
        self.syscalls.extend(syscalls);
        self.requests.extend(requests);
        self.responses.extend(responses);
        self.x_requests.extend(x_requests);
        self.windows.extend(windows);
    }

    /// Those that `known` has not.
    pub(super) fn without(&self, known: &Self) -> Self {
        Self {
            traces: self.traces.difference(&known.traces).cloned().collect(),
            syscalls: self.syscalls.difference(&known.syscalls).copied().collect(),
            requests: self.requests.difference(&known.requests).copied().collect(),
            responses: self.responses.difference(&known.responses).copied().collect(),
            x_requests: self.x_requests.difference(&known.x_requests).cloned().collect(),
            windows: self.windows.difference(&known.windows).copied().collect(),
        }
    }

    /// Whether a row is what these look for, and not only beside it.
    pub(super) fn wants(&self, row: &Row) -> bool {
        let Self { traces, syscalls, requests, responses, x_requests, windows } = self;
        let workers = [
            ("syscall_coroutine_0", row.syscall_coroutine_0),
            ("syscall_thread_0", u64::from(row.syscall_thread_0)),
            ("syscall_coroutine_1", row.syscall_coroutine_1),
            ("syscall_thread_1", u64::from(row.syscall_thread_1)),
        ];
        let in_window = |worker: (&'static str, u64)| {
            let from = Window { agent_id: row.agent_id, worker, start: 0, end: 0, sent: false };
            let to = Window { start: u64::MAX, end: u64::MAX, sent: true, ..from };
            windows.range(from..=to).any(|window| window.holds(row))
        };
        traces.contains(&row.trace_id)
            || row.syscalls().any(|id| syscalls.contains(&id))
            || requests.contains(&row.req_tcp_seq)
            || responses.contains(&row.resp_tcp_seq)
            || row.x_request_ids().any(|id| x_requests.contains(id))
            || workers.into_iter().filter(|worker| worker.1 != 0).any(in_window)
    }

    /// A statement for each so many values: any of them in any of its columns.
    pub(super) fn statements(&self, span: Span) -> Vec<String> {
        let Self { traces, syscalls, requests, responses, x_requests, windows } = self;
        let windows: Vec<Window> = windows.iter().copied().collect();
        let mut windows = windows.chunks(WINDOWS_MAX).peekable();
        let texts =
            |texts: &BTreeSet<String>| texts.iter().filter_map(|text| literal(text)).collect::<Vec<_>>();
        let mut parts: Vec<(&[&str], Vec<String>)> = vec![
            (&["trace_id"], texts(traces)),
            (
                &["syscall_trace_id_request", "syscall_trace_id_response"],
                syscalls.iter().map(u64::to_string).collect(),
            ),
            (&["req_tcp_seq"], requests.iter().map(u32::to_string).collect()),
            (&["resp_tcp_seq"], responses.iter().map(u32::to_string).collect()),
            (&["x_request_id_0", "x_request_id_1"], texts(x_requests)),
        ];
        let mut statements = Vec::new();
        while windows.peek().is_some() || parts.iter().any(|(_, values)| !values.is_empty()) {
            let mut room = VALUES_MAX;
            let mut conditions: Vec<String> = Vec::new();
            if let Some(windows) = windows.next() {
                room -= windows.len();
                let each = WORKERS.iter().filter_map(|(column, sent)| condition(windows, column, *sent));
                conditions.extend(each);
            }
            for (columns, values) in &mut parts {
                let taken: Vec<String> = values.drain(..values.len().min(room / columns.len())).collect();
                room -= taken.len() * columns.len();
                if !taken.is_empty() {
                    let list = taken.join(", ");
                    conditions.extend(columns.iter().map(|column| format!("{column} IN ({list})")));
                }
            }
            statements.push(statement(&conditions.join(" OR "), span));
        }
        statements
    }
}

/// Rows without names that ended in a span and for which a condition holds.
pub(super) fn statement(condition: &str, span: Span) -> String {
    select(&COLUMNS[..UNNAMED], condition, span)
}

/// Statements for the same rows with their names.
pub(super) fn named(rows: &[&Row]) -> Vec<String> {
    let numbers = |rows: &[&Row], value: fn(&Row) -> u64| {
        let values: BTreeSet<u64> = rows.iter().map(|row| value(row)).collect();
        values.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
    };
    let statement = |rows: &[&Row]| {
        let (from, to) =
            (rows.iter().map(|row| row.end_time).min(), rows.iter().map(|row| row.end_time).max());
        // The end of the last row is within a second.
        let span = Span { from: from.unwrap_or(0) / 1_000_000, to: to.unwrap_or(0) / 1_000_000 + 1 };
        let starts = numbers(rows, |row| row.start_time);
        let agents = numbers(rows, |row| u64::from(row.agent_id));
        select(COLUMNS, &format!("start_time IN ({starts}) AND agent_id IN ({agents})"), span)
    };
    rows.chunks(VALUES_MAX).map(statement).collect()
}

fn select(columns: &[&str], condition: &str, Span { from, to }: Span) -> String {
    let columns = columns.join(", ");
    format!(
        "SELECT {columns} FROM l7_flow_log WHERE time >= {from} AND time <= {to} AND ({condition}) LIMIT {ROWS_MAX}"
    )
}

/// A text in quotes. None for what no real id has: quotes that a reader might take for something else.
fn literal(text: &str) -> Option<String> {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'\'' && byte != b'\\';
    (!text.is_empty() && text.len() <= ID_BYTES_MAX && text.bytes().all(plain)).then(|| format!("'{text}'"))
}

/// Whether a text can be looked for.
pub(super) fn is_id(text: &str) -> bool {
    literal(text).is_some()
}

#[cfg(test)]
mod tests {
    use metaflow_query::{Compiled, Request, compile};

    use super::*;

    #[test]
    fn every_statement_compiles_and_holds_its_values() {
        let mut keys = Keys::of_trace("0af7651916cd43dd8448eb211c80319c");
        for nth in 0..4_000_u32 {
            keys.add(&Row {
                syscall_trace_id_request: u64::MAX - u64::from(nth),
                req_tcp_seq: u32::MAX - nth,
                resp_tcp_seq: nth,
                x_request_id_0: format!("request {nth}"),
                ..Row::default()
            });
        }
        keys.x_requests.insert("it's".to_owned());
        keys.x_requests.insert("a\\".to_owned());
        let statements = keys.statements(Span { from: 1_700_000_000, to: 1_700_000_100 });
        assert_eq!(statements.len(), (1 + 2 * 4_000 + 4_000 + 3_999 + 2 * 4_000_usize).div_ceil(VALUES_MAX));
        let request = Request { database: Some("flow_log"), now_seconds: 1_700_000_000, shards: None };
        for statement in &statements {
            let Compiled::Select { sql, columns, .. } = compile(statement, &request).unwrap() else {
                panic!()
            };
            assert_eq!(columns.len(), UNNAMED);
            assert!(sql.contains("toDateTime(1700000000"), "{sql}");
        }
        assert!(statements.iter().any(|statement| statement.contains("18446744073709551615")));
        assert!(!statements.iter().any(|statement| statement.contains("it's") || statement.contains('\\')));
    }

    #[test]
    fn what_a_thread_did_meanwhile_is_looked_for_both_ways() {
        let served = Row {
            observation_point: 4,
            agent_id: 3,
            syscall_thread_1: 7,
            start_time: 1_000_000,
            end_time: 2_000_000,
            ..Row::default()
        };
        let sent = Row { observation_point: 3, syscall_coroutine_0: 9, ..served.clone() };
        let mut keys = Keys::default();
        [served, sent].iter().for_each(|row| keys.add(row));
        let statements = keys.statements(Span { from: 1, to: 2 });
        let asks = |text: &str| statements[0].contains(text);
        assert!(asks(
            "(observation_point = 3 AND syscall_thread_0 IN (7) AND agent_id IN (3) AND start_time >= 1000000 AND start_time <= 2000000)"
        ));
        assert!(asks(
            "(observation_point = 4 AND syscall_coroutine_1 IN (9) AND agent_id IN (3) AND end_time >= 2000000 AND start_time <= 1000000)"
        ));
        let work = Row {
            observation_point: 3,
            agent_id: 3,
            syscall_thread_0: 7,
            start_time: 1_500_000,
            ..Row::default()
        };
        assert!(keys.wants(&work));
        assert!(!keys.wants(&Row { syscall_thread_0: 8, ..work.clone() }));
        assert!(!keys.wants(&Row { agent_id: 4, ..work.clone() }));
        assert!(!keys.wants(&Row { start_time: 2_000_001, ..work.clone() }));
        assert!(!keys.wants(&Row { observation_point: 4, ..work }));
        compile(&statements[0], &Request { database: None, now_seconds: 9, shards: None }).unwrap();
        for nth in 0..1_000 {
            keys.windows.insert(Window {
                agent_id: nth,
                worker: ("syscall_thread_0", 1),
                start: 1,
                end: 2,
                sent: true,
            });
        }
        let statements = keys.statements(Span { from: 1, to: 2 });
        assert_eq!(statements.len(), 1_002_usize.div_ceil(WINDOWS_MAX));
        for statement in &statements {
            compile(statement, &Request { database: None, now_seconds: 9, shards: None }).unwrap();
        }
    }

    #[test]
    fn keys_are_looked_for_once() {
        let row = Row { trace_id: "a".into(), syscall_trace_id_request: 7, ..Row::default() };
        let (mut known, mut all) = (Keys::default(), Keys::default());
        known.add(&row);
        all.add(&row);
        assert_eq!(all.without(&known), Keys::default());
        all.add(&Row { syscall_trace_id_response: 8, ..row });
        assert_eq!(all.without(&known).syscalls, BTreeSet::from([8]));
        assert!(Keys::default().statements(Span { from: 0, to: 1 }).is_empty());
    }
}
