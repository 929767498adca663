//! How objects are printed: tables with the columns that matter, wide ones with more, JSON and YAML with everything, CSV.
//!
//! An object is what a node answers, as JSON. Columns name fields of it; what a node of another release does not tell stays empty.

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::{Failure, table};
use crate::config::Size;

/// What a node tells about one thing.
pub(super) type Object = Map<String, Value>;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Wide,
    Json,
    Yaml,
    Csv,
}

/// A column of a table of objects.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    header: &'static str,
    /// A field's name; a dot leads into an object in it.
    field: &'static str,
    unit: Unit,
    wide: bool,
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    Plain,
    Whole,
    Bytes,
    Seconds,
    Milliseconds,
}

/// A column that shows a field as it is.
pub(super) const fn column(header: &'static str, field: &'static str) -> Column {
    Column { header, field, unit: Unit::Plain, wide: false }
}

impl Column {
    /// Only with `-o wide`.
    pub(super) const fn wide(self) -> Self {
        Self { wide: true, ..self }
    }

    /// A figure without its fraction.
    pub(super) const fn whole(self) -> Self {
        Self { unit: Unit::Whole, ..self }
    }

    pub(super) const fn bytes(self) -> Self {
        Self { unit: Unit::Bytes, ..self }
    }

    pub(super) const fn seconds(self) -> Self {
        Self { unit: Unit::Seconds, ..self }
    }

    pub(super) const fn milliseconds(self) -> Self {
        Self { unit: Unit::Milliseconds, ..self }
    }

    fn cell(&self, object: &Object) -> String {
        let value = field(object, self.field);
        match (self.unit, value.and_then(Value::as_f64)) {
            (Unit::Whole, Some(number)) => format!("{number:.0}"),
            (Unit::Bytes, Some(bytes)) => Size(bytes as u64).to_string(),
            (Unit::Seconds, Some(seconds)) => duration(seconds),
            (Unit::Milliseconds, Some(milliseconds)) => format!("{milliseconds} ms"),
            _ => value.map_or_else(String::new, text),
        }
    }
}

/// Many things of one kind: a line each.
pub(super) fn list(objects: &[Object], columns: &[Column], format: Format) -> Result<String, Failure> {
    match format {
        Format::Table | Format::Wide => Ok(short(objects, columns, format)),
        Format::Csv => Ok(csv(objects)),
        Format::Json | Format::Yaml => document(&objects, format),
    }
}

/// The lines of a table, also as part of a larger text.
pub(super) fn short(objects: &[Object], columns: &[Column], format: Format) -> String {
    let columns: Vec<_> = columns.iter().filter(|column| !column.wide || format == Format::Wide).collect();
    let header: Vec<&str> = columns.iter().map(|column| column.header).collect();
    let row = |object| columns.iter().map(|column| column.cell(object)).collect();
    let rows: Vec<Vec<String>> = objects.iter().map(row).collect();
    table::aligned(&header, &rows)
}

/// One thing: a line a field.
pub(super) fn one(object: &Object, format: Format) -> Result<String, Failure> {
    match format {
        Format::Table | Format::Wide => Ok(fields(object)),
        Format::Csv => Ok(csv(std::slice::from_ref(object))),
        Format::Json | Format::Yaml => document(object, format),
    }
}

/// A line a field, also as part of a larger text.
pub(super) fn fields(object: &Object) -> String {
    let mut rows = Vec::new();
    flatten("", object, &mut rows);
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name, value]).collect();
    table::aligned(&["FIELD", "VALUE"], &rows)
}

/// Everything, for programs. `data` is printed as it is; other formats than JSON and YAML are the caller's.
pub(super) fn document(data: &impl serde::Serialize, format: Format) -> Result<String, Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::Degraded(format!("the answer cannot be printed: {error}"));
    if format == Format::Yaml {
        // A document of a stream, so that what is watched can be read too.
        let text = serde_saphyr::to_string(data).map_err(|error| failed(&error))?;
        return Ok(format!("---\n{}\n", text.trim_end()));
    }
    let text = serde_json::to_string_pretty(data).map_err(|error| failed(&error))?;
    Ok(text + "\n")
}

/// A value in a cell.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) if !values.iter().any(Value::is_object) => {
            values.iter().map(text).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// A line of CSV (RFC 4180).
pub(super) fn csv_line(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells
        .map(|cell| {
            if cell.contains(['"', ',', '\n', '\r']) {
                format!("\"{}\"", cell.replace('"', "\"\""))
            } else {
                cell
            }
        })
        .collect();
    cells.join(",") + "\r\n"
}

