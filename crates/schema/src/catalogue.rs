//! The catalogue as queries see it: families of tables, and what may be named in them.
//!
//! A family is one name in queries (`application`) over the tables of its intervals (`application.1s`, `application.1m`). Its tags come
//! from the roles of the columns; nothing is declared a second time. Names that DeepFlow uses for the same things are aliases.

use std::{collections::HashMap, sync::LazyLock};

use crate::{
    block::{Column, Role},
    enums::{EnumValue, Kind},
    metrics::Metric,
    tables::{TABLES, Table},
};

/// One name in queries.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub database: &'static str,
    /// Finest interval first.
    pub tables: Vec<&'static Table>,
    /// A row describes client and server; else it describes the serving end alone.
    pub two_sided: bool,
    pub tags: Vec<Tag>,
    pub metrics: &'static [Metric],
    /// Columns that metrics are made from.
    amounts: Vec<String>,
    by_name: HashMap<String, usize>,
}

/// Something that rows can be filtered and grouped by.
#[derive(Debug)]
pub struct Tag {
    /// With the suffix of its end.
    pub name: String,
    /// Without it.
    pub base: String,
    /// `_0` client, `_1` server, or empty.
    pub side: &'static str,
    pub doc: &'static str,
    pub value: TagValue,
}

/// How a tag is read from a row.
#[derive(Debug, PartialEq, Eq)]
pub enum TagValue {
    Number {
        column: String,
    },
    Text {
        column: String,
    },
    Address {
        column: String,
    },
    /// The stored number.
    Enum {
        column: String,
        values: &'static [EnumValue],
    },
    /// The name of the stored number.
    EnumName {
        column: String,
        values: &'static [EnumValue],
    },
    /// The name of an id.
    Name {
        column: String,
        kind: Kind,
    },
    /// The name of an id whose kind stands beside it; for [`Kind::Ip`] it is the address.
    TypedName {
        kind: String,
        id: String,
        address: String,
    },
    /// Whether the end lies outside of all known networks.
    Internet {
        epc: String,
    },
    /// The row's time, in seconds since 1970.
    Time,
    /// A point in time, in microseconds since 1970.
    Micros {
        column: String,
    },
    /// What tells a row from all others: the numbers of [`ROW_ID`], joined by hyphens.
    RowId,
}

/// Columns that tell a request from all others.
pub const ROW_ID: [&str; 7] =
    ["start_time", "agent_id", "flow_id", "observation_point", "req_tcp_seq", "resp_tcp_seq", "request_id"];

/// What a name means in a family.
#[derive(Debug)]
pub enum Lookup<'a> {
    One(&'a Tag),
    /// Named without an end where rows have two: client, server.
    Either(&'a Tag, &'a Tag),
    /// The client end where rows have only the serving one.
    ClientOfOneSided,
    Unknown,
}

/// DeepFlow's names of families.
pub const FAMILY_ALIASES: &[(&str, &str)] = &[
    ("vtap_flow_port", "network"),
    ("vtap_flow_edge_port", "network_map"),
    ("vtap_app_port", "application"),
    ("vtap_app_edge_port", "application_map"),
];

/// Other names of tags, without the suffix of an end.
pub const TAG_ALIASES: &[(&str, &str)] = &[
    ("tap_side", "observation_point"),
    ("vtap", "agent"),
    ("vtap_id", "agent_id"),
    ("gprocess", "process"),
    ("gprocess_id", "process_id"),
    ("epc", "vpc"),
    ("epc_id", "vpc_id"),
    ("l3_epc", "vpc"),
    ("l2_epc", "l2_vpc"),
    ("l2_epc_id", "l2_vpc_id"),
    ("resource_gl0", "auto_instance"),
    ("resource_gl0_id", "auto_instance_id"),
    ("resource_gl0_type", "auto_instance_type"),
];

/// Other names of metrics: DeepFlow shows these in Chinese, and its dashboards filter on what is shown.
pub const METRIC_ALIASES: &[(&str, &str)] = &[
    ("字节", "byte"),
    ("包数", "packet"),
    ("请求", "request"),
    ("响应", "response"),
    ("异常", "error"),
    ("响应时延", "rrt"),
    ("会话长度", "session_length"),
    ("请求长度", "request_length"),
    ("响应长度", "response_length"),
    ("日志总量", "log_count"),
];

