//! Expressions as the parser gives them: which shapes are accepted at all, and readers of the simple ones.
//!
//! [`check`] runs over every expression before anything else looks at it. It does not recurse, so what follows may: after it the depth is
//! bounded, but for chains of `AND` and `OR`, which [`chain`] reads in a loop.

use sqlparser::{
    ast::{
        BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
        FunctionArguments, Ident, ObjectNamePart, Spanned, UnaryOperator, Value, ValueWithSpan,
    },
    tokenizer::Location,
};

use crate::{Error, statement::clip};

/// Stands for the place of what has none.
const TEXT_START: Location = Location { line: 1, column: 1 };
/// Levels of an expression, chains of `AND` and `OR` not counted.
const DEPTH_MAX: usize = 48;

/// A value that is known when the text is read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Integer(i128),
    Float(f64),
    Text(String),
}

/// A function call with its arguments.
pub(crate) struct Call<'a> {
    pub(crate) name: &'a str,
    pub(crate) arguments: Vec<&'a Expr>,
    pub(crate) place: Location,
}

/// Refuses shapes that have no meaning here, and depth.
pub(crate) fn check(expr: &Expr) -> Result<(), Error> {
    let start = start(expr);
    let mut open = vec![(expr, 0_usize)];
    while let Some((expr, depth)) = open.pop() {
        if depth > DEPTH_MAX {
            let message = format!("nested more than {DEPTH_MAX} levels deep");
            return Err(Error::at(place(expr).unwrap_or(start), message));
        }
        let below = depth + 1;
        match expr {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) => {}
            Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
                open.extend([(&**left, depth), (&**right, below)]);
            }
            Expr::BinaryOp { left, op: _, right } => open.extend([(&**left, below), (&**right, below)]),
            Expr::UnaryOp { expr, op: _ }
            | Expr::Nested(expr)
            | Expr::IsNull(expr)
            | Expr::IsNotNull(expr) => open.push((expr, below)),
            Expr::Like { expr, pattern, escape_char: None, any: false, negated: _ }
            | Expr::RLike { expr, pattern, negated: _, regexp: _ } => {
                open.extend([(&**expr, below), (&**pattern, below)]);
            }
            Expr::Between { expr, low, high, negated: _ } => {
                open.extend([(&**expr, below), (&**low, below), (&**high, below)]);
            }
            Expr::InList { expr, list, negated: _ } => {
                open.push((expr, below));
                open.extend(list.iter().map(|entry| (entry, below)));
            }
            Expr::Tuple(list) => open.extend(list.iter().map(|entry| (entry, below))),
            Expr::Function(function) => {
                open.extend(call(function)?.arguments.into_iter().map(|argument| (argument, below)));
            }
            other => {
                let place = place(other).unwrap_or(start);
                return Err(Error::at(place, format!("{} is not accepted", describe(other)))
                    .hint("accepted are names, literals, arithmetic, comparisons and the functions of SHOW METRICS FUNCTIONS"));
            }
        }
    }
    Ok(())
}

fn describe(expr: &Expr) -> &'static str {
    match expr {
        Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => "a subquery",
        Expr::Case { .. } => "CASE",
        Expr::Cast { .. } | Expr::Convert { .. } => "a cast",
        Expr::Interval(_) => "INTERVAL",
        Expr::ILike { .. } => "ILIKE",
        Expr::Like { .. } => "LIKE with ESCAPE or ANY",
        _ => "this expression",
    }
}

