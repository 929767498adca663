//! Values of a statement: tags, buckets of time, metrics of rows, arithmetic.

use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator};

use super::{Compiler, Output};
use crate::{
    ColumnKind, Error,
    expr::{Call, Literal, bare, call, chain, constant, name, refuse, start},
    metric::{self, plain},
    sql::Sql,
    statement::clip,
    tag::{self, Ends},
};

impl Compiler<'_> {
    /// What `expr` stands for. `aliases`: names of selected columns count, and come first.
    pub(super) fn value(&mut self, expr: &Expr, aliases: bool) -> Result<Output, Error> {
        if aliases && let Some(output) = self.selected(expr) {
            return Ok(output);
        }
        if let Some(literal) = constant(expr, self.now)? {
            return Ok(Output::metric(number(expr, &literal)?, ""));
        }
        match bare(expr) {
            Expr::BinaryOp { left, op, right } => self.arithmetic(expr, left, op, right, aliases),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
                let value = self.value(expr, aliases)?;
                Ok(Output { sql: Sql::Call("negate", vec![value.sql]), ..value })
            }
            Expr::Function(function) => self.function(expr, &call(function)?, aliases),
            other => match name(other) {
                Some(name) => self.named(other, &name),
                None => Err(refuse(other, "not a value")
                    .hint("accepted are tags, metric functions and arithmetic of them")),
            },
        }
    }

    /// The selected column of that alias, or written in the same way.
    pub(super) fn selected(&self, expr: &Expr) -> Option<Output> {
        let by_name = name(expr).and_then(|text| self.names.iter().position(|name| *name == text));
        let same = || self.items.iter().position(|item| item.expr == *expr);
        by_name.or_else(same).and_then(|at| self.outputs.get(at)).cloned()
    }

    fn named(&mut self, expr: &Expr, text: &str) -> Result<Output, Error> {
        if text.eq_ignore_ascii_case("time_interval") {
            return Ok(Output::metric(self.seconds(), "s"));
        }
        if let Some(ends) = tag::find(self.family, text, start(expr))? {
            return Ok(self.tag(ends));
        }
        let Some(metric) = self.family.metric(text) else { return Err(self.unknown(expr, text)) };
        if self.grouped {
            return Err(refuse(expr, format!("metric {} stands without a function", metric.name))
                .hint(format!("e.g. Sum({0}), Max({0})", metric.name)));
        }
        let amount = metric::of_row(metric, self.family);
        Ok(Output::metric(self.registry.key(amount), metric.unit))
    }

    fn tag(&mut self, ends: Ends) -> Output {
        let tag = ends.shown();
        let keys: Vec<Sql> = tag::parts(&tag.value).into_iter().map(|part| self.registry.key(part)).collect();
        let looked_up = tag::is_looked_up(&tag.value);
        let kind = if tag.name == "time" { ColumnKind::Time } else { ColumnKind::Tag };
        let sql = tag::shown_of_keys(&tag.value, &keys, &mut self.registry);
        Output { sql, unit: String::new(), kind, looked_up }
    }

    fn function(&mut self, expr: &Expr, call: &Call<'_>, aliases: bool) -> Result<Output, Error> {
        match (call.name.to_ascii_lowercase().as_str(), call.arguments.as_slice()) {
            ("time", _) => match self.bucket_key() {
                Some(bucket) => {
                    let sql = self.registry.key(bucket);
                    Ok(Output { sql, unit: "s".to_owned(), kind: ColumnKind::Time, looked_up: false })
                }
                None => Err(refuse(expr, "a bucket of time inside of another expression")
                    .hint("select time(time, N) itself")),
            },
            ("enum", [argument]) => self.enum_name(argument),
            ("node_type", [argument]) => self.node_type(argument),
            // There are no icons; panels that ask for one get the number of none.
            ("icon_id", [argument]) => self.tag_argument(argument).map(|_| Output::tag(Sql::Integer(0))),
            _ => self.aggregate(call, aliases),
        }
    }

    fn enum_name(&mut self, argument: &Expr) -> Result<Output, Error> {
        let tag = self.tag_argument(argument)?.shown();
        let text = format!("{}_str{}", tag.base.strip_suffix("_str").unwrap_or(&tag.base), tag.side);
        match tag::find(self.family, &text, start(argument))? {
            Some(ends) => Ok(self.tag(ends)),
            // Every other tag is its own name already.
            None => Ok(self.tag(Ends::One(tag))),
        }
    }

    fn node_type(&mut self, argument: &Expr) -> Result<Output, Error> {
        let tag = self.tag_argument(argument)?.shown();
        let Some((part, shown)) = tag::node_type(&tag.value) else {
            return Ok(Output::tag(Sql::text(tag.base.as_str())));
        };
        let key = self.registry.key(part);
        Ok(Output::tag(shown(key)))
    }

    /// The tag that an argument names.
    pub(super) fn tag_argument(&self, argument: &Expr) -> Result<Ends, Error> {
        let place = start(argument);
        let Some(text) = name(argument) else { return Err(Error::at(place, "not the name of a tag")) };
        match tag::find(self.family, &text, place)? {
            Some(ends) => Ok(ends),
            None if self.family.metric(&text).is_some() => {
                Err(Error::at(place, format!("{} is a metric, not a tag", clip(&text))))
            }
            None => Err(self.unknown(argument, &text)),
        }
    }

    fn arithmetic(
        &mut self,
        expr: &Expr,
        left: &Expr,
        op: &BinaryOperator,
        right: &Expr,
        aliases: bool,
    ) -> Result<Output, Error> {
        let symbol = match op {
            BinaryOperator::Plus => "+",
            BinaryOperator::Minus => "-",
            BinaryOperator::Multiply => "*",
            BinaryOperator::Divide => "/",
            BinaryOperator::Modulo => "%",
            _ => return Err(refuse(expr, "not a value").hint("conditions belong into WHERE and HAVING")),
        };
        let (left_value, right_value) = (self.value(left, aliases)?, self.value(right, aliases)?);
        for (side, value) in [(left, &left_value), (right, &right_value)] {
            if value.kind == ColumnKind::Tag {
                return Err(refuse(side, "a tag cannot be calculated with"));
            }
        }
        let unit = if left_value.unit == right_value.unit && matches!(symbol, "+" | "-") {
            left_value.unit
        } else {
            String::new()
        };
        let sql = match symbol {
            "/" => left_value.sql.divided_by(right_value.sql),
            "%" => Sql::Infix(
                "%",
                vec![left_value.sql, Sql::Call("nullIf", vec![right_value.sql, Sql::Integer(0)])],
            ),
            _ => Sql::Infix(symbol, vec![left_value.sql, right_value.sql]),
        };
        Ok(Output { sql, unit, kind: ColumnKind::Metric, looked_up: false })
    }

    /// `HAVING`: a condition on values.
    pub(super) fn having(&mut self, expr: &Expr) -> Result<Sql, Error> {
        match bare(expr) {
            all @ Expr::BinaryOp { op: op @ (BinaryOperator::And | BinaryOperator::Or), .. } => {
                let operands = chain(all, op)
                    .into_iter()
                    .map(|operand| self.having(operand))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(if *op == BinaryOperator::And { Sql::all(operands) } else { Sql::any(operands) })
            }
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => Ok(self.having(expr)?.negated(true)),
            Expr::BinaryOp { left, op, right } => {
                let symbol = match op {
                    BinaryOperator::Eq => "=",
                    BinaryOperator::NotEq => "!=",
                    BinaryOperator::Lt => "<",
                    BinaryOperator::LtEq => "<=",
                    BinaryOperator::Gt => ">",
                    BinaryOperator::GtEq => ">=",
                    _ => return Err(refuse(expr, "not a condition")),
                };
                let (left, right) = (self.compared(left)?, self.compared(right)?);
                Ok(Sql::Infix(symbol, vec![left, right]))
            }
            Expr::Between { expr, negated, low, high } => {
                let (value, low, high) = (self.compared(expr)?, self.compared(low)?, self.compared(high)?);
                let above = Sql::Infix(">=", vec![value.clone(), low]);
                Ok(Sql::all(vec![above, Sql::Infix("<=", vec![value, high])]).negated(*negated))
            }
            other => Err(refuse(other, "not a condition on groups")
                .hint("HAVING compares metrics with numbers; tags belong into WHERE")),
        }
    }

    fn compared(&mut self, expr: &Expr) -> Result<Sql, Error> {
        let value = self.value(expr, true)?;
        if value.kind != ColumnKind::Metric {
            return Err(refuse(expr, "not a metric").hint("HAVING compares metrics; tags belong into WHERE"));
        }
        Ok(value.sql)
    }

    /// The begin of a row's bucket.
    pub(super) fn bucket_key(&self) -> Option<Sql> {
        let micros = i128::from(self.bucket_micros?);
        let start = |moment: Sql, width: i128| {
            Sql::Infix("*", vec![Sql::Call("intDiv", vec![moment, Sql::Integer(width)]), Sql::Integer(width)])
        };
        if micros % 1_000_000 == 0 {
            return Some(start(Sql::Call("toUnixTimestamp", vec![Sql::Column("time")]), micros / 1_000_000));
        }
        let precise = Sql::Call("toDateTime64", vec![Sql::Column("time"), Sql::Integer(6), Sql::text("UTC")]);
        let bucket = start(Sql::Call("toUnixTimestamp64Micro", vec![precise]), micros);
        Some(Sql::Infix("/", vec![bucket, Sql::Integer(1_000_000)]))
    }

    /// Seconds that a group covers: its bucket, else the range asked for, else the span between its first and last row.
    pub(super) fn seconds(&mut self) -> Sql {
        if let Some(micros) = self.bucket_micros {
            return match micros % 1_000_000 {
                0 => Sql::Integer(i128::from(micros / 1_000_000)),
                _ => Sql::Float(micros as f64 / 1e6),
            };
        }
        let interval = self.table.interval.unwrap_or(1);
        if let Some(seconds) = self.range.covered(interval, self.now) {
            return Sql::Integer(i128::from(seconds));
        }
        let second = Sql::Call("toUnixTimestamp", vec![Sql::Column("time")]);
        let last = self.registry.aggregate(plain("max", vec![second.clone()]));
        let first = self.registry.aggregate(plain("min", vec![second]));
        Sql::Infix("+", vec![Sql::Infix("-", vec![last, first]), Sql::Integer(i128::from(interval))])
    }
}

impl Output {
    pub(super) fn metric(sql: Sql, unit: &str) -> Self {
        Self { sql, unit: unit.to_owned(), kind: ColumnKind::Metric, looked_up: false }
    }

    pub(super) fn tag(sql: Sql) -> Self {
        Self { sql, unit: String::new(), kind: ColumnKind::Tag, looked_up: false }
    }
}

fn number(expr: &Expr, literal: &Literal) -> Result<Sql, Error> {
    match literal {
        Literal::Integer(number) => Ok(Sql::Integer(*number)),
        Literal::Float(number) => Ok(Sql::Float(*number)),
        Literal::Text(_) => {
            Err(refuse(expr, "a text is not a value")
                .hint("names of tags stand without quotes or in backticks"))
        }
    }
}
