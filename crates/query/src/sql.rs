//! Our own small tree of ClickHouse SQL, and its rendering.
//!
//! Names of functions, operators and columns are `&'static str`: from this source or from the catalogue, never from a user. A user's text
//! can stand in [`Sql::Text`] alone, which is escaped.

use std::fmt::Write as _;

use metaflow_schema::{Table, enums::RESOURCE_KINDS_END, tables::DICTIONARY};

use crate::Shards;

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Sql {
    /// A column of the catalogue.
    Column(&'static str),
    /// An expression that the catalogue declares under a column's name.
    Computed(&'static str),
    /// A key that rows are grouped by, by its number in [`Registry`].
    Key(usize),
    /// An aggregate, by its number in [`Registry`].
    Aggregate(usize),
    /// The name of an id of a kind, joined to the groups from the dictionary; made by [`Registry::lookup`].
    Lookup {
        kind: Box<Sql>,
        id: Box<Sql>,
    },
    /// A variable of a lambda.
    Variable(&'static str),
    Text(String),
    Integer(i128),
    Float(f64),
    Call(&'static str, Vec<Sql>),
    /// Operands joined by one operator.
    Infix(&'static str, Vec<Sql>),
    Not(Box<Sql>),
    In(Box<Sql>, Vec<Sql>),
    /// `subject IN (SELECT ... FROM flow_tag.dictionary WHERE condition)`: ids, or pairs of kind and id. A store whose rows are filtered
    /// asks its own dictionary.
    InDictionary {
        subject: Box<Sql>,
        pairs: bool,
        condition: Box<Sql>,
    },
    Tuple(Vec<Sql>),
    Array(Vec<Sql>),
    Lambda(&'static [&'static str], Box<Sql>),
}

/// An aggregate function over rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Aggregate {
    pub(crate) function: &'static str,
    /// Combinators behind the function: `If`, `OrNullIf`.
    pub(crate) combinators: &'static str,
    pub(crate) parameters: Vec<Sql>,
    pub(crate) arguments: Vec<Sql>,
}

/// Keys, aggregates and names that the expressions of one statement share.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) keys: Vec<Sql>,
    pub(crate) aggregates: Vec<Aggregate>,
    lookups: Vec<(Sql, Sql)>,
    /// Where tables are read.
    shards: Option<Shards>,
}

impl Registry {
    pub(crate) fn new(shards: Option<&Shards>) -> Self {
        Self { shards: shards.cloned(), ..Self::default() }
    }

    pub(crate) fn key(&mut self, expression: Sql) -> Sql {
        Sql::Key(position(&mut self.keys, expression))
    }

    /// The name of `id` of `kind`, which are keys or constants.
    pub(crate) fn lookup(&mut self, kind: Sql, id: Sql) -> Sql {
        position(&mut self.lookups, (kind.clone(), id.clone()));
        Sql::Lookup { kind: Box::new(kind), id: Box::new(id) }
    }

    pub(crate) fn aggregate(&mut self, aggregate: Aggregate) -> Sql {
        Sql::Aggregate(position(&mut self.aggregates, aggregate))
    }
}

fn position<T: PartialEq>(entries: &mut Vec<T>, entry: T) -> usize {
    entries.iter().position(|known| *known == entry).unwrap_or_else(|| {
        entries.push(entry);
        entries.len() - 1
    })
}

/// Columns of the dictionary for these kinds and ids.
pub(crate) fn names(columns: [&'static str; 3], ids: &[(u8, u64)], shards: Option<&Shards>) -> String {
    let registry = Registry::new(shards);
    let mut writer = Writer::new(&registry, Layer::Rows);
    writer.raw("SELECT ");
    writer.list(&columns.map(Sql::Column));
    writer.raw(" FROM ");
    writer.dictionary();
    writer.raw(" WHERE ");
    let pair = |(kind, id): &(u8, u64)| {
        Sql::Tuple(vec![Sql::Integer(i128::from(*kind)), Sql::Integer(i128::from(*id))])
    };
    let subject = Sql::Tuple(vec![Sql::Column("kind"), Sql::Column("id")]);
    writer.sql(&Sql::In(Box::new(subject), ids.iter().map(pair).collect()));
    writer.out
}

/// How keys and aggregates are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// Over the rows of a table.
    Rows,
    /// Over a subquery that names keys `k0` and partial aggregates `a0`.
    Outer,
}

impl Sql {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(crate) fn equals(self, other: Self) -> Self {
        Self::Infix("=", vec![self, other])
    }

    pub(crate) fn differs(self, other: Self) -> Self {
        Self::Infix("!=", vec![self, other])
    }

    /// `self / other`, null where `other` is 0.
    pub(crate) fn divided_by(self, other: Self) -> Self {
        let never_zero = match other {
            Self::Integer(number) => number != 0,
            Self::Float(number) => number != 0.0,
            _ => false,
        };
        if never_zero {
            return Self::Infix("/", vec![self, other]);
        }
        Self::Infix("/", vec![self, Self::Call("nullIf", vec![other, Self::Integer(0)])])
    }

    pub(crate) fn element(self, number: i128) -> Self {
        Self::Call("tupleElement", vec![self, Self::Integer(number)])
    }

    /// All operands; none is true.
    pub(crate) fn all(mut operands: Vec<Self>) -> Self {
        match operands.len() {
            0 => Self::Integer(1),
            1 => operands.remove(0),
            _ => Self::Infix("AND", operands),
        }
    }

    /// Any operand; none is false.
    pub(crate) fn any(mut operands: Vec<Self>) -> Self {
        match operands.len() {
            0 => Self::Integer(0),
            1 => operands.remove(0),
            _ => Self::Infix("OR", operands),
        }
    }

    pub(crate) fn negated(self, negated: bool) -> Self {
        if negated { Self::Not(Box::new(self)) } else { self }
    }

    /// The keys in it.
    pub(crate) fn keys(&self) -> Vec<Self> {
        let mut keys = vec![];
        self.walk(&mut |part| {
            if matches!(part, Self::Key(_)) && !keys.contains(part) {
                keys.push(part.clone());
            }
        });
        keys
    }

    pub(crate) fn has_aggregate(&self) -> bool {
        let mut found = false;
        self.walk(&mut |part| found |= matches!(part, Self::Aggregate(_)));
        found
    }

    /// Calls `visit` on this and everything under it.
    pub(crate) fn walk(&self, visit: &mut impl FnMut(&Self)) {
        visit(self);
        match self {
            Self::Call(_, parts) | Self::Infix(_, parts) | Self::Tuple(parts) | Self::Array(parts) => {
                parts.iter().for_each(|part| part.walk(visit));
            }
            Self::Lookup { kind, id } => {
                kind.walk(visit);
                id.walk(visit);
            }
            Self::Not(inner) | Self::Lambda(_, inner) => inner.walk(visit),
            Self::In(subject, list) => {
                subject.walk(visit);
                list.iter().for_each(|part| part.walk(visit));
            }
            Self::InDictionary { subject, .. } => subject.walk(visit),
            Self::Column(_)
            | Self::Computed(_)
            | Self::Key(_)
            | Self::Aggregate(_)
            | Self::Variable(_)
            | Self::Text(_)
            | Self::Integer(_)
            | Self::Float(_) => {}
        }
    }
}

/// Writes SQL.
pub(crate) struct Writer<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) layer: Layer,
    pub(crate) out: String,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(registry: &'a Registry, layer: Layer) -> Self {
        Self { registry, layer, out: String::with_capacity(1024) }
    }

    pub(crate) fn raw(&mut self, text: &'static str) {
        self.out.push_str(text);
    }

    /// `k0`, `a1`, `c2`.
    pub(crate) fn alias(&mut self, prefix: char, number: usize) {
        write!(self.out, "{prefix}{number}").expect("writing to a string does not fail");
    }

    pub(crate) fn number(&mut self, number: impl std::fmt::Display) {
        write!(self.out, "{number}").expect("writing to a string does not fail");
    }

    /// A table where its rows are: here, or in all stores.
    pub(crate) fn table(&mut self, table: &'static Table) {
        if self.registry.shards.is_some() {
            return self.remote(table);
        }
        self.raw(table.database);
        self.raw(".`");
        self.raw(table.name);
        self.raw("`");
    }

    /// The names of all rows; where there are several stores, a name may come from each.
    pub(crate) fn dictionary(&mut self) {
        if self.registry.shards.is_some() {
            return self.remote(&DICTIONARY);
        }
        self.raw("flow_tag.dictionary");
    }

    fn remote(&mut self, table: &'static Table) {
        let Some(shards) = &self.registry.shards else { return };
        let [addresses, user, password] = shards.parts();
        self.raw("remote(");
        for (at, part) in [addresses, table.database, table.name, user, password].into_iter().enumerate() {
            self.raw(if at > 0 { ", " } else { "" });
            self.literal(part);
        }
        self.raw(")");
    }

    pub(crate) fn list(&mut self, parts: &[Sql]) {
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                self.raw(", ");
            }
            self.sql(part);
        }
    }

    pub(crate) fn sql(&mut self, sql: &Sql) {
        match sql {
            Sql::Column(name) | Sql::Variable(name) => self.raw(name),
            Sql::Computed(expression) => {
                self.raw("(");
                self.raw(expression);
                self.raw(")");
            }
            Sql::Key(number) => match self.layer {
                Layer::Outer => self.alias('k', *number),
                Layer::Rows => self.sql(&self.registry.keys[*number]),
            },
            Sql::Aggregate(number) => self.aggregate(*number),
            Sql::Lookup { kind, id } => self.lookup(kind, id),
            Sql::Text(text) => self.literal(text),
            Sql::Integer(number) => self.number(number),
            // `{:?}` keeps the point or exponent, so that the engine reads a float again.
            Sql::Float(number) => self.number(format_args!("{number:?}")),
            Sql::Call(function, arguments) => {
                self.raw(function);
                self.bracketed("(", arguments, ")");
            }
            Sql::Infix(operator, operands) => self.infix(operator, operands),
            Sql::Not(inner) if matches!(**inner, Sql::Infix(..)) => {
                self.raw("NOT ");
                self.sql(inner);
            }
            Sql::Not(inner) => {
                self.raw("NOT (");
                self.sql(inner);
                self.raw(")");
            }
            Sql::In(subject, list) => {
                self.sql(subject);
                self.bracketed(" IN (", list, ")");
            }
            Sql::InDictionary { subject, pairs, condition } => {
                self.sql(subject);
                self.raw(if *pairs { " IN (SELECT kind, id" } else { " IN (SELECT id" });
                self.raw(" FROM flow_tag.dictionary WHERE ");
                self.sql(condition);
                self.raw(")");
            }
            Sql::Tuple(parts) => self.bracketed("(", parts, ")"),
            Sql::Array(parts) => self.bracketed("[", parts, "]"),
            Sql::Lambda(variables, body) => {
                self.raw("(");
                for (at, variable) in variables.iter().enumerate() {
                    self.raw(if at > 0 { ", " } else { "" });
                    self.raw(variable);
                }
                self.raw(") -> ");
                self.sql(body);
            }
        }
    }

    /// `FROM` a subquery of groups, with the names that are looked up for them as `n0`, `n1`.
    ///
    /// Each is a join with the dictionary's rows of the kind: the groups are held, the dictionary streams past them. `dictGet` on a
    /// dictionary that reads the table costs 30-150 us a group (measured: 16 s for 200,000 groups, this 1 s), and layouts that are kept
    /// in memory are stale between reloads.
    pub(crate) fn named_groups(&mut self, groups: &Writer<'_>) {
        let registry = self.registry;
        self.raw(" FROM ");
        for (at, (kind, _)) in registry.lookups.iter().enumerate().rev() {
            self.raw("(SELECT g.*, n.name AS ");
            self.alias('n', at);
            self.raw(" FROM (SELECT kind, id, name FROM ");
            self.dictionary();
            self.raw(" WHERE kind ");
            match kind {
                Sql::Integer(kind) => {
                    self.raw("= ");
                    self.number(kind);
                }
                _ => {
                    self.raw("< ");
                    self.number(RESOURCE_KINDS_END);
                }
            }
            self.raw(") AS n RIGHT ANY JOIN ");
        }
        self.raw("(");
        self.out.push_str(&groups.out);
        self.raw(")");
        for (kind, id) in &registry.lookups {
            self.raw(" AS g ON ");
            if let Sql::Key(kind) = kind {
                self.raw("n.kind = g.");
                self.alias('k', *kind);
                self.raw(" AND ");
            }
            self.raw("n.id = g.");
            if let Sql::Key(id) = id {
                self.alias('k', *id);
            }
            self.raw(")");
        }
    }

    fn lookup(&mut self, kind: &Sql, id: &Sql) {
        let known =
            self.registry.lookups.iter().position(|(own_kind, own_id)| own_kind == kind && own_id == id);
        match known {
            Some(at) => self.alias('n', at),
            None => self.raw("''"),
        }
    }

    /// An aggregate as the subquery computes it for the outer query to merge: a sum, a maximum, or an intermediate state.
    pub(crate) fn partial(&mut self, number: usize) {
        let aggregate = &self.registry.aggregates[number];
        let suffix = if merged_plainly(aggregate).is_some() { "" } else { "State" };
        self.aggregate_call(aggregate, suffix);
    }

    fn aggregate(&mut self, number: usize) {
        let aggregate = &self.registry.aggregates[number];
        if self.layer == Layer::Rows {
            return self.aggregate_call(aggregate, "");
        }
        match merged_plainly(aggregate) {
            Some(function) => self.raw(function),
            None => {
                self.raw(aggregate.function);
                self.raw(aggregate.combinators);
                self.raw("Merge");
                if !aggregate.parameters.is_empty() {
                    self.bracketed("(", &aggregate.parameters, ")");
                }
            }
        }
        self.raw("(");
        self.alias('a', number);
        self.raw(")");
    }

    fn aggregate_call(&mut self, aggregate: &Aggregate, suffix: &'static str) {
        self.raw(aggregate.function);
        self.raw(aggregate.combinators);
        self.raw(suffix);
        if !aggregate.parameters.is_empty() {
            self.bracketed("(", &aggregate.parameters, ")");
        }
        self.bracketed("(", &aggregate.arguments, ")");
    }

    fn infix(&mut self, operator: &'static str, operands: &[Sql]) {
        self.raw("(");
        for (at, operand) in operands.iter().enumerate() {
            if at > 0 {
                self.raw(" ");
                self.raw(operator);
                self.raw(" ");
            }
            self.sql(operand);
        }
        self.raw(")");
    }

    fn bracketed(&mut self, open: &'static str, parts: &[Sql], close: &'static str) {
        self.raw(open);
        self.list(parts);
        self.raw(close);
    }

    /// A string literal. `?` is escaped too: clients put bound values where they see one.
    fn literal(&mut self, text: &str) {
        self.out.push('\'');
        for letter in text.chars() {
            match letter {
                '\\' => self.out.push_str("\\\\"),
                '\'' => self.out.push_str("\\'"),
                '?' => self.out.push_str("\\x3F"),
                '\0' => self.out.push_str("\\0"),
                letter => self.out.push(letter),
            }
        }
        self.out.push('\'');
    }
}

/// The function that joins partial results of `aggregate` without an intermediate state.
fn merged_plainly(aggregate: &Aggregate) -> Option<&'static str> {
    match aggregate.function {
        "sum" | "count" => Some("sum"),
        "max" => Some("max"),
        "min" => Some("min"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_cannot_end_early() {
        let registry = Registry::default();
        let mut writer = Writer::new(&registry, Layer::Rows);
        writer.sql(&Sql::text("a'b\\'c?\0d"));
        assert_eq!(writer.out, r"'a\'b\\\'c\x3F\0d'");
    }
}
