//! Comparisons of one tag or number with literals.
//!
//! Names become sets of ids: every id of a name counts, because one name may have several.

use std::net::{IpAddr, Ipv6Addr};

use metaflow_schema::{
    catalogue::TagValue,
    enums::{EnumValue, Kind},
};
use sqlparser::ast::Expr;

use crate::{
    Error,
    expr::{Literal, refuse},
    range::seconds,
    sql::Sql,
    statement::clip,
    tag,
};

/// A longer pattern is refused: the engine compiles patterns at query time.
const PATTERN_BYTES_MAX: usize = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Like,
    Match,
}

/// Stands in this relation to any of the values.
pub(crate) struct Comparison<'a> {
    pub(crate) operator: Operator,
    pub(crate) values: &'a [(Literal, &'a Expr)],
}

impl Operator {
    const fn symbol(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
            Self::Like => "LIKE",
            Self::Match => "REGEXP",
        }
    }
}

impl Comparison<'_> {
    /// `names`: compare an enumeration by its names even where the tag itself is the number.
    pub(crate) fn on_tag(&self, value: &'static TagValue, names: bool) -> Result<Sql, Error> {
        match value {
            TagValue::Number { column } => self.on_number(Sql::Column(column)),
            TagValue::Micros { .. } => self.on_number(tag::parts(value).remove(0)),
            TagValue::Text { column } => self.on_text(Sql::Column(column)),
            TagValue::Address { column } => self.on_address(column),
            TagValue::Enum { column, values } | TagValue::EnumName { column, values } => {
                self.on_enum(column, values, names || matches!(value, TagValue::EnumName { .. }))
            }
            TagValue::Name { column, kind } => self.on_name(column, *kind),
            TagValue::TypedName { kind, id, address } => self.on_typed_name(kind, id, address),
            TagValue::Internet { .. } => {
                let flag = Sql::Call("toUInt8", tag::parts(value));
                self.on_number(flag)
            }
            TagValue::Time => self.on_time(),
            TagValue::RowId => self.on_row_id(),
        }
    }

    pub(crate) fn on_number(&self, subject: Sql) -> Result<Sql, Error> {
        if matches!(self.operator, Operator::Like | Operator::Match) {
            return self.on_text(Sql::Call("toString", vec![subject]));
        }
        let numbers = self
            .values
            .iter()
            .map(|(literal, expr)| match literal {
                Literal::Integer(number) => Ok(Sql::Integer(*number)),
                Literal::Float(number) => Ok(Sql::Float(*number)),
                Literal::Text(text) => match text.trim().parse::<i64>() {
                    Ok(number) => Ok(Sql::Integer(i128::from(number))),
                    Err(_) => Err(refuse(expr, format!("{} is not a number", clip(text)))),
                },
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.relation(&subject, numbers))
    }

    /// By the numbers that an id is made of, so that no text is made of each row.
    fn on_row_id(&self) -> Result<Sql, Error> {
        let condition = |(literal, expr): &(Literal, &Expr)| {
            let numbers: Option<Vec<u64>> = match literal {
                Literal::Text(text) => text.split('-').map(|part| part.parse().ok()).collect(),
                Literal::Integer(_) | Literal::Float(_) => None,
            };
            match numbers {
                Some(numbers) if self.operator == Operator::Equal && numbers.len() == tag::row_id().len() => {
                    let pairs = tag::row_id().into_iter().zip(numbers);
                    Ok(Sql::all(
                        pairs.map(|(part, number)| part.equals(Sql::Integer(number.into()))).collect(),
                    ))
                }
                _ => Err(refuse(expr, "not the id of a row")
                    .hint("_id is compared by = and IN with texts that SELECT _id shows")),
            }
        };
        Ok(Sql::any(self.values.iter().map(condition).collect::<Result<_, _>>()?))
    }

    fn on_text(&self, subject: Sql) -> Result<Sql, Error> {
        Ok(match self.operator {
            Operator::Like | Operator::Match => self.patterns(&subject)?,
            _ => self.relation(&subject, self.texts()),
        })
    }

    fn on_time(&self) -> Result<Sql, Error> {
        let mut conditions = Vec::with_capacity(self.values.len());
        for (literal, expr) in self.values {
            let Some((ceil, floor)) = seconds(literal) else {
                return Err(refuse(expr, "time is compared with seconds since 1970")
                    .hint("e.g. time > now() - 300, time >= 1700000000"));
            };
            let time = |symbol, second: i64| {
                // A second holds all points in time that begin with it, so `<= n` is `< n + 1`.
                let second = Sql::Integer(i128::from(second.clamp(0, i64::from(u32::MAX))));
                Sql::Infix(
                    symbol,
                    vec![Sql::Column("time"), Sql::Call("toDateTime", vec![second, Sql::text("UTC")])],
                )
            };
            conditions.push(match self.operator {
                Operator::Greater => time(">=", floor + 1),
                Operator::GreaterEqual => time(">=", ceil),
                Operator::Less => time("<", ceil),
                Operator::LessEqual => time("<", floor + 1),
                Operator::Equal => Sql::all(vec![time(">=", ceil), time("<", floor + 1)]),
                Operator::Like | Operator::Match => {
                    return Err(refuse(expr, "time has no pattern").hint("compare it with <, <=, >, >="));
                }
            });
        }
        Ok(Sql::any(conditions))
    }

    fn on_address(&self, column: &'static str) -> Result<Sql, Error> {
        let subject = Sql::Column(column);
        if matches!(self.operator, Operator::Like | Operator::Match) {
            return self.patterns(&tag::address_text(subject));
        }
        let mut conditions = Vec::with_capacity(self.values.len());
        let mut equal = vec![];
        for (literal, expr) in self.values {
            let range = match literal {
                Literal::Text(text) => network(text),
                _ => None,
            };
            let Some((first, last)) = range else {
                return Err(
                    refuse(expr, "not an IP address").hint("e.g. '10.0.0.1', '10.0.0.0/8', 'fd00::/8'")
                );
            };
            let bound = |symbol, address| Sql::Infix(symbol, vec![subject.clone(), address_literal(address)]);
            match self.operator {
                Operator::Equal if first == last => equal.push(address_literal(first)),
                Operator::Equal => conditions.push(Sql::all(vec![bound(">=", first), bound("<=", last)])),
                Operator::Less | Operator::GreaterEqual => {
                    conditions.push(bound(self.operator.symbol(), first));
                }
                _ => conditions.push(bound(self.operator.symbol(), last)),
            }
        }
        if !equal.is_empty() {
            conditions.push(self.relation(&subject, equal));
        }
        Ok(Sql::any(conditions))
    }

    fn on_enum(&self, column: &'static str, values: &'static [EnumValue], names: bool) -> Result<Sql, Error> {
        let subject = Sql::Column(column);
        let numeric = self.values.iter().all(|(literal, _)| literal.number().is_some());
        match self.operator {
            Operator::Match => self.patterns(&tag::enum_name(subject, values)),
            Operator::Like => self.patterns(&tag::enum_name(subject, values)),
            _ if numeric && !names => self.on_number(subject),
            Operator::Equal => {
                // A name that the enumeration has not is one that no row has: older rows and newer names must not break a dashboard.
                let wanted = self.texts_plain();
                let mut numbers: Vec<Sql> = values
                    .iter()
                    .filter(|value| wanted.iter().any(|name| name == value.name))
                    .map(|value| Sql::Integer(i128::from(value.value)))
                    .collect();
                numbers.extend(
                    wanted.iter().filter_map(|name| name.parse::<u8>().ok()).map(|n| Sql::Integer(n.into())),
                );
                Ok(if numbers.is_empty() { Sql::Integer(0) } else { self.relation(&subject, numbers) })
            }
            _ => Ok(self.relation(&tag::enum_name(subject, values), self.texts())),
        }
    }

    fn on_name(&self, column: &'static str, kind: Kind) -> Result<Sql, Error> {
        let of_kind = tag::is_kind(Sql::Column("kind"), kind);
        let condition = Sql::all(vec![of_kind, self.on_text(Sql::Column("name"))?]);
        let named = Sql::InDictionary {
            subject: Box::new(Sql::Column(column)),
            pairs: false,
            condition: Box::new(condition),
        };
        // Id 0 is no id: its name is the empty text, which the dictionary does not hold.
        self.or_empty(named, Sql::Column(column).equals(Sql::Integer(0)))
    }

    fn on_typed_name(
        &self,
        kind: &'static str,
        id: &'static str,
        address: &'static str,
    ) -> Result<Sql, Error> {
        let named = Sql::InDictionary {
            subject: Box::new(Sql::Tuple(vec![Sql::Column(kind), Sql::Column(id)])),
            pairs: true,
            condition: Box::new(self.on_text(Sql::Column("name"))?),
        };
        let mut conditions = vec![named];
        let by_address = match self.operator {
            Operator::Equal => {
                let addresses: Vec<_> = self
                    .texts_plain()
                    .iter()
                    .filter_map(|text| text.parse::<IpAddr>().ok())
                    .map(|ip| address_literal(to_v6(ip)))
                    .collect();
                (!addresses.is_empty()).then(|| self.relation(&Sql::Column(address), addresses))
            }
            _ => Some(self.on_text(tag::address_text(Sql::Column(address)))?),
        };
        if let Some(by_address) = by_address {
            conditions.push(Sql::all(vec![tag::is_kind(Sql::Column(kind), Kind::Ip), by_address]));
        }
        let internet = tag::is_kind(Sql::Column(kind), Kind::Internet);
        match self.operator {
            Operator::Equal if self.texts_plain().iter().any(|text| text == Kind::Internet.name()) => {
                conditions.push(internet);
            }
            Operator::Equal => {}
            _ => conditions.push(Sql::all(vec![internet, self.on_text(Sql::text(Kind::Internet.name()))?])),
        }
        self.or_empty(Sql::any(conditions), Sql::Column(kind).equals(Sql::Integer(0)))
    }

    /// Adds the rows without a name where the empty text stands in the relation.
    fn or_empty(&self, named: Sql, unnamed: Sql) -> Result<Sql, Error> {
        let empty = match self.operator {
            Operator::Equal => self.texts_plain().iter().any(String::is_empty).then_some(unnamed),
            _ => Some(Sql::all(vec![unnamed, self.on_text(Sql::text(""))?])),
        };
        Ok(match empty {
            Some(empty) => Sql::any(vec![named, empty]),
            None => named,
        })
    }

    fn relation(&self, subject: &Sql, mut values: Vec<Sql>) -> Sql {
        if self.operator == Operator::Equal && values.len() > 1 {
            return Sql::In(Box::new(subject.clone()), values);
        }
        let symbol = self.operator.symbol();
        Sql::any(values.drain(..).map(|value| Sql::Infix(symbol, vec![subject.clone(), value])).collect())
    }

    fn patterns(&self, subject: &Sql) -> Result<Sql, Error> {
        let mut conditions = Vec::with_capacity(self.values.len());
        for (text, (_, expr)) in self.texts_plain().into_iter().zip(self.values) {
            if text.len() > PATTERN_BYTES_MAX {
                let message =
                    format!("the pattern has {} bytes, at most {PATTERN_BYTES_MAX} are accepted", text.len());
                return Err(refuse(expr, message));
            }
            let (function, pattern) = match self.operator {
                Operator::Like => ("like", text.replace('*', "%")),
                _ => ("match", text),
            };
            conditions.push(Sql::Call(function, vec![subject.clone(), Sql::Text(pattern)]));
        }
        Ok(Sql::any(conditions))
    }

    fn texts(&self) -> Vec<Sql> {
        self.texts_plain().into_iter().map(Sql::Text).collect()
    }

    fn texts_plain(&self) -> Vec<String> {
        self.values
            .iter()
            .map(|(literal, _)| match literal {
                Literal::Text(text) => text.clone(),
                Literal::Integer(number) => number.to_string(),
                Literal::Float(number) => number.to_string(),
            })
            .collect()
    }
}

