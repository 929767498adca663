//! Metrics: how each source of a metric is summed, sampled and shown.
//!
//! Amounts (counters) and quotients are sampled by interval: all rows of an interval together are one sample, because how many rows an
//! interval has depends on how many tags it was split by. Delays are sampled by row: in logs a row is one request, in tables of metrics it
//! is the average of a second or minute, weighted by its count.

use metaflow_schema::{
    Table,
    catalogue::Family,
    metrics::{COMPUTED, Metric, Source},
};

use crate::sql::{Aggregate, Registry, Sql};

/// The values that functions such as `Max` and `Percentile` work on.
pub(crate) enum Samples {
    /// One value a row, where `keep` holds.
    Rows { value: Sql, keep: Sql, weight: Option<Sql> },
    /// An array of one value an interval.
    Intervals { values: Sql },
}

/// A metric in a table.
#[derive(Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) metric: &'static Metric,
    pub(crate) family: &'static Family,
    pub(crate) table: &'static Table,
}

impl Measured {
    /// Sum over rows; none for quotients, which do not add up.
    pub(crate) fn sum(self, registry: &mut Registry) -> Option<Sql> {
        let value = match self.metric.source {
            Source::Counter(columns) => self.columns(columns),
            Source::Delay { prefix } => self.part(prefix, "_sum"),
            Source::SingleDelay { column } => self.column(column),
            Source::Rows => return Some(registry.aggregate(plain("count", vec![]))),
            Source::Quotient { .. } => return None,
        };
        Some(registry.aggregate(plain("sum", vec![value])))
    }

    /// The mean of everything: weighted, null when there is nothing. None for amounts, whose mean depends on time.
    pub(crate) fn mean(self, registry: &mut Registry) -> Option<Sql> {
        let mut sum = |value| registry.aggregate(plain("sum", vec![value]));
        Some(match self.metric.source {
            Source::Counter(_) | Source::Rows => return None,
            Source::Delay { prefix } => {
                let total = sum(self.part(prefix, "_sum"));
                total.divided_by(sum(self.part(prefix, "_count")))
            }
            Source::SingleDelay { column } => {
                let total = sum(self.column(column));
                let rows = Aggregate {
                    function: "count",
                    combinators: "If",
                    parameters: vec![],
                    arguments: vec![positive(self.column(column))],
                };
                total.divided_by(registry.aggregate(rows))
            }
            Source::Quotient { numerator, denominator, percentage } => {
                let total = sum(self.columns(numerator));
                clamped(total.divided_by(sum(self.columns(denominator))), percentage)
            }
        })
    }

    /// The true maximum; none where it is the maximum of the samples.
    pub(crate) fn maximum(self, registry: &mut Registry) -> Option<Sql> {
        let Source::Delay { prefix } = self.metric.source else { return None };
        let keep = positive(self.part(prefix, "_count"));
        Some(registry.aggregate(Aggregate {
            function: "max",
            combinators: "OrNullIf",
            parameters: vec![],
            arguments: vec![self.part(prefix, "_max"), keep],
        }))
    }

    pub(crate) fn samples(self, registry: &mut Registry) -> Samples {
        match self.metric.source {
            Source::Delay { prefix } => {
                let count = self.part(prefix, "_count");
                Samples::Rows {
                    value: Sql::Infix("/", vec![self.part(prefix, "_sum"), count.clone()]),
                    keep: positive(count.clone()),
                    weight: Some(count),
                }
            }
            Source::SingleDelay { column } => {
                let value = self.column(column);
                Samples::Rows { keep: positive(value.clone()), value, weight: None }
            }
            Source::Counter(columns) => Samples::Intervals {
                values: self.by_interval(vec![self.columns(columns)], registry).element(2),
            },
            Source::Rows => {
                let one = Sql::Call("toUInt64", vec![Sql::Integer(1)]);
                Samples::Intervals { values: self.by_interval(vec![one], registry).element(2) }
            }
            Source::Quotient { numerator, denominator, percentage } => {
                let both = vec![self.columns(numerator), self.columns(denominator)];
                let sums = self.by_interval(both, registry);
                let quotient = Sql::Infix("/", vec![Sql::Variable("n"), Sql::Variable("d")]);
                let quotients = Sql::Call(
                    "arrayMap",
                    vec![
                        Sql::Lambda(&["n", "d"], Box::new(clamped(quotient, percentage))),
                        sums.clone().element(2),
                        sums.clone().element(3),
                    ],
                );
                // An interval without a denominator has no quotient.
                let keep = Sql::Infix(">", vec![Sql::Variable("d"), Sql::Integer(0)]);
                let values = Sql::Call(
                    "arrayFilter",
                    vec![Sql::Lambda(&["q", "d"], Box::new(keep)), quotients, sums.element(3)],
                );
                Samples::Intervals { values }
            }
        }
    }