/// Where an expression begins, without recursion; none for shapes that [`check`] refuses anyway.
fn place(expr: &Expr) -> Option<Location> {
    let mut expr = expr;
    loop {
        expr = match expr {
            Expr::BinaryOp { left, .. } => left,
            Expr::UnaryOp { expr, .. }
            | Expr::Nested(expr)
            | Expr::IsNull(expr)
            | Expr::IsNotNull(expr)
            | Expr::Like { expr, .. }
            | Expr::ILike { expr, .. }
            | Expr::RLike { expr, .. }
            | Expr::Between { expr, .. }
            | Expr::InList { expr, .. }
            | Expr::InSubquery { expr, .. }
            | Expr::Cast { expr, .. } => expr,
            Expr::Tuple(list) => list.first()?,
            Expr::Identifier(ident) => return Some(ident.span.start),
            Expr::CompoundIdentifier(idents) => return idents.first().map(|ident| ident.span.start),
            Expr::Value(value) => return Some(value.span.start),
            Expr::Function(function) => return function.name.0.first().map(|part| part.span().start),
            Expr::Subquery(query) => match query.body.as_ref() {
                sqlparser::ast::SetExpr::Select(select) => return Some(select.select_token.0.span.start),
                _ => return None,
            },
            Expr::Case { case_token, .. } => return Some(case_token.0.span.start),
            _ => return None,
        };
    }
}

/// Where an expression begins; the begin of the text for one without a place.
pub(crate) fn start(expr: &Expr) -> Location {
    place(expr).unwrap_or(TEXT_START)
}

/// An error at the begin of `expr`.
pub(crate) fn refuse(expr: &Expr, message: impl Into<String>) -> Error {
    Error::at(start(expr), message)
}

/// Takes brackets off.
pub(crate) fn bare(mut expr: &Expr) -> &Expr {
    while let Expr::Nested(inner) = expr {
        expr = inner;
    }
    expr
}

/// A name; parts are joined by points.
pub(crate) fn name(expr: &Expr) -> Option<String> {
    match bare(expr) {
        Expr::Identifier(ident) => Some(ident.value.clone()),
        Expr::CompoundIdentifier(idents) => {
            Some(idents.iter().map(|ident: &Ident| ident.value.as_str()).collect::<Vec<_>>().join("."))
        }
        _ => None,
    }
}

/// The operands of a chain of `op`, in order.
pub(crate) fn chain<'a>(expr: &'a Expr, op: &BinaryOperator) -> Vec<&'a Expr> {
    let mut operands = vec![];
    let mut rest = expr;
    while let Expr::BinaryOp { left, op: own, right } = rest {
        if own != op {
            break;
        }
        operands.push(right.as_ref());
        rest = left;
    }
    operands.push(rest);
    operands.reverse();
    operands
}

/// The plain call in a function expression.
pub(crate) fn call(function: &Function) -> Result<Call<'_>, Error> {
    let Function { name, uses_odbc_syntax, parameters, args, within_group, filter, null_treatment, over } =
        function;
    let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else {
        let place = name.0.first().map_or(TEXT_START, |part| part.span().start);
        return Err(Error::at(place, "a function's name has one part"));
    };
    let place = ident.span.start;
    let refused = || {
        Error::at(place, format!("{} is called in a form that is not accepted", clip(&ident.value)))
            .hint("write function(argument, ...)")
    };
    let plain = !uses_odbc_syntax
        && matches!(parameters, FunctionArguments::None)
        && within_group.is_empty()
        && filter.is_none()
        && null_treatment.is_none()
        && over.is_none();
    let FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses }) = args
    else {
        return Err(refused());
    };
    if !plain || !clauses.is_empty() {
        return Err(refused());
    }
    let arguments = args
        .iter()
        .map(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Ok(expr),
            _ => Err(refused()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Call { name: &ident.value, arguments, place })
}

/// The value of `expr` when it is made of literals, arithmetic and `now()` alone.
pub(crate) fn constant(expr: &Expr, now: u32) -> Result<Option<Literal>, Error> {
    Ok(Some(match bare(expr) {
        Expr::Value(value) => literal(value)?,
        Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match constant(inner, now)? {
            Some(Literal::Integer(number)) => Literal::Integer(-number),
            Some(Literal::Float(number)) => Literal::Float(-number),
            _ => return Ok(None),
        },
        Expr::UnaryOp { op: UnaryOperator::Plus, expr: inner } => return constant(inner, now),
        Expr::Function(function) if call(function)?.name.eq_ignore_ascii_case("now") => {
            let call = call(function)?;
            if !call.arguments.is_empty() {
                return Err(Error::at(call.place, "now() takes no argument"));
            }
            Literal::Integer(i128::from(now))
        }
        Expr::BinaryOp { left, op, right } => {
            let (Some(left_value), Some(right_value)) = (constant(left, now)?, constant(right, now)?) else {
                return Ok(None);
            };
            return arithmetic(expr, &left_value, op, &right_value);
        }
        _ => return Ok(None),
    }))
}

