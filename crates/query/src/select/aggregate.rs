//! Metric functions.

use metaflow_schema::metrics::Source;
use sqlparser::ast::Expr;

use super::{Compiler, Output};
use crate::{
    ColumnKind, Error,
    error::nearest,
    expr::{Call, call, constant, name, refuse},
    metric::{Measured, Samples, per_second, plain},
    sql::{Aggregate, Sql},
    statement::clip,
    tag,
};

/// A function as `SHOW METRICS FUNCTIONS` lists it.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) arguments: &'static str,
    pub(crate) doc: &'static str,
}

/// Every metric function.
pub(crate) const FUNCTIONS: &[Function] = &[
    Function { name: "Sum", arguments: "metric", doc: "total" },
    Function {
        name: "Avg",
        arguments: "metric",
        doc: "amounts: total by second; delays and quotients: weighted mean",
    },
    Function { name: "AAvg", arguments: "metric", doc: "arithmetic mean of the samples" },
    Function { name: "Max", arguments: "metric", doc: "largest sample; of delays the true maximum" },
    Function { name: "Min", arguments: "metric", doc: "smallest sample" },
    Function { name: "Stddev", arguments: "metric", doc: "standard deviation of the samples" },
    Function { name: "Spread", arguments: "metric", doc: "largest less smallest" },
    Function { name: "Rspread", arguments: "metric", doc: "largest by smallest" },
    Function { name: "Percentile", arguments: "metric, level", doc: "quantile of the samples, level 0 to 1" },
    Function { name: "Apdex", arguments: "delay, threshold", doc: "satisfied share of requests, 0 to 1" },
    Function { name: "Last", arguments: "metric", doc: "latest sample" },
    Function {
        name: "Histogram",
        arguments: "metric, bins",
        doc: "array of (lower, upper, height) of the samples",
    },
    Function { name: "PerSecond", arguments: "value", doc: "value by second" },
    Function { name: "Percentage", arguments: "value, value", doc: "hundred times the first by the second" },
    Function { name: "Count", arguments: "row", doc: "number of rows" },
    Function { name: "Uniq", arguments: "tag, ...", doc: "number of different values, estimated" },
    Function { name: "UniqExact", arguments: "tag, ...", doc: "number of different values" },
    Function { name: "TopK", arguments: "tag, ..., number", doc: "most frequent values, joined by commas" },
    Function { name: "Any", arguments: "tag, ...", doc: "some value" },
];

/// More would be a list and not an answer; the engine's memory for it grows with the number.
const TOP_MAX: i128 = 1_000;
const BINS_MAX: i128 = 1_000;

/// Whether `expr` has an aggregate in it.
pub(super) fn is_in(expr: &Expr) -> bool {
    match expr {
        Expr::Function(function) => call(function).is_ok_and(|call| {
            FUNCTIONS.iter().any(|known| known.name.eq_ignore_ascii_case(call.name))
                || call.arguments.into_iter().any(is_in)
        }),
        Expr::BinaryOp { left, right, .. } => is_in(left) || is_in(right),
        Expr::UnaryOp { expr, .. } | Expr::Nested(expr) => is_in(expr),
        _ => false,
    }
}

