//! Traces: from one row or a trace id to a tree of spans.
//!
//! Role: looks rows up by what the known ones share, a few rounds over, and hands them to the assembly, which is pure. Bound: rounds, rows,
//! the span of time around what is known. What does not hang together with what was asked for is left out again.

mod assemble;
mod clock;
mod keys;
mod link;
mod names;
mod row;
#[cfg(test)]
mod tests;
mod timing;

use std::collections::{HashMap, HashSet};

pub use assemble::{Reason, Span, assemble, trees_with};
pub use keys::Span as TimeSpan;
use row::Place;
pub use row::{Row, RowId};
pub use timing::{Timing, timings};

use futures::future::try_join_all;
use metaflow_query::Request;
use serde::de::DeserializeOwned;

use super::{Answer, Error, Querier, Source};
use keys::{Keys, ROWS_MAX};

/// Rounds of look-ups: each goes one process up and down. What carries a trace id needs no more than one.
const ROUNDS_MAX: usize = 5;
/// A row is looked for up to so long after its begin: its time is its end.
const ROW_SECONDS_MAX: u64 = 600;

/// Names asked for in one statement: as long as others are.
const NAMES_MAX: usize = 4_000;

/// Statements of one trace that run at a time: a part of what the querier runs for all.
const STATEMENTS_MAX: usize = 4;

/// What a trace is looked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seed {
    TraceId(String),
    Row(RowId),
}

impl Seed {
    /// A row's id or else a trace id.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if let Some(id) = RowId::parse(text) {
            return Ok(Self::Row(id));
        }
        if keys::is_id(text) {
            return Ok(Self::TraceId(text.to_owned()));
        }
        Err(Error::NoSeed(text.chars().take(80).collect()))
    }
}

/// A trace, or as much of it as the limits allow.
#[derive(Debug, Default)]
pub struct Trace {
    /// Each below its parent, roots in the order of time.
    pub spans: Vec<Span>,
    /// Rounds that brought something.
    pub rounds: usize,
    /// There may be more.
    pub cut: bool,
}

impl<S: Source> Querier<S> {
    /// The trace of a row or trace id, of rows that ended in `span`; empty when there is none.
    pub async fn trace(&self, seed: &Seed, span: TimeSpan, now_seconds: u32) -> Result<Trace, Error> {
        let mut found = Found::default();
        let first = match seed {
            Seed::TraceId(id) => Keys::of_trace(id).statements(span),
            Seed::Row(id) => {
                let from = id.start_time / 1_000_000;
                vec![keys::statement(&id.condition(), TimeSpan { from, to: from + ROW_SECONDS_MAX })]
            }
        };
        self.look_up(first, now_seconds, &mut found, |_| true).await?;
        let mut known = Keys::default();
        let (mut rounds, mut grew) = (0, !found.rows.is_empty());
        while grew && rounds < ROUNDS_MAX && !found.cut {
            let before = found.rows.len();
            // The same requests elsewhere on their way, then what the processes at their ends did meanwhile.
            for part in [Keys::on_the_way, Keys::in_processes] {
                let mut keys = Keys::default();
                found.rows.iter().for_each(|row| keys.add(row));
                let keys = part(keys).without(&known);
                let statements = keys.statements(TimeSpan::around(&found.rows));
                self.look_up(statements, now_seconds, &mut found, |row| keys.wants(row)).await?;
                known.merge(keys);
            }
            grew = found.rows.len() > before;
            rounds += usize::from(grew);
        }
        found.cut |= grew;
        let rows = self.whole(&found, now_seconds).await?;
        let spans = trees_with(assemble(rows), |row| match seed {
            Seed::TraceId(id) => row.trace_id == *id,
            Seed::Row(id) => row.id() == *id,
        });
        Ok(Trace { spans, rounds, cut: found.cut })
    }

    /// All that is stored of rows.
    async fn whole(&self, known: &Found, now: u32) -> Result<Vec<Row>, Error> {
        let mut whole = Found::default();
        self.look_up(keys::whole(&known.rows), now, &mut whole, |row| known.places.contains(&row.place()))
            .await?;
        let mut found = HashMap::new();
        for ids in names::ids(&whole.rows).chunks(NAMES_MAX) {
            let statement = |request: &Request<'_>| Ok(metaflow_query::compile_names(ids, request));
            let answer = self.answer_to(statement, Some("flow_tag"), now).await?;
            let names: Vec<(u8, u64, String)> = rows_of(&answer)?;
            found.extend(names.into_iter().map(|(kind, id, name)| ((kind, id), name)));
        }
        names::write(&mut whole.rows, &found);
        Ok(whole.rows)
    }

    async fn look_up(
        &self,
        statements: Vec<String>,
        now: u32,
        found: &mut Found,
        wanted: impl Fn(&Row) -> bool,
    ) -> Result<(), Error> {
        for statements in statements.chunks(STATEMENTS_MAX) {
            let asked = statements.iter().map(|statement| self.answer(statement, Some("flow_log"), now));
            for answer in try_join_all(asked).await? {
                found.take(rows_of(&answer)?, &wanted);
            }
        }
        Ok(())
    }
}

fn rows_of<R: DeserializeOwned>(answer: &Answer) -> Result<Vec<R>, Error> {
    serde_json::from_str(answer.rows.get())
        .map_err(|error| Error::Store(format!("its rows are not readable: {error}")))
}

/// Rows without repetitions.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    places: HashSet<Place>,
    cut: bool,
}

impl Found {
    /// Takes what is wanted of the rows that a statement brought.
    fn take(&mut self, rows: Vec<Row>, wanted: impl Fn(&Row) -> bool) {
        self.cut |= rows.len() >= ROWS_MAX;
        for row in rows.into_iter().filter(|row| wanted(row)) {
            if self.places.len() >= ROWS_MAX {
                self.cut = true;
            } else if self.places.insert(row.place()) {
                self.rows.push(row);
            }
        }
    }
}