fn literal(value: &ValueWithSpan) -> Result<Literal, Error> {
    let refused = |what: &str| Err(Error::span(value.span, what.to_owned()));
    match &value.value {
        Value::Number(digits, _) => {
            // 30 digits stay far below the range of i128, so that a sum of literals does too.
            if let Some(number) = digits.parse::<i128>().ok().filter(|_| digits.len() <= 30) {
                return Ok(Literal::Integer(number));
            }
            match digits.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Literal::Float(number)),
                _ => refused("the number is too large"),
            }
        }
        Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => Ok(Literal::Text(text.clone())),
        Value::Boolean(truth) => Ok(Literal::Integer(i128::from(*truth))),
        Value::Null => Ok(Literal::Text(String::new())),
        _ => refused("only numbers and quoted texts are literals"),
    }
}

fn arithmetic(
    expr: &Expr,
    left: &Literal,
    op: &BinaryOperator,
    right: &Literal,
) -> Result<Option<Literal>, Error> {
    if let (Literal::Integer(left), Literal::Integer(right)) = (left, right) {
        let exact = match op {
            BinaryOperator::Plus => left.checked_add(*right),
            BinaryOperator::Minus => left.checked_sub(*right),
            BinaryOperator::Multiply => left.checked_mul(*right),
            BinaryOperator::Modulo => left.checked_rem(*right),
            BinaryOperator::Divide if *right != 0 && left % right == 0 => left.checked_div(*right),
            _ => None,
        };
        if let Some(exact) = exact {
            return Ok(Some(Literal::Integer(exact)));
        }
    }
    let (Some(left), Some(right)) = (left.number(), right.number()) else { return Ok(None) };
    let result = match op {
        BinaryOperator::Plus => left + right,
        BinaryOperator::Minus => left - right,
        BinaryOperator::Multiply => left * right,
        BinaryOperator::Divide => left / right,
        BinaryOperator::Modulo => left % right,
        _ => return Ok(None),
    };
    if result.is_finite() {
        Ok(Some(Literal::Float(result)))
    } else {
        Err(refuse(expr, "the result is not a finite number"))
    }
}

impl Literal {
    /// The number that it is; a text is none.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Text(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlparser::{dialect::MySqlDialect, parser::Parser};

    use super::*;

    fn parsed(text: &str) -> Expr {
        Parser::new(&MySqlDialect {}).try_with_sql(text).unwrap().parse_expr().unwrap()
    }

    #[test]
    fn constants_are_computed() {
        for (text, expected) in [
            ("100+1", Literal::Integer(101)),
            ("now() - 300", Literal::Integer(700)),
            ("-(2 * 3)", Literal::Integer(-6)),
            ("1/2", Literal::Float(0.5)),
            ("'a'", Literal::Text("a".to_owned())),
        ] {
            assert_eq!(constant(&parsed(text), 1_000).unwrap(), Some(expected), "{text}");
        }
        assert_eq!(constant(&parsed("time + 1"), 0).unwrap(), None);
        assert!(constant(&parsed("1 / 0"), 0).is_err());
    }

    #[test]
    fn shapes_without_meaning_are_refused() {
        for text in
            ["(SELECT 1)", "CASE WHEN 1 THEN 2 END", "CAST(a AS INT)", "a IN (SELECT 1)", "Sum(DISTINCT a)"]
        {
            assert!(check(&parsed(text)).is_err(), "{text}");
        }
        assert!(check(&parsed("a AND NOT (b OR c LIKE 'x*') AND d IN (1, 2)")).is_ok());
    }
}
