//! `SHOW`: what can be asked for. All but the values of open-ended tags stands in the catalogue.

use metaflow_schema::{
    catalogue::{self, Family, Tag, TagValue},
    enums::{EnumValue, Kind},
    metrics::{Metric, Source},
};
use sqlparser::ast::Expr;

use crate::{
    ColumnKind, Compiled, Error, ROWS_DEFAULT, Request, ResultColumn, Value,
    expr::check,
    filter::{self, Comparison, Operator},
    range,
    select::FUNCTIONS,
    sql::{Layer, Registry, Sql, Writer},
    statement::{Name, Show, What},
    tag::{self, Ends},
};

pub(crate) fn compile(show: &Show, request: &Request<'_>) -> Result<Compiled, Error> {
    let Show { what, filter, limit: _, offset: _ } = show;
    if let Some(filter) = filter {
        check(filter)?;
        if !matches!(what, What::TagValues { .. }) {
            return Err(crate::expr::refuse(filter, "WHERE is accepted in SHOW TAG x VALUES only"));
        }
    }
    match what {
        What::Databases => Ok(answer(show, &["name"], databases(), |name| vec![text(name)])),
        What::Tables => {
            let families = catalogue::families().iter().filter(|family| is_in(family, request.database));
            Ok(answer(show, &["name", "database", "datasources", "description"], families, |family| {
                let tables: Vec<_> = family.tables.iter().map(|table| table.name).collect();
                vec![text(family.name), text(family.database), text(&tables.join(",")), text(family.doc())]
            }))
        }
        What::Tags { table } => {
            let family = range::source(table, request)?.family;
            let columns = [
                "name",
                "client_name",
                "server_name",
                "display_name",
                "type",
                "category",
                "operators",
                "description",
            ];
            Ok(answer(show, &columns, bases(family), |tag| tag_row(family, tag)))
        }
        What::Metrics { table } => {
            let families: Vec<_> = match table {
                Some(table) => vec![range::source(table, request)?.family],
                None => {
                    catalogue::families().iter().filter(|family| is_in(family, request.database)).collect()
                }
            };
            let metrics =
                families.iter().flat_map(|family| family.metrics.iter().map(move |metric| (*family, metric)));
            let columns = ["name", "unit", "type", "table", "description"];
            Ok(answer(show, &columns, metrics, |(family, metric)| metric_row(family, metric)))
        }
        What::Functions => {
            Ok(answer(show, &["name", "arguments", "description"], FUNCTIONS.iter(), |function| {
                vec![text(function.name), text(function.arguments), text(function.doc)]
            }))
        }
        What::EnumValues => Ok(answer(
            show,
            &["tag", "value", "display_name", "description"],
            enumerations(),
            |(tag, value)| {
                vec![text(&tag), Value::Integer(value.value.into()), text(value.name), text(value.doc)]
            },
        )),
        What::TagValues { tag, table } => tag_values(show, tag, table, request),
    }
}

fn is_in(family: &Family, database: Option<&str>) -> bool {
    database
        .is_none_or(|database| database.is_empty() || database == "flow_tag" || database == family.database)
}

fn databases() -> impl Iterator<Item = &'static str> {
    let mut names: Vec<_> = catalogue::families().iter().map(|family| family.database).collect();
    names.dedup();
    names.into_iter()
}