/// First and last address of an address or CIDR block, in stored form.
fn network(text: &str) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let (address, prefix) = match text.trim().split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u32>().ok()?)),
        None => (text.trim(), None),
    };
    let address: IpAddr = address.parse().ok()?;
    let width: u32 = if address.is_ipv4() { 32 } else { 128 };
    let free = width.checked_sub(prefix.unwrap_or(width))?;
    let mask = 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
    let number = u128::from(to_v6(address));
    Some((Ipv6Addr::from(number & !mask), Ipv6Addr::from(number | mask)))
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn address_literal(address: Ipv6Addr) -> Sql {
    Sql::Call("toIPv6", vec![Sql::Text(address.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_addresses_have_ends() {
        for (text, expected) in [
            ("10.1.2.3", Some(("::ffff:10.1.2.3", "::ffff:10.1.2.3"))),
            ("10.1.2.3/8", Some(("::ffff:10.0.0.0", "::ffff:10.255.255.255"))),
            ("0.0.0.0/0", Some(("::ffff:0.0.0.0", "::ffff:255.255.255.255"))),
            ("::/24", Some(("::", "0:ff:ffff:ffff:ffff:ffff:ffff:ffff"))),
            ("::/0", Some(("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))),
            ("10.0.0.0/33", None),
            ("example.org", None),
        ] {
            let ends = network(text).map(|(first, last)| (first.to_string(), last.to_string()));
            assert_eq!(ends, expected.map(|(first, last)| (first.to_owned(), last.to_owned())), "{text}");
        }
    }
}