/// Every family, in the order of [`TABLES`], without the dictionary.
pub fn families() -> &'static [Family] {
    static FAMILIES: LazyLock<Vec<Family>> = LazyLock::new(|| {
        let mut families: Vec<Family> = Vec::new();
        for table in TABLES.iter().filter(|table| table.database != "flow_tag") {
            match families.iter_mut().find(|family| family.name == table.family) {
                Some(family) => family.tables.push(table),
                None => families.push(Family::new(table)),
            }
        }
        families
    });
    &FAMILIES
}

/// The family of a name or alias, without an interval.
pub fn family(name: &str) -> Option<&'static Family> {
    let name = alias(FAMILY_ALIASES, name);
    families().iter().find(|family| family.name == name)
}

impl Family {
    fn new(table: &'static Table) -> Self {
        let columns = (table.columns)();
        let two_sided = columns.iter().any(|column| column.side == "_0");
        let mut tags = Vec::with_capacity(columns.len() * 2);
        for column in &columns {
            push_tags(column, table, &mut tags);
        }
        if ROW_ID.iter().all(|part| columns.iter().any(|column| column.name == *part)) {
            let (name, doc) = ("_id".to_owned(), "the row's id; its trace can be asked for by it");
            tags.push(Tag { base: name.clone(), name, side: "", doc, value: TagValue::RowId });
        }
        let by_name = tags.iter().enumerate().map(|(at, tag)| (tag.name.clone(), at)).collect();
        let amounts =
            columns.into_iter().filter(|column| column.side.is_empty()).map(|column| column.name).collect();
        let (name, database, metrics) = (table.family, table.database, table.metrics);
        Self { name, database, tables: vec![table], two_sided, tags, metrics, amounts, by_name }
    }

    /// What `name` means.
    pub fn tag(&self, name: &str) -> Lookup<'_> {
        if let Some(tag) = self.exactly(name) {
            return Lookup::One(tag);
        }
        let (base, side) = split_side(name);
        let base = alias(TAG_ALIASES, base);
        if let Some(tag) = self.exactly(&format!("{base}{side}")) {
            return Lookup::One(tag);
        }
        if !self.two_sided {
            return match (self.exactly(base), side) {
                (Some(tag), "_1") => Lookup::One(tag),
                (Some(_), "_0") => Lookup::ClientOfOneSided,
                _ => Lookup::Unknown,
            };
        }
        match (self.exactly(&format!("{base}_0")), self.exactly(&format!("{base}_1"))) {
            (Some(client), Some(server)) if side.is_empty() => Lookup::Either(client, server),
            _ => Lookup::Unknown,
        }
    }

    /// What its rows are, whatever the interval.
    pub fn doc(&self) -> &'static str {
        let doc = self.tables[0].doc;
        doc.split_once(", by the ").map_or_else(|| doc.trim_end_matches('.'), |(doc, _)| doc)
    }

    /// The metric of a name or alias.
    pub fn metric(&self, name: &str) -> Option<&'static Metric> {
        let name = alias(METRIC_ALIASES, name);
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// The stored column of this name that metrics may be made from.
    pub fn amount(&self, name: &str) -> Option<&str> {
        self.amounts.iter().find(|amount| *amount == name).map(String::as_str)
    }

    fn exactly(&self, name: &str) -> Option<&Tag> {
        self.by_name.get(name).map(|&at| &self.tags[at])
    }
}

fn alias<'a>(aliases: &[(&str, &'static str)], name: &'a str) -> &'a str {
    aliases.iter().find(|(from, _)| *from == name).map_or(name, |(_, to)| to)
}

fn split_side(name: &str) -> (&str, &'static str) {
    if let Some(base) = name.strip_suffix("_0") {
        (base, "_0")
    } else if let Some(base) = name.strip_suffix("_1") {
        (base, "_1")
    } else {
        (name, "")
    }
}

