//! Tags: which columns of a row they are read from, and how they are shown.

use metaflow_schema::{
    catalogue::{Family, Lookup, ROW_ID, Tag, TagValue},
    enums::{EnumValue, Kind},
};
use sqlparser::tokenizer::Location;

use crate::{
    Error,
    error::nearest,
    sql::{Registry, Sql},
    statement::clip,
};

/// What a tag's name means: one tag, or the same of either end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ends {
    One(&'static Tag),
    Either(&'static Tag, &'static Tag),
}

impl Ends {
    /// The tag that is shown. Without an end it is the serving one, as in tables that have no other.
    pub(crate) fn shown(self) -> &'static Tag {
        match self {
            Self::One(tag) | Self::Either(_, tag) => tag,
        }
    }
}

/// Resolves a tag's name; none when it is not a tag.
pub(crate) fn find(family: &'static Family, name: &str, place: Location) -> Result<Option<Ends>, Error> {
    match family.tag(name) {
        Lookup::One(tag) => Ok(Some(Ends::One(tag))),
        Lookup::Either(client, server) => Ok(Some(Ends::Either(client, server))),
        Lookup::Unknown => Ok(None),
        Lookup::ClientOfOneSided => {
            let message =
                format!("{} has no {}: its rows describe the serving end alone", family.name, clip(name));
            Err(Error::at(place, message).hint(format!("{}_map has both ends", family.name)))
        }
    }
}

/// The error of a name that is neither tag nor metric.
pub(crate) fn unknown(family: &Family, name: &str, place: Location) -> Error {
    let names = family
        .tags
        .iter()
        .map(|tag| tag.name.as_str())
        .chain(family.metrics.iter().map(|metric| metric.name));
    let otherwise = format!("SHOW TAGS FROM {0} and SHOW METRICS FROM {0} list what it has", family.name);
    let hint = nearest(name, names, &otherwise);
    Error::at(place, format!("{} has no tag or metric {}", family.name, clip(name))).hint(hint)
}

/// What rows are grouped by for this tag.
pub(crate) fn parts(value: &'static TagValue) -> Vec<Sql> {
    match value {
        TagValue::Number { column }
        | TagValue::Text { column }
        | TagValue::Address { column }
        | TagValue::Enum { column, .. }
        | TagValue::EnumName { column, .. }
        | TagValue::Name { column, .. } => vec![Sql::Column(column)],
        // The address makes a group of its own only where it is the name.
        TagValue::TypedName { kind, id, address } => vec![
            Sql::Column(kind),
            Sql::Column(id),
            Sql::Call("if", vec![is_kind(Sql::Column(kind), Kind::Ip), Sql::Column(address), no_address()]),
        ],
        TagValue::Internet { epc } => {
            vec![Sql::Column(epc).equals(Sql::Integer(i128::from(metaflow_schema::tags::INTERNET_EPC)))]
        }
        TagValue::Time => vec![Sql::Call("toUnixTimestamp", vec![Sql::Column("time")])],
        TagValue::Micros { column } => vec![Sql::Call("toUnixTimestamp64Micro", vec![Sql::Column(column)])],
        TagValue::RowId => {
            let mut texts = Vec::with_capacity(2 * ROW_ID.len());
            for number in row_id() {
                if !texts.is_empty() {
                    texts.push(Sql::text("-"));
                }
                texts.push(Sql::Call("toString", vec![number]));
            }
            vec![Sql::Call("concat", texts)]
        }
    }
}

/// The numbers of a row's id.
pub(crate) fn row_id() -> [Sql; ROW_ID.len()] {
    ROW_ID.map(|column| match column {
        "start_time" => Sql::Call("toUnixTimestamp64Micro", vec![Sql::Column(column)]),
        _ => Sql::Column(column),
    })
}

/// How the tag is shown, given its [`parts`]; names are looked up one by one.
pub(crate) fn shown(value: &'static TagValue, parts: &[Sql]) -> Sql {
    shown_with(value, parts, |kind, id| {
        let key = Sql::Tuple(vec![Sql::Call("toUInt8", vec![kind]), Sql::Call("toUInt64", vec![id])]);
        Sql::Call("dictGet", vec![Sql::text("flow_tag.names"), Sql::text("name"), key])
    })
}

/// How the tag is shown, given its [`parts`] as keys; names are joined to the groups.
pub(crate) fn shown_of_keys(value: &'static TagValue, keys: &[Sql], registry: &mut Registry) -> Sql {
    shown_with(value, keys, |kind, id| registry.lookup(kind, id))
}