fn field<'a>(object: &'a Object, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => object.get(path),
        Some((first, rest)) => field(object.get(first)?.as_object()?, rest),
    }
}

/// All fields that any of the objects has, in the order in which they come.
fn csv(objects: &[Object]) -> String {
    let rows: Vec<Vec<(String, String)>> = objects
        .iter()
        .map(|object| {
            let mut row = Vec::new();
            flatten("", object, &mut row);
            row
        })
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut out = csv_line(names.iter().map(|name| (*name).to_owned()));
    for row in &rows {
        let cell = |name: &&str| {
            row.iter().find(|(own, _)| own == name).map_or_else(String::new, |(_, cell)| cell.clone())
        };
        out.push_str(&csv_line(names.iter().map(cell)));
    }
    out
}

/// Objects in an object become fields with a dot.
fn flatten(prefix: &str, object: &Object, out: &mut Vec<(String, String)>) {
    for (name, value) in object {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Object(inner) if !inner.is_empty() => flatten(&name, inner, out),
            value => out.push((name, text(value))),
        }
    }
}

/// As one reads it at a glance: the two largest units.
fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match () {
        () if seconds < 10.0 && seconds.fract() != 0.0 => format!("{seconds:.1}s"),
        () if whole < 60 => format!("{whole}s"),
        () if whole < 3600 => format!("{minutes}m{}s", whole % 60),
        () if whole < 86_400 => format!("{hours}h{minutes}m"),
        () => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] = [
        column("NODE", "node_id"),
        column("WAL", "load.wal_bytes").bytes(),
        column("UP", "up").seconds(),
        column("NAMES", "names").wide(),
    ];

    fn objects() -> Vec<Object> {
        let text = r#"[{"node_id":1,"load":{"wal_bytes":1536},"up":90061,"names":["a","b"]},{"node_id":2,"note":"yes, \"no\""}]"#;
        serde_json::from_str(text).unwrap()
    }

    fn check(format: Format, expected: &str) {
        assert_eq!(list(&objects(), &COLUMNS, format).unwrap(), expected);
    }

    #[test]
    fn lists_have_columns_or_everything() {
        check(Format::Table, "NODE  WAL      UP\n1     1.5 KiB  1d1h\n2\n");
        check(Format::Wide, "NODE  WAL      UP    NAMES\n1     1.5 KiB  1d1h  a,b\n2\n");
        check(
            Format::Csv,
            "load.wal_bytes,names,node_id,up,note\r\n1536,\"a,b\",1,90061,\r\n,,2,,\"yes, \"\"no\"\"\"\r\n",
        );
        let json = list(&objects(), &COLUMNS, Format::Json).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Object>>(&json).unwrap(), objects());
        check(
            Format::Yaml,
            "---\n- load:\n    wal_bytes: 1536\n  names:\n  - a\n  - b\n  node_id: 1\n  up: 90061\n- node_id: 2\n  note: yes, \"no\"\n",
        );
        assert_eq!(list(&[], &COLUMNS, Format::Json).unwrap(), "[]\n");
    }

    #[test]
    fn one_thing_is_a_line_a_field() {
        let table = one(&objects()[0], Format::Table).unwrap();
        assert!(table.contains("load.wal_bytes  1536\n"), "{table}");
        assert!(one(&objects()[1], Format::Json).unwrap().contains("\"node_id\": 2"));
    }

    #[test]
    fn yaml_does_not_take_text_for_something_else() {
        for text in [
            "yes",
            "null",
            "1",
            "1e3",
            "~",
            "- a",
            "a: b",
            "#",
            "",
            " x",
            "2026-01-01",
            "multi\nline\n",
            "\u{1b}[2J",
        ] {
            let yaml = document(&serde_json::json!({ "a": text }), Format::Yaml).unwrap();
            assert!(!yaml.contains('\u{1b}') && yaml.starts_with("---\na: "), "{text:?}: {yaml}");
            let plain = format!("---\na: {text}\n");
            assert_ne!(yaml, plain, "{text:?} would not be read as text");
        }
    }

    #[test]
    fn durations_show_two_units() {
        let cases =
            [(0.0, "0s"), (1.5, "1.5s"), (59.9, "59s"), (61.0, "1m1s"), (7260.0, "2h1m"), (90_000.0, "1d1h")];
        for (seconds, expected) in cases {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }
}