/// The tags that a column gives.
fn push_tags(column: &Column, table: &Table, tags: &mut Vec<Tag>) {
    let (stem, side) = split_side(&column.name);
    let own = || column.name.clone();
    let mut push = |base: &str, value| {
        let (base, name) = (base.to_owned(), format!("{base}{side}"));
        tags.push(Tag { name, base, side, doc: column.doc, value });
    };
    match column.role {
        Role::Amount => {}
        // A query can ask what became of a batch.
        Role::Ledger => push(stem, TagValue::Number { column: own() }),
        Role::Time => {
            push("time", TagValue::Time);
            if table.interval.is_none() {
                push("end_time", TagValue::Micros { column: own() });
            }
        }
        Role::Plain if column.clickhouse == "String" => push(stem, TagValue::Text { column: own() }),
        Role::Plain if column.clickhouse.starts_with("DateTime64") => {
            push(stem, TagValue::Micros { column: own() });
        }
        Role::Plain => {
            push(stem, TagValue::Number { column: own() });
            if stem == "l3_epc_id" {
                push("is_internet", TagValue::Internet { epc: own() });
            }
        }
        Role::Address => push(stem, TagValue::Address { column: own() }),
        Role::Enum(values) => {
            push(stem, TagValue::Enum { column: own(), values });
            push(&format!("{stem}_str"), TagValue::EnumName { column: own(), values });
        }
        Role::Dictionary(kind) => {
            push(stem.strip_suffix("_id").unwrap_or(stem), TagValue::Name { column: own(), kind });
            push(stem, TagValue::Number { column: own() });
        }
        Role::TypedDictionary => {
            let base = stem.strip_suffix("_id").unwrap_or(stem);
            let (kind, address) = (format!("{base}_type{side}"), format!("ip{side}"));
            push(base, TagValue::TypedName { kind, id: own(), address });
            push(stem, TagValue::Number { column: own() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(family_name: &str, tag: &str) -> String {
        match family(family_name).unwrap().tag(tag) {
            Lookup::One(tag) => tag.name.clone(),
            Lookup::Either(client, server) => format!("{} or {}", client.name, server.name),
            Lookup::ClientOfOneSided => "client of one-sided".to_owned(),
            Lookup::Unknown => "unknown".to_owned(),
        }
    }

    #[test]
    fn names_resolve_by_end_and_alias() {
        for (family, tag, expected) in [
            ("application", "auto_service", "auto_service"),
            ("application", "auto_service_1", "auto_service"),
            ("application", "auto_service_0", "client of one-sided"),
            ("application", "auto_service_2", "unknown"),
            ("application_map", "auto_service", "auto_service_0 or auto_service_1"),
            ("vtap_app_edge_port", "auto_service_id_0", "auto_service_id_0"),
            ("l7_flow_log", "tap_side", "observation_point"),
            ("l7_flow_log", "gprocess_1", "process_1"),
            ("l7_flow_log", "x_request_id", "x_request_id_0 or x_request_id_1"),
            ("l7_flow_log", "is_internet_0", "is_internet_0"),
            ("network", "tap_side_0", "client of one-sided"),
            ("l7_flow_log", "request", "unknown"),
            ("l7_flow_log", "batch_seq", "batch_seq"),
        ] {
            assert_eq!(named(family, tag), expected, "{tag} in {family}");
        }
    }

    #[test]
    fn names_of_a_family_are_unique() {
        for family in families() {
            let mut names: Vec<_> = family.tags.iter().map(|tag| tag.name.as_str()).collect();
            names.extend(family.metrics.iter().map(|metric| metric.name));
            names.sort_unstable();
            let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
            assert_eq!(twice, None, "{}", family.name);
        }
    }

    #[test]
    fn aliases_lead_to_names_that_exist() {
        for (alias, name) in TAG_ALIASES {
            let known = families().iter().any(|family| !matches!(family.tag(name), Lookup::Unknown));
            assert!(known, "{alias} leads to {name}");
        }
        for (alias, name) in METRIC_ALIASES {
            assert!(families().iter().any(|family| family.metric(name).is_some()), "{alias} leads to {name}");
        }
        for (alias, name) in FAMILY_ALIASES {
            assert!(family(name).is_some(), "{alias} leads to {name}");
        }
    }
}
