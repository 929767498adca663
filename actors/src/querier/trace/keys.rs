//! What rows of a trace have in common, and the statements that find more of them.
//!
//! Statements are in the language that users write, so that they go through the same compiler: nothing here reaches the engine as text.

use std::collections::BTreeSet;

use super::row::{COLUMNS, Row, SHARED};

/// Values in one statement: of numbers with twenty digits so many stay far below the longest accepted text.
const VALUES_MAX: usize = 1_500;
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

/// Values by which rows are found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Keys {
    traces: BTreeSet<String>,
    syscalls: BTreeSet<u64>,
    requests: BTreeSet<u32>,
    responses: BTreeSet<u32>,
    x_requests: BTreeSet<String>,
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
    }

    /// Those by which a request is found elsewhere on its way.
    pub(super) fn on_the_way(self) -> Self {
        Self { syscalls: BTreeSet::new(), ..self }
    }

    /// Those by which a process is found to have worked on something else as well.
    pub(super) fn in_processes(self) -> Self {
        Self { syscalls: self.syscalls, ..Self::default() }
    }

    pub(super) fn merge(&mut self, more: Self) {
        let Self { traces, syscalls, requests, responses, x_requests } = more;
        self.traces.extend(traces);
        self.syscalls.extend(syscalls);
        self.requests.extend(requests);
        self.responses.extend(responses);
        self.x_requests.extend(x_requests);
    }

    /// Those that `known` has not.
    pub(super) fn without(&self, known: &Self) -> Self {
        Self {
            traces: self.traces.difference(&known.traces).cloned().collect(),
            syscalls: self.syscalls.difference(&known.syscalls).copied().collect(),
            requests: self.requests.difference(&known.requests).copied().collect(),
            responses: self.responses.difference(&known.responses).copied().collect(),
            x_requests: self.x_requests.difference(&known.x_requests).cloned().collect(),
        }
    }

    /// Whether a row is what these look for, and not only beside it.
    pub(super) fn wants(&self, row: &Row) -> bool {
        let Self { traces, syscalls, requests, responses, x_requests } = self;
        traces.contains(&row.trace_id)
            || row.syscalls().any(|id| syscalls.contains(&id))
            || requests.contains(&row.req_tcp_seq)
            || responses.contains(&row.resp_tcp_seq)
            || row.x_request_ids().any(|id| x_requests.contains(id))
    }

    /// A statement for each so many values: any of them in any of its columns. Trace ids by themselves and with one column more than the
    /// projection has, because an index of the table knows them.
    pub(super) fn statements(&self, span: Span) -> Vec<String> {
        let Self { traces, syscalls, requests, responses, x_requests } = self;
        let texts =
            |texts: &BTreeSet<String>| texts.iter().filter_map(|text| literal(text)).collect::<Vec<_>>();
        let mut statements: Vec<String> = (texts(traces).chunks(VALUES_MAX))
            .map(|ids| select(&COLUMNS[..=SHARED], &format!("trace_id IN ({})", ids.join(", ")), span))
            .collect();
        let mut parts: Vec<(&[&str], Vec<String>)> = vec![
            (&["syscall_trace_id_request"], syscalls.iter().map(u64::to_string).collect()),
            (&["req_tcp_seq"], requests.iter().map(u32::to_string).collect()),
            (&["resp_tcp_seq"], responses.iter().map(u32::to_string).collect()),
            (&["x_request_id_0", "x_request_id_1"], texts(x_requests)),
        ];
        while parts.iter().any(|(_, values)| !values.is_empty()) {
            let mut room = VALUES_MAX;
            let mut conditions: Vec<String> = Vec::new();
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

/// What rows that ended in a span and for which a condition holds have in common with others. No column more, so that the table's projection
/// serves.
pub(super) fn statement(condition: &str, span: Span) -> String {
    select(&COLUMNS[..SHARED], condition, span)
}

/// Statements for the whole of rows. They name what the table is sorted by, so that little else is read.
pub(super) fn whole(rows: &[Row]) -> Vec<String> {
    let numbers = |rows: &[Row], value: fn(&Row) -> u64| {
        let values: BTreeSet<u64> = rows.iter().map(value).collect();
        values.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
    };
    let statement = |rows: &[Row]| {
        let (from, to) =
            (rows.iter().map(|row| row.end_time).min(), rows.iter().map(|row| row.end_time).max());
        // The end of the last row is within a second.
        let span = Span { from: from.unwrap_or(0) / 1_000_000, to: to.unwrap_or(0) / 1_000_000 + 1 };
        let ends = numbers(rows, |row| row.end_time);
        let agents = numbers(rows, |row| u64::from(row.agent_id));
        let kinds = numbers(rows, |row| u64::from(row.auto_service_type_1));
        let services = numbers(rows, |row| u64::from(row.auto_service_id_1));
        let protocols = numbers(rows, |row| u64::from(row.protocol_number));
        let condition = format!(
            "auto_service_type_1 IN ({kinds}) AND auto_service_id_1 IN ({services}) AND l7_protocol IN ({protocols}) AND \
             end_time IN ({ends}) AND agent_id IN ({agents})"
        );
        select(COLUMNS, &condition, span)
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
        assert_eq!(statements.len(), 1 + (4_000 + 4_000 + 3_999 + 2 * 4_000_usize).div_ceil(VALUES_MAX));
        let request = Request { database: Some("flow_log"), now_seconds: 1_700_000_000, shards: None };
        for statement in &statements {
            let Compiled::Select { sql, columns, .. } = compile(statement, &request).unwrap() else {
                panic!()
            };
            assert_eq!(columns.len(), SHARED + usize::from(statement.contains("trace_id IN ('")));
            assert!(sql.contains("toDateTime(1700000000"), "{sql}");
        }
        assert!(statements.iter().any(|statement| statement.contains("18446744073709551615")));
        assert!(!statements.iter().any(|statement| statement.contains("it's") || statement.contains('\\')));
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