    /// `(intervals, sums, ...)`, ordered by interval.
    fn by_interval(self, values: Vec<Sql>, registry: &mut Registry) -> Sql {
        let second = Sql::Call("toUnixTimestamp", vec![Sql::Column("time")]);
        let interval = match sample_seconds(self.table) {
            1 => second,
            seconds => Sql::Call("intDiv", vec![second, Sql::Integer(i128::from(seconds))]),
        };
        let mut arguments = vec![Sql::Array(vec![interval])];
        arguments.extend(values.into_iter().map(|value| Sql::Array(vec![value])));
        registry.aggregate(plain("sumMappedArrays", arguments))
    }

    fn part(self, prefix: &str, suffix: &str) -> Sql {
        stored(self.family, &format!("{prefix}{suffix}"))
    }

    fn column(self, column: &str) -> Sql {
        stored(self.family, column)
    }

    fn columns(self, columns: &[&str]) -> Sql {
        added(columns, self.family)
    }
}

/// Seconds that are one sample of an amount: the table's interval; for flows, which report by the minute, a minute.
pub(crate) fn sample_seconds(table: &Table) -> u32 {
    table.interval.unwrap_or(if table.name == "l4_flow_log" { 60 } else { 1 })
}

/// The metric of a single row.
pub(crate) fn of_row(metric: &'static Metric, family: &'static Family) -> Sql {
    match metric.source {
        Source::Counter(columns) => added(columns, family),
        Source::Delay { prefix } => {
            let part = |suffix: &str| stored(family, &format!("{prefix}{suffix}"));
            part("_sum").divided_by(part("_count"))
        }
        Source::SingleDelay { column } => stored(family, column),
        Source::Quotient { numerator, denominator, percentage } => {
            clamped(added(numerator, family).divided_by(added(denominator, family)), percentage)
        }
        Source::Rows => Sql::Integer(1),
    }
}

/// The unit of a metric that adds up, by the second.
pub(crate) fn per_second(unit: &str) -> String {
    if unit.is_empty() { "1/s".to_owned() } else { format!("{unit}/s") }
}

fn added(columns: &[&str], family: &'static Family) -> Sql {
    let mut parts: Vec<Sql> = columns.iter().map(|column| stored(family, column)).collect();
    if parts.len() == 1 { parts.remove(0) } else { Sql::Infix("+", parts) }
}

/// A column of the family, stored or computed.
fn stored(family: &'static Family, name: &str) -> Sql {
    COMPUTED
        .iter()
        .find(|(computed, of, _)| *computed == name && *of == family.name)
        .map(|(_, _, expression)| Sql::Computed(expression))
        .or_else(|| family.amount(name).map(Sql::Column))
        // The catalogue's own test holds that every metric's columns exist; NULL makes a hole visible and harmless.
        .unwrap_or(Sql::Computed("NULL"))
}

pub(crate) fn plain(function: &'static str, arguments: Vec<Sql>) -> Aggregate {
    Aggregate { function, combinators: "", parameters: vec![], arguments }
}

fn positive(value: Sql) -> Sql {
    Sql::Infix(">", vec![value, Sql::Integer(0)])
}

fn clamped(quotient: Sql, percentage: bool) -> Sql {
    if !percentage {
        return quotient;
    }
    // Not `least`: it ignores nulls, and a quotient without a denominator must stay null.
    let above = Sql::Infix(">", vec![quotient.clone(), Sql::Integer(1)]);
    Sql::Call("if", vec![above, Sql::Integer(1), quotient])
}
