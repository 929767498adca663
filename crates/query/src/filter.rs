//! `WHERE`: conditions on rows.
//!
//! A name without an end on rows that have two matches either end; what negates is `NOT` around what it negates, so that `pod != 'x'` keeps
//! the rows where neither end is x.

mod compare;

use metaflow_schema::catalogue::Family;
use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator};

use crate::{
    Error,
    expr::{self, Literal, bare, call, chain, constant, name, refuse, start},
    metric,
    range::mirrored,
    sql::Sql,
    statement::{Item, clip},
    tag::{self, Ends},
};

pub(crate) use compare::{Comparison, Operator};

/// What conditions are resolved in.
pub(crate) struct Scope<'a> {
    pub(crate) family: &'static Family,
    /// Selected columns: a filter may use their aliases.
    pub(crate) items: &'a [Item],
    pub(crate) now: u32,
}

/// What a comparison is about.
enum Subject {
    Tag(Ends),
    /// `Enum(tag)`: its names.
    Names(Ends),
    /// An amount of a row.
    Metric(Sql),
}

/// The condition that `expr` states.
pub(crate) fn condition(expr: &Expr, scope: &Scope<'_>) -> Result<Sql, Error> {
    match bare(expr) {
        all @ Expr::BinaryOp { op: op @ (BinaryOperator::And | BinaryOperator::Or), .. } => {
            let operands = chain(all, op)
                .into_iter()
                .map(|operand| condition(operand, scope))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(if *op == BinaryOperator::And { Sql::all(operands) } else { Sql::any(operands) })
        }
        Expr::BinaryOp { left, op, right } => comparison(expr, left, op, right, scope),
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => Ok(condition(expr, scope)?.negated(true)),
        Expr::InList { expr: left, list, negated } => {
            Ok(compare(left, Operator::Equal, &literals(list.iter(), scope)?, scope)?.negated(*negated))
        }
        Expr::Like { negated, expr: left, pattern, .. } => {
            Ok(compare(left, Operator::Like, &literals([&**pattern], scope)?, scope)?.negated(*negated))
        }
        Expr::RLike { negated, expr: left, pattern, .. } => {
            Ok(compare(left, Operator::Match, &literals([&**pattern], scope)?, scope)?.negated(*negated))
        }
        Expr::Between { expr: left, negated, low, high } => {
            let low = compare(left, Operator::GreaterEqual, &literals([&**low], scope)?, scope)?;
            let high = compare(left, Operator::LessEqual, &literals([&**high], scope)?, scope)?;
            Ok(Sql::all(vec![low, high]).negated(*negated))
        }
        Expr::IsNull(inner) => Ok(exists(inner, scope)?.negated(true)),
        Expr::IsNotNull(inner) => exists(inner, scope),
        Expr::Function(function) => {
            let call = call(function)?;
            match call.arguments.as_slice() {
                [argument] if call.name.eq_ignore_ascii_case("exist") => exists(argument, scope),
                _ => Err(Error::at(call.place, format!("{} is not a condition", clip(call.name)))
                    .hint("write exist(tag), or compare with a value")),
            }
        }
        other => match constant(other, scope.now)?.and_then(|literal| literal.number()) {
            Some(number) => Ok(Sql::Integer(i128::from(number != 0.0))),
            None => Err(refuse(other, "not a condition").hint("write exist(tag), or compare with a value")),
        },
    }
}

fn comparison(
    expr: &Expr,
    left: &Expr,
    op: &BinaryOperator,
    right: &Expr,
    scope: &Scope<'_>,
) -> Result<Sql, Error> {
    if let (Some(left), Some(right)) = (constant(left, scope.now)?, constant(right, scope.now)?) {
        return constants(expr, &left, op, &right);
    }
    let (subject, op, value) = match (constant(left, scope.now)?, mirrored(op)) {
        (Some(_), Some(op)) => (right, op, left),
        _ => (left, op.clone(), right),
    };
    let operator = match op {
        BinaryOperator::Eq | BinaryOperator::NotEq => Operator::Equal,
        BinaryOperator::Lt => Operator::Less,
        BinaryOperator::LtEq => Operator::LessEqual,
        BinaryOperator::Gt => Operator::Greater,
        BinaryOperator::GtEq => Operator::GreaterEqual,
        _ => {
            return Err(
                refuse(expr, "not a condition").hint("accepted are =, !=, <, <=, >, >=, IN, LIKE, REGEXP")
            );
        }
    };
    let values = match bare(value) {
        Expr::Tuple(list) => literals(list.iter(), scope)?,
        value => literals([value], scope)?,
    };
    Ok(compare(subject, operator, &values, scope)?.negated(op == BinaryOperator::NotEq))
}