/// One tag for each name without an end.
fn bases(family: &'static Family) -> impl Iterator<Item = &'static Tag> {
    family.tags.iter().filter(|tag| tag.side != "_1" || !family.two_sided)
}

/// Each enumeration once, under the name of the tag that first has it.
fn enumerations() -> impl Iterator<Item = (String, &'static EnumValue)> {
    let mut seen: Vec<&str> = vec![];
    let mut values = vec![];
    for tag in catalogue::families().iter().flat_map(|family| &family.tags) {
        if let TagValue::Enum { values: own, .. } = &tag.value
            && !seen.contains(&tag.base.as_str())
        {
            seen.push(&tag.base);
            values.extend(own.iter().map(|value| (tag.base.clone(), value)));
        }
    }
    values.into_iter()
}

fn tag_row(family: &Family, tag: &Tag) -> Vec<Value> {
    let (client, server) = match (tag.side, family.two_sided) {
        ("", _) => (tag.name.clone(), tag.name.clone()),
        _ => (format!("{}_0", tag.base), format!("{}_1", tag.base)),
    };
    let (kind, operators) = match &tag.value {
        TagValue::Number { .. } | TagValue::Micros { .. } | TagValue::Time => {
            ("int", "=,!=,<,<=,>,>=,in,not in")
        }
        TagValue::Enum { .. } => ("int_enum", "=,!=,in,not in,like,not like,regexp,not regexp"),
        TagValue::EnumName { .. } => ("string_enum", "=,!=,in,not in,like,not like,regexp,not regexp"),
        TagValue::Address { .. } => ("ip", "=,!=,<,<=,>,>=,in,not in,like,not like,regexp,not regexp"),
        TagValue::Name { .. } | TagValue::TypedName { .. } => {
            ("resource", "=,!=,in,not in,like,not like,regexp,not regexp")
        }
        TagValue::Internet { .. } => ("bool", "=,!="),
        TagValue::RowId => ("string", "=,!=,in,not in"),
        TagValue::Text { .. } => ("string", "=,!=,in,not in,like,not like,regexp,not regexp"),
    };
    let category = if tag.side.is_empty() && family.two_sided { "row" } else { "end" };
    vec![
        text(&tag.base),
        text(&client),
        text(&server),
        text(&tag.base),
        text(kind),
        text(category),
        text(operators),
        text(tag.doc),
    ]
}

fn metric_row(family: &Family, metric: &Metric) -> Vec<Value> {
    let kind = match metric.source {
        Source::Counter(_) | Source::Rows => "counter",
        Source::Delay { .. } | Source::SingleDelay { .. } => "delay",
        Source::Quotient { percentage: true, .. } => "percentage",
        Source::Quotient { percentage: false, .. } => "quotient",
    };
    vec![text(metric.name), text(metric.unit), text(kind), text(family.name), text(metric.doc)]
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn columns(names: &[&str]) -> Vec<ResultColumn> {
    names
        .iter()
        .map(|name| ResultColumn { name: (*name).to_owned(), unit: String::new(), kind: ColumnKind::Tag })
        .collect()
}

fn answer<T>(
    show: &Show,
    names: &[&str],
    entries: impl Iterator<Item = T>,
    row: impl FnMut(T) -> Vec<Value>,
) -> Compiled {
    let limit = show.limit.unwrap_or(ROWS_DEFAULT) as usize;
    let rows = entries.skip(show.offset as usize).take(limit).map(row).collect();
    Compiled::Answer { columns: columns(names), rows }
}

/// `SHOW TAG x VALUES`: names of a kind out of the dictionary; where the filter is about other tags, or the tag has no kind of its own,
/// the values that rows have.
fn tag_values(show: &Show, tag: &Name, table: &Name, request: &Request<'_>) -> Result<Compiled, Error> {
    let source = range::source(table, request)?;
    let Some(ends) = tag::find(source.family, &tag.text, tag.span.start)? else {
        return Err(tag::unknown(source.family, &tag.text, tag.span.start));
    };
    let found = ends.shown();
    match (&found.value, &show.filter) {
        (TagValue::Enum { values, .. } | TagValue::EnumName { values, .. }, None) => {
            return Ok(answer(show, &["value", "display_name", "description"], values.iter(), |value| {
                vec![Value::Integer(value.value.into()), text(value.name), text(value.doc)]
            }));
        }
        (TagValue::Name { kind, .. }, filter) => {
            if let Some(condition) =
                dictionary_condition(filter.as_ref(), *kind, &tag.text, request.now_seconds)?
            {
                return Ok(from_dictionary(show, condition, request));
            }
        }
        _ => {}
    }
    let scope = filter::Scope { family: source.family, items: &[], now: request.now_seconds };
    let condition = show.filter.as_ref().map(|filter| filter::condition(filter, &scope)).transpose()?;
    let range = range::bounds(show.filter.as_ref(), request.now_seconds)?;
    Ok(from_rows(show, ends, source.table(range, None, request.now_seconds), condition, request))
}

/// The filter as a condition on dictionary rows; none when it speaks of other tags.
fn dictionary_condition(
    filter: Option<&Expr>,
    kind: Kind,
    tag: &str,
    now: u32,
) -> Result<Option<Sql>, Error> {
    let of_kind = tag::is_kind(Sql::Column("kind"), kind);
    let Some(filter) = filter else { return Ok(Some(of_kind)) };
    let on_name = |operator: Operator, values: &[(crate::expr::Literal, &Expr)]| {
        Comparison { operator, values }.on_tag(&DICTIONARY_NAME, false)
    };
    let own = |expr: &Expr| crate::expr::name(expr).is_some_and(|name| name == tag || name == "display_name");
    let literal = |expr| crate::expr::constant(expr, now);
    let condition = match crate::expr::bare(filter) {
        Expr::Like { expr, pattern, negated, .. } if own(expr) => match literal(pattern)? {
            Some(value) => on_name(Operator::Like, &[(value, &**pattern)])?.negated(*negated),
            None => return Ok(None),
        },
        Expr::RLike { expr, pattern, negated, .. } if own(expr) => match literal(pattern)? {
            Some(value) => on_name(Operator::Match, &[(value, &**pattern)])?.negated(*negated),
            None => return Ok(None),
        },
        Expr::BinaryOp { left, op, right } if own(left) => {
            let negated = *op == sqlparser::ast::BinaryOperator::NotEq;
            match literal(right)? {
                Some(value) if negated || *op == sqlparser::ast::BinaryOperator::Eq => {
                    on_name(Operator::Equal, &[(value, &**right)])?.negated(negated)
                }
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(Sql::all(vec![of_kind, condition])))
}

/// The names in the dictionary's own rows.
static DICTIONARY_NAME: std::sync::LazyLock<TagValue> =
    std::sync::LazyLock::new(|| TagValue::Text { column: "name".to_owned() });

fn from_dictionary(show: &Show, condition: Sql, request: &Request<'_>) -> Compiled {
    let registry = Registry::new(request.shards);
    let mut out = Writer::new(&registry, Layer::Rows);
    // A name with several ids is listed once, with its first.
    out.raw("SELECT min(id) AS c0, name AS c1 FROM ");
    out.dictionary();
    out.raw(" WHERE ");
    out.sql(&condition);
    out.raw(" GROUP BY name ORDER BY name");
    finish(show, out)
}

/// The values that rows have, in either end where the tag is named without one.
fn from_rows(
    show: &Show,
    ends: Ends,
    table: &'static metaflow_schema::Table,
    condition: Option<Sql>,
    request: &Request<'_>,
) -> Compiled {
    let tag = ends.shown();
    let mut registry = Registry::new(request.shards);
    let keys: Vec<Sql> = tag::parts(&tag.value).into_iter().map(|part| registry.key(part)).collect();
    let shown = tag::shown_of_keys(&tag.value, &keys, &mut registry);
    let (value, display) = match &tag.value {
        TagValue::TypedName { .. } => (keys[1].clone(), shown),
        TagValue::Name { .. } | TagValue::EnumName { .. } => (keys[0].clone(), shown),
        TagValue::Enum { values, .. } => (keys[0].clone(), tag::enum_name(keys[0].clone(), values)),
        _ => (shown.clone(), Sql::Call("toString", vec![shown])),
    };
    let mut inner = Writer::new(&registry, Layer::Rows);
    let both = match ends {
        Ends::One(tag) => vec![tag],
        Ends::Either(client, server) => vec![client, server],
    };
    for (at, tag) in both.into_iter().enumerate() {
        inner.raw(if at > 0 { " UNION DISTINCT SELECT DISTINCT " } else { "SELECT DISTINCT " });
        for (number, part) in tag::parts(&tag.value).iter().enumerate() {
            inner.raw(if number > 0 { ", " } else { "" });
            inner.sql(part);
            inner.raw(" AS ");
            inner.alias('k', number);
        }
        inner.raw(" FROM ");
        inner.table(table);
        inner.raw(" WHERE ");
        inner.sql(&Sql::all(condition.iter().cloned().chain([tag::exists(&tag.value)]).collect()));
    }
    let mut out = Writer::new(&registry, Layer::Outer);
    out.raw("SELECT min(");
    out.sql(&value);
    out.raw(") AS c0, ");
    out.sql(&display);
    out.raw(" AS c1");
    out.named_groups(&inner);
    out.raw(" GROUP BY c1 ORDER BY c1");
    finish(show, out)
}

fn finish(show: &Show, mut out: Writer<'_>) -> Compiled {
    let limit = show.limit.unwrap_or(ROWS_DEFAULT);
    out.limit(limit, show.offset);
    Compiled::Select {
        sql: out.out,
        columns: columns(&["value", "display_name"]),
        limits: crate::limits(limit),
    }
}