impl Compiler<'_> {
    pub(super) fn aggregate(&mut self, call: &Call<'_>, aliases: bool) -> Result<Output, Error> {
        let function = call.name.to_ascii_lowercase();
        match (function.as_str(), call.arguments.as_slice()) {
            ("count", [argument]) => self.count(argument),
            ("uniq" | "uniqexact", tags @ [_, ..]) => self.distinct(&function, tags),
            ("any", tags @ [_, ..]) => self.some_value(tags),
            ("topk", [tags @ .., number]) if !tags.is_empty() => self.most_frequent(tags, number),
            ("persecond", [value]) => {
                let value = self.value(value, aliases)?;
                let unit = per_second(&value.unit);
                let seconds = self.seconds();
                Ok(Output::metric(value.sql.divided_by(seconds), &unit))
            }
            ("percentage", [part, whole]) => {
                let (part, whole) = (self.value(part, aliases)?, self.value(whole, aliases)?);
                let share = part.sql.divided_by(whole.sql);
                Ok(Output::metric(Sql::Infix("*", vec![share, Sql::Integer(100)]), "%"))
            }
            ("sum" | "avg" | "aavg" | "max" | "min" | "stddev" | "spread" | "rspread" | "last", [metric]) => {
                let metric = self.measured(metric)?;
                self.measure(&function, metric, call)
            }
            ("percentile" | "apdex" | "histogram", [metric, number]) => {
                self.parametric(&function, metric, number)
            }
            _ => Err(refused(call)),
        }
    }

    fn measured(&self, argument: &Expr) -> Result<Measured, Error> {
        let Some(text) = name(argument) else {
            return Err(refuse(argument, "not the name of a metric")
                .hint("a function takes one metric; calculate with the results"));
        };
        match self.family.metric(&text) {
            Some(metric) => Ok(Measured { metric, family: self.family, table: self.table }),
            None => match self.tag_argument(argument) {
                Ok(_) => Err(refuse(argument, format!("{} is a tag, not a metric", clip(&text)))
                    .hint(format!("SHOW METRICS FROM {} lists the metrics", self.family.name))),
                Err(error) => Err(error),
            },
        }
    }

    fn measure(&mut self, function: &str, metric: Measured, call: &Call<'_>) -> Result<Output, Error> {
        let unit = metric.metric.unit;
        Ok(match function {
            "sum" => match metric.sum(&mut self.registry) {
                Some(sum) => Output::metric(sum, unit),
                None => {
                    let message = format!("{} is a quotient and does not add up", metric.metric.name);
                    return Err(
                        Error::at(call.place, message).hint(format!("write Avg({})", metric.metric.name))
                    );
                }
            },
            "avg" => match metric.mean(&mut self.registry) {
                Some(mean) => Output::metric(mean, unit),
                None => {
                    let seconds = self.seconds();
                    let sum = metric.sum(&mut self.registry).ok_or_else(|| refused(call))?;
                    Output::metric(sum.divided_by(seconds), &per_second(unit))
                }
            },
            "max" => Output::metric(self.extreme("max", metric), unit),
            "min" => Output::metric(self.extreme("min", metric), unit),
            "spread" => {
                let ends = vec![self.extreme("max", metric), self.extreme("min", metric)];
                Output::metric(Sql::Infix("-", ends), unit)
            }
            "rspread" => {
                let (largest, smallest) = (self.extreme("max", metric), self.extreme("min", metric));
                Output::metric(largest.divided_by(smallest), "")
            }
            "last" => Output::metric(self.last(metric), unit),
            "stddev" => Output::metric(self.sampled("stddevPop", "", vec![], metric), unit),
            _ => Output::metric(self.sampled("avg", "", vec![], metric), unit),
        })
    }

    fn parametric(&mut self, function: &str, metric: &Expr, number: &Expr) -> Result<Output, Error> {
        let value = self.parameter(number)?;
        let histogram_of_sum = match metric {
            Expr::Function(inner) if function == "histogram" => {
                let inner = call(inner)?;
                match (inner.name.to_ascii_lowercase().as_str(), inner.arguments.as_slice()) {
                    // The samples of an amount are its sums by interval already.
                    ("sum", [metric]) => Some(*metric),
                    _ => None,
                }
            }
            _ => None,
        };
        let metric_name = histogram_of_sum.unwrap_or(metric);
        let metric = self.measured(metric_name)?;
        match function {
            "percentile" => {
                let level = if value > 1.0 { value / 100.0 } else { value };
                if !(0.0..=1.0).contains(&level) {
                    return Err(refuse(number, "not a level").hint("from 0 to 1, e.g. 0.95"));
                }
                let weighted = matches!(metric.metric.source, Source::Delay { .. });
                let quantile = if weighted { "quantileTDigestWeighted" } else { "quantileExact" };
                let level = vec![Sql::Float(level)];
                Ok(Output::metric(self.sampled(quantile, "quantileExact", level, metric), metric.metric.unit))
            }
            "apdex" => self.apdex(metric_name, metric, value),
            _ => {
                if value.fract() != 0.0 || !(1.0..=BINS_MAX as f64).contains(&value) {
                    return Err(refuse(number, "not a number of bins")
                        .hint(format!("a whole number up to {BINS_MAX}")));
                }
                let bins = vec![Sql::Integer(value as i128)];
                Ok(Output::metric(self.sampled("histogram", "histogram", bins, metric), ""))
            }
        }
    }

    /// The share of samples up to the threshold, and half of those up to four times it.
    fn apdex(&mut self, argument: &Expr, metric: Measured, threshold: f64) -> Result<Output, Error> {
        let Samples::Rows { value, keep, .. } = metric.samples(&mut self.registry) else {
            return Err(refuse(argument, format!("{} is not a delay", metric.metric.name))
                .hint("Apdex judges delays"));
        };
        let mut count = |condition: Sql| {
            self.registry.aggregate(Aggregate {
                function: "count",
                combinators: "If",
                parameters: vec![],
                arguments: vec![condition],
            })
        };
        let below = |limit: f64| {
            Sql::all(vec![keep.clone(), Sql::Infix("<=", vec![value.clone(), Sql::Float(limit)])])
        };
        let (satisfied, tolerated, all) =
            (count(below(threshold)), count(below(4.0 * threshold)), count(keep.clone()));
        // Half of what is between the limits: (satisfied + tolerated) / 2.
        let halves = Sql::Infix("/", vec![Sql::Infix("+", vec![satisfied, tolerated]), Sql::Integer(2)]);
        Ok(Output::metric(halves.divided_by(all), ""))
    }

    fn extreme(&mut self, function: &'static str, metric: Measured) -> Sql {
        if function == "max"
            && let Some(maximum) = metric.maximum(&mut self.registry)
        {
            return maximum;
        }
        self.sampled(function, "", vec![], metric)
    }

    /// `function` over the samples of a metric; `reduced` is its name over arrays where that is another one.
    fn sampled(
        &mut self,
        function: &'static str,
        reduced: &'static str,
        parameters: Vec<Sql>,
        metric: Measured,
    ) -> Sql {
        match metric.samples(&mut self.registry) {
            Samples::Rows { value, keep, weight } => {
                let weight = weight.filter(|_| function.ends_with("Weighted"));
                let arguments = [Some(value), weight, Some(keep)].into_iter().flatten().collect();
                // A histogram of nothing is empty, and has no null.
                let combinators = if function == "histogram" { "If" } else { "OrNullIf" };
                self.registry.aggregate(Aggregate { function, combinators, parameters, arguments })
            }
            Samples::Intervals { values } => {
                let name = if reduced.is_empty() { function } else { reduced };
                let or_null = if name == "histogram" { "" } else { "OrNull" };
                let parameters = match parameters.first() {
                    Some(Sql::Float(level)) => format!("({level:?})"),
                    Some(Sql::Integer(number)) => format!("({number})"),
                    _ => String::new(),
                };
                Sql::Call("arrayReduce", vec![Sql::Text(format!("{name}{or_null}{parameters}")), values])
            }
        }
    }

    fn last(&mut self, metric: Measured) -> Sql {
        match metric.samples(&mut self.registry) {
            Samples::Rows { value, keep, .. } => self.registry.aggregate(Aggregate {
                function: "argMax",
                combinators: "OrNullIf",
                parameters: vec![],
                arguments: vec![value, Sql::Column("time"), keep],
            }),
            Samples::Intervals { values } => Sql::Call("arrayElement", vec![values, Sql::Integer(-1)]),
        }
    }

    fn count(&mut self, argument: &Expr) -> Result<Output, Error> {
        let counts_rows = name(argument).is_some_and(|name| name.eq_ignore_ascii_case("row"))
            || constant(argument, self.now)?.is_some_and(|literal| literal.number().is_some());
        if !counts_rows {
            return Err(refuse(argument, "Count counts rows")
                .hint("write Count(row), or Uniq(tag) for different values"));
        }
        Ok(Output::metric(self.registry.aggregate(plain("count", vec![])), ""))
    }

    fn distinct(&mut self, function: &str, tags: &[&Expr]) -> Result<Output, Error> {
        let (parts, exists, _) = self.tags(tags)?;
        let mut arguments: Vec<Sql> = parts.into_iter().flatten().collect();
        arguments.push(exists);
        let function = if function == "uniq" { "uniq" } else { "uniqExact" };
        let uniq = Aggregate { function, combinators: "If", parameters: vec![], arguments };
        Ok(Output::metric(self.registry.aggregate(uniq), ""))
    }

    fn some_value(&mut self, tags: &[&Expr]) -> Result<Output, Error> {
        let (parts, exists, shown) = self.tags(tags)?;
        let value = Sql::Call("tuple", parts.into_iter().flatten().collect());
        let any = Aggregate {
            function: "any",
            combinators: "If",
            parameters: vec![],
            arguments: vec![value, exists],
        };
        let any = self.registry.aggregate(any);
        Ok(Output { kind: ColumnKind::Tag, ..Output::tag(shown(&any)) })
    }

    fn most_frequent(&mut self, tags: &[&Expr], number: &Expr) -> Result<Output, Error> {
        let count = self.parameter(number)?;
        if count.fract() != 0.0 || !(1.0..=TOP_MAX as f64).contains(&count) {
            return Err(
                refuse(number, "not a number of values").hint(format!("a whole number up to {TOP_MAX}"))
            );
        }
        let (parts, exists, shown) = self.tags(tags)?;
        let value = Sql::Call("tuple", parts.into_iter().flatten().collect());
        let top = Aggregate {
            function: "topK",
            combinators: "If",
            parameters: vec![Sql::Integer(count as i128)],
            arguments: vec![value, exists],
        };
        let top = self.registry.aggregate(top);
        let one = Sql::Call("toString", vec![shown(&Sql::Variable("x"))]);
        let texts = Sql::Call("arrayMap", vec![Sql::Lambda(&["x"], Box::new(one)), top]);
        Ok(Output::tag(Sql::Call("arrayStringConcat", vec![texts, Sql::text(",")])))
    }

    /// For tags as arguments: the parts of each, that a row has one of them, and how a tuple of all parts is shown.
    #[expect(clippy::type_complexity, reason = "used by three functions beside it and nowhere else")]
    fn tags(&self, arguments: &[&Expr]) -> Result<(Vec<Vec<Sql>>, Sql, impl Fn(&Sql) -> Sql + use<>), Error> {
        let mut values = vec![];
        for argument in arguments {
            values.push(&self.tag_argument(argument)?.shown().value);
        }
        let parts: Vec<Vec<Sql>> = values.iter().map(|value| tag::parts(value)).collect();
        let exists = Sql::any(values.iter().map(|value| tag::exists(value)).collect());
        let widths: Vec<usize> = parts.iter().map(Vec::len).collect();
        let shown = move |tuple: &Sql| {
            let mut at = 0;
            let mut texts = vec![];
            for (value, width) in values.iter().zip(&widths) {
                let own: Vec<Sql> =
                    (0..*width).map(|part| tuple.clone().element((at + part) as i128 + 1)).collect();
                texts.push(tag::shown(value, &own));
                at += width;
            }
            if texts.len() == 1 {
                return texts.remove(0);
            }
            let texts = texts.into_iter().map(|text| Sql::Call("toString", vec![text])).collect();
            Sql::Call("arrayStringConcat", vec![Sql::Array(texts), Sql::text(" ")])
        };
        Ok((parts, exists, shown))
    }

    fn parameter(&self, expr: &Expr) -> Result<f64, Error> {
        match constant(expr, self.now)?.and_then(|literal| literal.number()) {
            Some(number) => Ok(number),
            None => Err(refuse(expr, "not a number")),
        }
    }
}

fn refused(call: &Call<'_>) -> Error {
    let known = FUNCTIONS.iter().find(|function| function.name.eq_ignore_ascii_case(call.name));
    match known {
        Some(Function { name, arguments, .. }) => {
            let message = format!("{name} does not take {} arguments", call.arguments.len());
            Error::at(call.place, message).hint(format!("write {name}({arguments})"))
        }
        None => {
            let names = FUNCTIONS.iter().map(|function| function.name).chain(["time", "Enum", "node_type"]);
            let hint = nearest(call.name, names, "SHOW METRICS FUNCTIONS lists the functions");
            Error::at(call.place, format!("no function {}", clip(call.name))).hint(hint)
        }
    }
}
