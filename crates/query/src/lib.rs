//! The SQL compiler: from a user's text to a statement of the store, or to an answer out of the catalogue.
//!
//! Pure: no clock, no IO. A user's text never reaches the engine. It is cut into tokens, read by a small grammar of clauses
//! ([`statement`]), resolved against the catalogue, and rendered anew from our own tree ([`sql`]), in which every name is ours and text of
//! the user can only stand in an escaped literal. What is not known is refused by name and position.
//!
//! Leaves out: running the statement, and the formats of answers (`actors::querier`).

mod error;
mod expr;
mod filter;
mod metric;
mod range;
mod select;
mod shards;
mod show;
mod sql;
mod statement;
mod tag;

pub use error::Error;
pub use shards::Shards;

/// A text longer than this is refused; the longest statement of a real dashboard is a tenth of it.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Rows of an answer when the text sets no `LIMIT`.
pub const ROWS_DEFAULT: u64 = 10_000;
/// The highest `LIMIT` that is accepted: an answer is held in memory.
pub const ROWS_MAX: u64 = 1_000_000;

/// What a compilation depends on beside the text.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `flow_metrics`, `flow_log` or `flow_tag`; none is any.
    pub database: Option<&'a str>,
    /// The time that `now()` and an open end of a range mean, in seconds since 1970.
    pub now_seconds: u32,
    /// The stores that hold the rows together; none: the one that runs the statement has all.
    pub shards: Option<&'a Shards>,
}

/// What a text compiles to.
#[derive(Debug, Clone, PartialEq)]
pub enum Compiled {
    /// A statement for the store; its result's columns are `columns`, by position.
    Select { sql: String, columns: Vec<ResultColumn>, limits: Limits },
    /// The answer itself: what `SHOW` lists stands in the catalogue.
    Answer { columns: Vec<ResultColumn>, rows: Vec<Vec<Value>> },
}

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultColumn {
    /// As the user named it, else as the user wrote it.
    pub name: String,
    pub unit: String,
    pub kind: ColumnKind,
}

/// What a column of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    Tag,
    Metric,
    /// Seconds since 1970.
    Time,
}

/// A cell of an answer out of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Integer(i64),
    Text(String),
}

/// What the store must hold a statement to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows of the result; the statement's own `LIMIT` is never above it.
    pub rows: u64,
    pub execution_seconds: u32,
    pub memory_bytes: u64,
    /// The statement reads only.
    pub readonly: bool,
}

impl Limits {
    /// The same as settings of the engine.
    pub fn settings(&self) -> [(&'static str, String); 5] {
        [
            // 2 and not 1: with 1 the engine refuses the other settings of this list.
            ("readonly", if self.readonly { "2" } else { "0" }.to_owned()),
            ("max_result_rows", self.rows.to_string()),
            ("result_overflow_mode", "throw".to_owned()),
            ("max_execution_time", self.execution_seconds.to_string()),
            ("max_memory_usage", self.memory_bytes.to_string()),
        ]
    }
}

/// Compiles one statement.
pub fn compile(sql: &str, request: &Request<'_>) -> Result<Compiled, Error> {
    match statement::parse(sql)? {
        statement::Statement::Select(statement) => select::compile(&statement, request),
        statement::Statement::Show(statement) => show::compile(&statement, request),
    }
}

/// The statement that gives kind, id and name of ids, for whoever names many columns: each name that a statement joins by itself costs the engine
/// as much as this.
pub fn compile_names(ids: &[(u8, u64)], request: &Request<'_>) -> Compiled {
    let names = ["kind", "id", "name"];
    let column =
        |name: &str| ResultColumn { name: name.to_owned(), unit: String::new(), kind: ColumnKind::Tag };
    // A name may be there twice until parts are merged.
    let limits = limits(ROWS_MAX);
    Compiled::Select {
        sql: sql::names(names, ids, request.shards),
        columns: names.map(column).to_vec(),
        limits,
    }
}

fn limits(rows: u64) -> Limits {
    Limits { rows, execution_seconds: 30, memory_bytes: 4 << 30, readonly: true }
}
