//! The span of time that a statement asks for: which bounds its filter sets, which table answers, how many seconds it covers.

use metaflow_schema::{
    Table,
    catalogue::{self, Family},
};
use sqlparser::ast::{BinaryOperator, Expr};

use crate::{
    Error, Request,
    error::nearest,
    expr::{Literal, bare, chain, constant, name},
    statement::{Name, clip},
};

/// A lower bound older than this is answered from the table of minutes: the table of seconds is kept for a day only, and an hour of
/// seconds is more points than a screen has.
const SECONDS_TABLE_AGE_MAX: i64 = 3_600;

/// Whole seconds, both ends included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) lower: Option<i64>,
    pub(crate) upper: Option<i64>,
}

/// The bounds that hold for every row: those at the top of the filter, joined by `AND`.
pub(crate) fn bounds(filter: Option<&Expr>, now: u32) -> Result<Range, Error> {
    let mut range = Range::default();
    let Some(filter) = filter else { return Ok(range) };
    let mut open: Vec<&Expr> = vec![filter];
    while let Some(expr) = open.pop() {
        match bare(expr) {
            all @ Expr::BinaryOp { op: BinaryOperator::And, .. } => {
                open.extend(chain(all, &BinaryOperator::And))
            }
            Expr::BinaryOp { left, op, right } if is_time(left) => {
                if let Some(literal) = constant(right, now)? {
                    range.narrow(op, &literal);
                }
            }
            Expr::BinaryOp { left, op, right } if is_time(right) => {
                if let (Some(literal), Some(op)) = (constant(left, now)?, mirrored(op)) {
                    range.narrow(&op, &literal);
                }
            }
            Expr::Between { expr, low, high, negated: false } if is_time(expr) => {
                if let (Some(low), Some(high)) = (constant(low, now)?, constant(high, now)?) {
                    range.narrow(&BinaryOperator::GtEq, &low);
                    range.narrow(&BinaryOperator::LtEq, &high);
                }
            }
            _ => {}
        }
    }
    Ok(range)
}

fn is_time(expr: &Expr) -> bool {
    name(expr).is_some_and(|name| name == "time")
}

/// The operator that says the same with its sides exchanged.
pub(crate) fn mirrored(op: &BinaryOperator) -> Option<BinaryOperator> {
    Some(match op {
        BinaryOperator::Eq => BinaryOperator::Eq,
        BinaryOperator::NotEq => BinaryOperator::NotEq,
        BinaryOperator::Lt => BinaryOperator::Gt,
        BinaryOperator::LtEq => BinaryOperator::GtEq,
        BinaryOperator::Gt => BinaryOperator::Lt,
        BinaryOperator::GtEq => BinaryOperator::LtEq,
        _ => return None,
    })
}

/// The first second that is not before, and the last that is not after, a point in time.
pub(crate) fn seconds(literal: &Literal) -> Option<(i64, i64)> {
    // Seconds are stored in 32 bits; a bound beyond is as good as the end of that range.
    let clamp = |number: f64| number.clamp(0.0, f64::from(u32::MAX)) as i64;
    let number = literal.number()?;
    Some((clamp(number.ceil()), clamp(number.floor())))
}

impl Range {
    fn narrow(&mut self, op: &BinaryOperator, literal: &Literal) {
        let Some((ceil, floor)) = seconds(literal) else { return };
        let (lower, upper) = match op {
            BinaryOperator::Gt => (Some(floor + 1), None),
            BinaryOperator::GtEq => (Some(ceil), None),
            BinaryOperator::Lt => (None, Some(ceil - 1)),
            BinaryOperator::LtEq => (None, Some(floor)),
            BinaryOperator::Eq => (Some(ceil), Some(floor)),
            _ => return,
        };
        if let Some(lower) = lower {
            self.lower = Some(self.lower.map_or(lower, |known| known.max(lower)));
        }
        if let Some(upper) = upper {
            self.upper = Some(self.upper.map_or(upper, |known| known.min(upper)));
        }
    }

    /// Seconds that rows of `interval` seconds within the range cover; none without a lower bound.
    pub(crate) fn covered(&self, interval: u32, now: u32) -> Option<i64> {
        let interval = i64::from(interval);
        let upper = self.upper.unwrap_or_else(|| i64::from(now));
        let first = self.lower?.div_euclid(interval) + i64::from(self.lower?.rem_euclid(interval) != 0);
        let rows = upper.div_euclid(interval) - first + 1;
        Some(rows.max(1) * interval)
    }
}

/// A table's name in a statement, resolved but for the interval.
pub(crate) struct Source {
    pub(crate) family: &'static Family,
    /// Named with its interval.
    table: Option<&'static Table>,
}

