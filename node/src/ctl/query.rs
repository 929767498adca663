//! `metaflow ctl query`: one statement and its answer.

use clap::Args;
use serde_json::Value;

use super::{
    Answer, Client, Failure,
    arguments::View,
    output::{Format, csv_line, document, text},
    table,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    sql: String,
    /// Database: flow_metrics, flow_log, profile, event or flow_tag; without it the table's name decides.
    #[arg(long)]
    db: Option<String>,
    #[command(flatten)]
    view: View,
}

pub(super) async fn run(client: &Client, Arguments { sql, db, view }: Arguments) -> Result<(), Failure> {
    let mut lacks = String::new();
    view.run(async |format| {
        let Answer { columns, values, lacking } = client.query(&sql, db.as_deref()).await?;
        lacks = lacking;
        render(&columns, &values, format)
    })
    .await?;
    // Half an answer must not look like a whole one to a script.
    if lacks.is_empty() { Ok(()) } else { Err(Failure::Degraded(lacks)) }
}

/// An answer as text.
fn render(columns: &[String], rows: &[Vec<Value>], format: Format) -> Result<String, Failure> {
    match format {
        Format::Table | Format::Wide => {
            let texts: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(text).collect()).collect();
            Ok(table::aligned(columns, &texts))
        }
        Format::Csv => {
            let mut out = csv_line(columns.iter().cloned());
            for row in rows {
                out.push_str(&csv_line(row.iter().map(text)));
            }
            Ok(out)
        }
        // Duplicate names would lose cells in objects: rows stay arrays beside their columns. One line, since answers may be long.
        Format::Json => Ok(format!("{}\n", serde_json::json!({ "columns": columns, "values": rows }))),
        Format::Yaml => document(&serde_json::json!({ "columns": columns, "values": rows }), format),
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
        let check = |format, expected: &str| assert_eq!(render(&columns, &rows, format).unwrap(), expected);
        check(Format::Csv, "name,requests\r\n\"a, \"\"b\"\"\",18446744073709551615\r\n,1.5\r\n");
        check(
            Format::Json,
            "{\"columns\":[\"name\",\"requests\"],\"values\":[[\"a, \\\"b\\\"\",18446744073709551615],[null,1.5]]}\n",
        );
        check(Format::Table, "name    requests\na, \"b\"  18446744073709551615\n        1.5\n");
    }
}