fn constants(expr: &Expr, left: &Literal, op: &BinaryOperator, right: &Literal) -> Result<Sql, Error> {
    let ordering = match (left, right) {
        (Literal::Text(left), Literal::Text(right)) => left.partial_cmp(right),
        _ => left.number().zip(right.number()).and_then(|(left, right)| left.partial_cmp(&right)),
    };
    let Some(ordering) = ordering else { return Err(refuse(expr, "a number is compared with a text")) };
    let truth = match op {
        BinaryOperator::Eq => ordering.is_eq(),
        BinaryOperator::NotEq => ordering.is_ne(),
        BinaryOperator::Lt => ordering.is_lt(),
        BinaryOperator::LtEq => ordering.is_le(),
        BinaryOperator::Gt => ordering.is_gt(),
        BinaryOperator::GtEq => ordering.is_ge(),
        _ => return Err(refuse(expr, "not a condition")),
    };
    Ok(Sql::Integer(i128::from(truth)))
}

fn literals<'e>(
    exprs: impl IntoIterator<Item = &'e Expr>,
    scope: &Scope<'_>,
) -> Result<Vec<(Literal, &'e Expr)>, Error> {
    exprs
        .into_iter()
        .map(|expr| match constant(expr, scope.now)? {
            Some(literal) => Ok((literal, expr)),
            None => {
                Err(refuse(expr, "not a value")
                    .hint("quote texts; a tag or metric is compared with literals"))
            }
        })
        .collect()
}

/// Whether the subject stands in this relation to any of the values.
fn compare(
    left: &Expr,
    operator: Operator,
    values: &[(Literal, &Expr)],
    scope: &Scope<'_>,
) -> Result<Sql, Error> {
    let subject = subject(left, scope)?;
    let comparison = Comparison { operator, values };
    match subject {
        Subject::Tag(ends) => either(ends, |tag| comparison.on_tag(&tag.value, false)),
        Subject::Names(ends) => either(ends, |tag| comparison.on_tag(&tag.value, true)),
        Subject::Metric(amount) => comparison.on_number(amount),
    }
}

fn either(
    ends: Ends,
    one: impl Fn(&'static metaflow_schema::catalogue::Tag) -> Result<Sql, Error>,
) -> Result<Sql, Error> {
    match ends {
        Ends::One(tag) => one(tag),
        Ends::Either(client, server) => Ok(Sql::any(vec![one(client)?, one(server)?])),
    }
}

fn exists(expr: &Expr, scope: &Scope<'_>) -> Result<Sql, Error> {
    match subject(expr, scope)? {
        Subject::Tag(ends) | Subject::Names(ends) => either(ends, |tag| Ok(tag::exists(&tag.value))),
        Subject::Metric(amount) => Ok(amount.differs(Sql::Integer(0))),
    }
}

fn subject(expr: &Expr, scope: &Scope<'_>) -> Result<Subject, Error> {
    let at = start(expr);
    if let Expr::Function(function) = bare(expr) {
        let call = call(function)?;
        if let ("enum", [argument]) = (call.name.to_ascii_lowercase().as_str(), call.arguments.as_slice()) {
            return match subject(argument, scope)? {
                Subject::Tag(ends) | Subject::Names(ends) => Ok(Subject::Names(ends)),
                Subject::Metric(_) => Err(refuse(argument, "a metric has no names")),
            };
        }
        return Err(Error::at(call.place, format!("{} is not accepted in WHERE", clip(call.name)))
            .hint("aggregates are compared in HAVING"));
    }
    let Some(text) = name(expr) else {
        return Err(refuse(expr, "neither a tag nor a metric"));
    };
    // A tag or metric wins over an alias of the same name: `SELECT region_0 AS region` must not change what WHERE means.
    if let Some(ends) = tag::find(scope.family, &text, at)? {
        return Ok(Subject::Tag(ends));
    }
    if let Some(metric) = scope.family.metric(&text) {
        return Ok(Subject::Metric(metric::of_row(metric, scope.family)));
    }
    let aliased = scope.items.iter().find(|item| item.alias.as_deref() == Some(text.as_str()));
    match aliased {
        // An alias of itself would go round for ever.
        Some(item) if expr::name(&item.expr).is_none_or(|inner| inner != text) => {
            subject(&item.expr, &Scope { items: &[], ..*scope })
        }
        _ => Err(tag::unknown(scope.family, &text, at)),
    }
}