/// What a table's name means.
pub(crate) fn source(table: &Name, request: &Request<'_>) -> Result<Source, Error> {
    let mut text = table.text.as_str();
    // `flow_tag` has names for all tables, so it is no choice between them.
    let mut database = request.database.filter(|database| !database.is_empty() && *database != "flow_tag");
    for family in catalogue::families() {
        if let Some(rest) = text.strip_prefix(family.database).and_then(|rest| rest.strip_prefix('.')) {
            (text, database) = (rest, Some(family.database));
            break;
        }
    }
    let found = resolve(text);
    match found {
        Some(source) if database.is_none_or(|database| database == source.family.database) => Ok(source),
        Some(source) => {
            let message =
                format!("no table {} in database {}", clip(text), clip(database.unwrap_or_default()));
            Err(Error::span(table.span, message)
                .hint(format!("it is in database {}", source.family.database)))
        }
        None => {
            let names = catalogue::families().iter().map(|family| family.name);
            let hint = nearest(text, names, "SHOW TABLES lists the tables");
            Err(Error::span(table.span, format!("no table {}", clip(&table.text))).hint(hint))
        }
    }
}

fn resolve(text: &str) -> Option<Source> {
    if let Some(family) = catalogue::family(text) {
        return Some(Source { family, table: None });
    }
    let (base, interval) = text.rsplit_once('.')?;
    let family = catalogue::family(base)?;
    let table = family.tables.iter().find(|table| {
        table.name.strip_prefix(family.name).is_some_and(|rest| rest.strip_prefix('.') == Some(interval))
    })?;
    Some(Source { family, table: Some(table) })
}

impl Source {
    /// The table that answers: the one named; else minutes for buckets of whole minutes and for spans that are open or begin long ago;
    /// else seconds.
    pub(crate) fn table(&self, range: Range, bucket_micros: Option<u64>, now: u32) -> &'static Table {
        if let Some(table) = self.table {
            return table;
        }
        let minutes = bucket_micros.is_some_and(|micros| micros % 60_000_000 == 0)
            || range.lower.is_none_or(|lower| lower < i64::from(now) - SECONDS_TABLE_AGE_MAX);
        let wanted = if minutes { 60 } else { 1 };
        self.family
            .tables
            .iter()
            .find(|table| table.interval == Some(wanted))
            .copied()
            .unwrap_or(self.family.tables[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(
        text: &str,
        database: Option<&str>,
        lower: Option<i64>,
        bucket_seconds: Option<u64>,
    ) -> String {
        let name = Name { text: text.to_owned(), span: sqlparser::tokenizer::Span::empty() };
        match source(&name, &Request { database, now_seconds: 100_000, shards: None }) {
            Ok(source) => {
                let range = Range { lower, upper: None };
                source
                    .table(range, bucket_seconds.map(|seconds| seconds * 1_000_000), 100_000)
                    .name
                    .to_owned()
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_table_that_answers_fits_bucket_and_age() {
        for (text, lower, bucket, expected) in [
            ("application", Some(99_700), None, "application.1s"),
            ("application", Some(99_700), Some(10), "application.1s"),
            ("application", Some(99_700), Some(120), "application.1m"),
            ("application", Some(96_400), None, "application.1s"),
            ("application", Some(96_399), None, "application.1m"),
            ("application", None, Some(1), "application.1m"),
            ("application.1s", None, Some(60), "application.1s"),
            ("flow_metrics.application.1m", Some(99_700), None, "application.1m"),
            ("vtap_app_edge_port.1s", None, None, "application_map.1s"),
            ("vtap_flow_port", Some(99_999), None, "network.1s"),
            ("l7_flow_log", None, Some(60), "l7_flow_log"),
        ] {
            assert_eq!(table_of(text, None, lower, bucket), expected, "{text} {lower:?} {bucket:?}");
        }
    }

    #[test]
    fn a_table_of_another_database_is_refused() {
        for (text, database, expected) in [
            ("l7_flow_log", "flow_log", "l7_flow_log"),
            ("l7_flow_log", "flow_tag", "l7_flow_log"),
            ("flow_log.l7_flow_log", "flow_metrics", "l7_flow_log"),
            (
                "l7_flow_log",
                "flow_metrics",
                "no table l7_flow_log in database flow_metrics (line 1, column 1); it is in database flow_log",
            ),
        ] {
            assert_eq!(table_of(text, Some(database), None, None), expected, "{text} in {database}");
        }
    }

    #[test]
    fn a_range_covers_whole_intervals() {
        for (lower, upper, interval, expected) in [
            (Some(60), Some(180), 60, Some(180)),
            (Some(61), Some(180), 60, Some(120)),
            (Some(701), None, 1, Some(300)),
            (Some(900), Some(100), 1, Some(1)),
            (None, Some(100), 1, None),
        ] {
            assert_eq!(
                Range { lower, upper }.covered(interval, 1_000),
                expected,
                "{lower:?} {upper:?} {interval}"
            );
        }
    }
}
