//! Buckets of time: `time(time, N)`, and what those without rows hold.

use sqlparser::ast::{Expr, Value};

use super::{Compiler, Fill};
use crate::{
    ColumnKind, Error,
    expr::{Call, Literal, bare, call, constant, name, refuse},
    sql::Sql,
    statement::Select,
};

/// A year is longer than anything is kept; the bound keeps arithmetic exact.
const SECONDS_MAX: f64 = 366.0 * 86_400.0;
/// Buckets that are filled in; a screen shows some thousand.
const FILLED_MAX: i128 = 100_000;

/// A `time(time, width, window, fill)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bucket {
    pub(super) micros: u64,
    /// What buckets without rows hold; none leaves them out.
    pub(super) fill: Option<Empty>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Empty {
    Zero,
    Null,
}

/// The bucket that the statement has.
pub(super) fn of(statement: &Select, now: u32) -> Result<Option<Bucket>, Error> {
    let mut found = None;
    for expr in statement.items.iter().map(|item| &item.expr).chain(&statement.group) {
        let Expr::Function(function) = expr else { continue };
        let call = call(function)?;
        if !call.name.eq_ignore_ascii_case("time") {
            continue;
        }
        let bucket = read(expr, &call, now)?;
        if found.is_some_and(|other| other != bucket) {
            return Err(refuse(expr, "a second kind of time buckets").hint("a statement has one"));
        }
        found = Some(bucket);
    }
    Ok(found)
}

fn read(expr: &Expr, call: &Call<'_>, now: u32) -> Result<Bucket, Error> {
    let refused = || refuse(expr, "not a bucket of time").hint("write time(time, 60): a bucket of 60 s");
    let [time, width, rest @ ..] = call.arguments.as_slice() else { return Err(refused()) };
    let number = |expr| Ok::<_, Error>(constant(expr, now)?.and_then(|literal| literal.number()));
    if name(time).is_none_or(|name| name != "time") || rest.len() > 2 {
        return Err(refused());
    }
    let seconds =
        number(width)?.filter(|seconds| (0.000_001..=SECONDS_MAX).contains(seconds)).ok_or_else(refused)?;
    if let Some(window) = rest.first()
        && number(window)? != Some(1.0)
    {
        return Err(refuse(window, "a window over several buckets is not supported").hint("write 1"));
    }
    let fill = rest.get(1).map_or(Ok(None), |fill| empty(fill, now))?;
    Ok(Bucket { micros: (seconds * 1e6).round() as u64, fill })
}

fn empty(expr: &Expr, now: u32) -> Result<Option<Empty>, Error> {
    if matches!(bare(expr), Expr::Value(value) if value.value == Value::Null) {
        return Ok(Some(Empty::Null));
    }
    let text = match constant(expr, now)? {
        Some(Literal::Text(text)) => text,
        Some(Literal::Integer(number)) => number.to_string(),
        Some(Literal::Float(number)) => number.to_string(),
        None => name(expr).unwrap_or_default(),
    };
    match text.to_ascii_lowercase().as_str() {
        "" | "none" => Ok(None),
        "0" => Ok(Some(Empty::Zero)),
        "null" => Ok(Some(Empty::Null)),
        _ => Err(refuse(expr, "not something to fill buckets with").hint("0, null or none")),
    }
}

impl Compiler<'_> {
    /// How buckets without rows are added.
    pub(super) fn fill(&self, statement: &Select) -> Result<Option<Fill>, Error> {
        let (Some(empty), Some(micros)) = (self.fill_with, self.bucket_micros) else { return Ok(None) };
        let bucket = self.outputs.iter().position(|output| output.kind == ColumnKind::Time);
        let Some(output) = bucket.filter(|_| self.grouped) else { return Ok(None) };
        let step = match micros % 1_000_000 {
            0 => Sql::Integer(i128::from(micros / 1_000_000)),
            _ => Sql::Float(micros as f64 / 1e6),
        };
        let range = match (self.range.lower, micros % 1_000_000) {
            (Some(lower), 0) => {
                let (width, interval) =
                    ((micros / 1_000_000) as i64, i64::from(self.table.interval.unwrap_or(1)));
                // Rows stand at the begin of their interval, so one that began before the bound is not in the answer.
                let first = (lower + interval - 1).div_euclid(interval) * interval;
                let end = self.range.upper.unwrap_or_else(|| i64::from(self.now)) + 1;
                Some((first.div_euclid(width) * width, end))
            }
            _ => None,
        };
        if let Some((from, to)) = range
            && i128::from(to - from) * 1_000_000 / i128::from(micros) > FILLED_MAX
        {
            let expr = &statement.items[output].expr;
            return Err(refuse(expr, format!("more than {FILLED_MAX} buckets"))
                .hint("choose wider buckets or a shorter time"));
        }
        Ok(Some(Fill { output, step, range, null: empty == Empty::Null }))
    }
}