fn shown_with(value: &'static TagValue, parts: &[Sql], name: impl FnOnce(Sql, Sql) -> Sql) -> Sql {
    let part = |at: usize| parts[at].clone();
    match value {
        TagValue::Number { .. }
        | TagValue::Text { .. }
        | TagValue::Enum { .. }
        | TagValue::Internet { .. }
        | TagValue::Time
        | TagValue::Micros { .. }
        | TagValue::RowId => part(0),
        TagValue::Address { .. } => address_text(part(0)),
        TagValue::EnumName { values, .. } => enum_name(part(0), values),
        TagValue::Name { kind, .. } => name(Sql::Integer(*kind as u8 as i128), part(0)),
        TagValue::TypedName { .. } => Sql::Call(
            "multiIf",
            vec![
                is_kind(part(0), Kind::Ip),
                address_text(part(2)),
                is_kind(part(0), Kind::Internet),
                Sql::text(Kind::Internet.name()),
                name(part(0), part(1)),
            ],
        ),
    }
}

/// Names are looked up over the groups, not over the rows.
pub(crate) fn is_looked_up(value: &TagValue) -> bool {
    matches!(value, TagValue::Name { .. } | TagValue::TypedName { .. })
}

/// Whether a row has the tag at all.
pub(crate) fn exists(value: &'static TagValue) -> Sql {
    match value {
        // 0 may be a value with a name, e.g. a response status.
        TagValue::Enum { values, .. } | TagValue::EnumName { values, .. }
            if values.iter().any(|value| value.value == 0) =>
        {
            Sql::Integer(1)
        }
        TagValue::Number { column }
        | TagValue::Enum { column, .. }
        | TagValue::EnumName { column, .. }
        | TagValue::Name { column, .. } => Sql::Column(column).differs(Sql::Integer(0)),
        TagValue::Text { column } => Sql::Column(column).differs(Sql::text("")),
        TagValue::Address { column } => Sql::Column(column).differs(no_address()),
        TagValue::TypedName { kind, .. } => Sql::Column(kind).differs(Sql::Integer(0)),
        TagValue::Internet { .. } => parts(value).remove(0),
        TagValue::Time | TagValue::Micros { .. } | TagValue::RowId => Sql::Integer(1),
    }
}

/// How a value is shown, given what it is read from.
type Shown = fn(Sql) -> Sql;

/// What the kind of resource that a tag names is read from, and how it is shown; none when every row has the same kind.
pub(crate) fn node_type(value: &'static TagValue) -> Option<(Sql, Shown)> {
    match value {
        TagValue::TypedName { kind, .. } => Some((Sql::Column(kind), |kind| enum_name(kind, Kind::VALUES))),
        TagValue::Internet { .. } => Some((parts(value).remove(0), |outside| {
            let (internet, ip) = (Sql::text(Kind::Internet.name()), Sql::text(Kind::Ip.name()));
            Sql::Call("if", vec![outside, internet, ip])
        })),
        _ => None,
    }
}

pub(crate) fn is_kind(subject: Sql, kind: Kind) -> Sql {
    subject.equals(Sql::Integer(kind as u8 as i128))
}

/// An address as people write it: IPv4 is stored in its mapped form.
pub(crate) fn address_text(address: Sql) -> Sql {
    let text = Sql::Call("toString", vec![address]);
    let v4 = Sql::Call("substring", vec![text.clone(), Sql::Integer(8)]);
    let mapped = Sql::all(vec![
        Sql::Call("startsWith", vec![text.clone(), Sql::text("::ffff:")]),
        Sql::Call("isIPv4String", vec![v4.clone()]),
    ]);
    Sql::Call("if", vec![mapped, v4, text])
}

/// The name of a stored number; a number that has none is shown as it is.
pub(crate) fn enum_name(number: Sql, values: &'static [EnumValue]) -> Sql {
    let numbers = values.iter().map(|value| Sql::Integer(i128::from(value.value))).collect();
    let names = values.iter().map(|value| Sql::text(value.name)).collect();
    let otherwise = Sql::Call("toString", vec![number.clone()]);
    Sql::Call("transform", vec![number, Sql::Array(numbers), Sql::Array(names), otherwise])
}

fn no_address() -> Sql {
    Sql::Call("toIPv6", vec![Sql::text("::")])
}
