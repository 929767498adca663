//! The reference page: tables, tags, metrics and enumerations as text, out of the catalogue.

use std::fmt::Write as _;

use crate::{
    Role, Table,
    catalogue::{FAMILY_ALIASES, Family, TAG_ALIASES, Tag, TagValue, families},
    metrics::Source,
    tables::TABLES,
};

/// The whole page, in Markdown.
pub fn page() -> String {
    let mut out = String::from(
        "# Reference: tables, tags, metrics\n\n\
         Made from the catalogue (`crates/schema`) by `UPDATE_GOLDEN=1 cargo nextest run -p metaflow-schema`; do not edit it. How they are \
         queried: [sql.md](sql.md).\n\n",
    );
    tables(&mut out);
    for family in families() {
        section(family, &mut out);
    }
    enumerations(&mut out);
    columns(&mut out);
    out
}

fn row(out: &mut String, cells: &[&str]) {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    line(out, format_args!("| {} |", cells.join(" | ")));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string does not fail");
}

fn tables(out: &mut String) {
    line(out, format_args!("## Tables\n"));
    row(out, &["name", "database", "also", "intervals", "kept for", "what"]);
    row(out, &["---"; 6]);
    for family in families() {
        let also: Vec<_> = aliases(FAMILY_ALIASES, family.name);
        let intervals: Vec<_> = family
            .tables
            .iter()
            .map(|table| table.interval.map_or_else(|| "each".to_owned(), |seconds| format!("{seconds} s")))
            .collect();
        let kept: Vec<_> = family
            .tables
            .iter()
            .map(|table| table.ttl_days.map_or_else(|| "ever".to_owned(), |days| format!("{days} d")))
            .collect();
        let doc = family.doc();
        let name = format!("`{}`", family.name);
        row(out, &[&name, family.database, &also.join(", "), &intervals.join(", "), &kept.join(", "), doc]);
    }
    line(out, format_args!(""));
}

fn aliases(list: &[(&'static str, &'static str)], name: &str) -> Vec<String> {
    list.iter().filter(|(_, to)| *to == name).map(|(from, _)| format!("`{from}`")).collect()
}

fn section(family: &Family, out: &mut String) {
    line(out, format_args!("## {}\n", family.name));
    line(out, format_args!("Metrics:\n"));
    row(out, &["metric", "unit", "kind", "what"]);
    row(out, &["---"; 4]);
    for metric in family.metrics {
        row(out, &[&format!("`{}`", metric.name), metric.unit, kind_of(metric.source), metric.doc]);
    }
    let ends = if family.two_sided {
        "`_0` is the client, `_1` the server."
    } else {
        "They describe the serving end; `_1` may be added."
    };
    line(out, format_args!("\nTags of an end. {ends}\n"));
    tag_rows(
        out,
        family
            .tags
            .iter()
            .filter(|tag| tag.side == if family.two_sided { "_1" } else { "" } && is_of_end(tag, family)),
    );
    line(out, format_args!("\nTags of the row:\n"));
    tag_rows(out, family.tags.iter().filter(|tag| tag.side.is_empty() && !is_of_end(tag, family)));
    line(out, format_args!(""));
}

/// One-sided tables have no suffix that tells the tags of an end from those of the row; the tag block does.
fn is_of_end(tag: &Tag, family: &Family) -> bool {
    if family.two_sided {
        return !tag.side.is_empty();
    }
    let mut block = vec![];
    <crate::tags::Tags as crate::Group>::columns("", &mut block);
    column_of(tag).is_some_and(|column| block.iter().any(|known| known.name == column))
}

fn column_of(tag: &Tag) -> Option<&str> {
    match &tag.value {
        TagValue::Number { column }
        | TagValue::Text { column }
        | TagValue::Address { column }
        | TagValue::Enum { column, .. }
        | TagValue::EnumName { column, .. }
        | TagValue::Name { column, .. }
        | TagValue::Micros { column } => Some(column),
        TagValue::TypedName { id, .. } => Some(id),
        TagValue::Internet { epc } => Some(epc),
        TagValue::Time | TagValue::RowId => None,
    }
}

fn tag_rows<'a>(out: &mut String, tags: impl Iterator<Item = &'a Tag>) {
    row(out, &["tag", "also", "shown as", "what"]);
    row(out, &["---"; 4]);
    for tag in tags {
        let shown = match &tag.value {
            TagValue::Number { .. } => "number",
            TagValue::Text { .. } | TagValue::RowId => "text",
            TagValue::Address { .. } => "address",
            TagValue::Enum { .. } => "number; `Enum()` names it",
            TagValue::EnumName { .. } | TagValue::Name { .. } | TagValue::TypedName { .. } => "name",
            TagValue::Internet { .. } => "0 or 1",
            TagValue::Time => "seconds since 1970",
            TagValue::Micros { .. } => "microseconds since 1970",
        };
        row(out, &[&format!("`{}`", tag.base), &aliases(TAG_ALIASES, &tag.base).join(", "), shown, tag.doc]);
    }
}

fn kind_of(source: Source) -> &'static str {
    match source {
        Source::Counter(_) | Source::Rows => "amount",
        Source::Delay { .. } | Source::SingleDelay { .. } => "delay",
        Source::Quotient { percentage: true, .. } => "share, 0 to 1",
        Source::Quotient { percentage: false, .. } => "quotient",
    }
}

fn enumerations(out: &mut String) {
    line(out, format_args!("## Enumerations\n"));
    row(out, &["tag", "number", "name", "what"]);
    row(out, &["---"; 4]);
    let mut seen: Vec<&str> = vec![];
    for tag in families().iter().flat_map(|family| &family.tags) {
        let TagValue::Enum { values, .. } = &tag.value else { continue };
        if seen.contains(&tag.base.as_str()) {
            continue;
        }
        seen.push(&tag.base);
        for value in *values {
            row(out, &[&format!("`{}`", tag.base), &value.value.to_string(), value.name, value.doc]);
        }
    }
    line(out, format_args!(""));
}

fn columns(out: &mut String) {
    line(out, format_args!("## Stored columns\n"));
    line(
        out,
        format_args!(
            "Tables of other intervals have the same columns. Columns of the client (`_0`) are those of the server (`_1`).\n"
        ),
    );
    let mut seen: Vec<&str> = vec![];
    for table in TABLES {
        if seen.contains(&table.family) {
            continue;
        }
        seen.push(table.family);
        table_columns(table, out);
    }
}

fn table_columns(table: &Table, out: &mut String) {
    line(out, format_args!("### {}.{}\n", table.database, table.family));
    row(out, &["column", "type", "codec", "role", "what"]);
    row(out, &["---"; 5]);
    for column in (table.columns)().iter().filter(|column| column.side != "_0") {
        let role = match column.role {
            Role::Time => "time".to_owned(),
            Role::Plain => "value".to_owned(),
            Role::Address => "address".to_owned(),
            Role::Enum(_) => "enumeration".to_owned(),
            Role::Dictionary(kind) => format!("id of {}", kind.name()),
            Role::TypedDictionary => "id with kind".to_owned(),
            Role::Amount => "amount".to_owned(),
            Role::Ledger => "ledger".to_owned(),
        };
        row(out, &[&format!("`{}`", column.name), column.clickhouse, column.codec, &role, column.doc]);
    }
    line(out, format_args!(""));
}
