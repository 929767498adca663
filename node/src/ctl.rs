//! `metaflow ctl`: asks a running node over its HTTP interface and prints the answer.

mod cert;
mod client;
mod members;
mod status;
mod table;
mod top;

use std::io::{self, Write as _};

use serde_json::Value;

use crate::cli::{DEGRADED, Format, UNREACHABLE, USAGE};

pub(crate) use cert::{Bootstrap, bootstrap};
use client::Answer;
pub(crate) use client::{Access, Client};
pub(crate) use members::members;
pub(crate) use status::{agents, status};
pub(crate) use top::top;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Degraded(String),
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unreachable(_) => UNREACHABLE,
            Self::Degraded(_) => DEGRADED,
        }
    }
}

/// One statement and its answer.
pub(crate) async fn query(
    client: &Client,
    sql: &str,
    database: Option<&str>,
    format: Format,
) -> Result<(), Failure> {
    let answer = client.query(sql, database).await?;
    print(&render(&answer.columns, &answer.values, format))
}

/// An answer as text.
fn render(columns: &[String], rows: &[Vec<Value>], format: Format) -> String {
    match format {
        Format::Table => {
            let texts: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(text).collect()).collect();
            table::aligned(columns, &texts)
        }
        Format::Csv => {
            let mut out = csv_line(columns.iter().cloned());
            for row in rows {
                out.push_str(&csv_line(row.iter().map(text)));
            }
            out
        }
        Format::Json => {
            // Duplicate names would lose cells in objects: rows stay arrays beside their columns.
            let answer = serde_json::json!({ "columns": columns, "values": rows });
            format!("{answer}\n")
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// RFC 4180.
fn csv_line(cells: impl Iterator<Item = String>) -> String {
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

/// Writes to standard output; a reader that went away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Usage(format!("failed to write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_printed_in_every_format() {
        let columns = ["name".to_owned(), "requests".to_owned()];
        let rows =
            [vec![Value::from("a, \"b\""), Value::from(u64::MAX)], vec![Value::Null, Value::from(1.5)]];
        let check = |format, expected: &str| assert_eq!(render(&columns, &rows, format), expected);
        check(Format::Csv, "name,requests\r\n\"a, \"\"b\"\"\",18446744073709551615\r\n,1.5\r\n");
        check(
            Format::Json,
            "{\"columns\":[\"name\",\"requests\"],\"values\":[[\"a, \\\"b\\\"\",18446744073709551615],[null,1.5]]}\n",
        );
        check(Format::Table, "name    requests\na, \"b\"  18446744073709551615\n        1.5\n");
    }
}
