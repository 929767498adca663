//! Golden files: what a statement compiles to, or why it is refused.
//!
//! `UPDATE_GOLDEN=1 cargo nextest run -p metaflow-query` writes the files anew from the statements in them (`--> `).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fmt::Write as _, fs, path::Path};

use metaflow_query::{Compiled, Request, Value, compile};

#[test]
fn statements_compile_as_the_golden_files_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no golden files in {}", folder.display());
    let mut stale = vec![];
    for file in files {
        let golden = fs::read_to_string(&file).unwrap();
        let fresh = anew(&golden);
        if golden == fresh {
            continue;
        }
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, fresh).unwrap();
        } else {
            let line = golden.lines().zip(fresh.lines()).find(|(old, new)| old != new);
            stale.push(format!("{}: {line:?}", file.display()));
        }
    }
    assert!(stale.is_empty(), "UPDATE_GOLDEN=1 accepts: {stale:#?}");
}

/// The file with the output of every statement in it written again.
fn anew(golden: &str) -> String {
    let mut out = String::new();
    for line in golden.lines().filter_map(|line| line.strip_prefix("--> ")) {
        let separator = if out.is_empty() { "" } else { "\n" };
        writeln!(out, "{separator}--> {line}").unwrap();
        match compile(line, &Request { database: None, now_seconds: 1_700_000_000, shards: None }) {
            Ok(Compiled::Select { sql, columns, limits }) => {
                for column in columns {
                    writeln!(out, "-- {:?} {} [{}]", column.kind, column.name, column.unit).unwrap();
                }
                writeln!(out, "-- at most {} rows", limits.rows).unwrap();
                writeln!(out, "{sql};").unwrap();
            }
            Ok(Compiled::Answer { columns, rows }) => {
                let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
                writeln!(out, "-- {}", names.join(" | ")).unwrap();
                for row in rows {
                    let cells: Vec<_> = row
                        .iter()
                        .map(|value| match value {
                            Value::Integer(number) => number.to_string(),
                            Value::Text(text) => text.clone(),
                        })
                        .collect();
                    writeln!(out, "-- {}", cells.join(" | ")).unwrap();
                }
            }
            Err(error) => writeln!(out, "-- refused: {error}").unwrap(),
        }
    }
    out
}
