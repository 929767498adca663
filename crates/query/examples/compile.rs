//! Compiles each line of standard input and prints what comes out: for looking at translations by hand.

use std::io::Read as _;

use metaflow_query::{Compiled, Request, compile};

fn main() -> std::io::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let compiled = compile(line, &Request { database: None, now_seconds: 1_700_000_000, shards: None });
        out.push_str(&match compiled {
            Ok(Compiled::Select { sql, .. }) => format!("-- {line}\n{sql};\n"),
            Ok(Compiled::Answer { rows, .. }) => {
                format!("-- {line}\n-- {} rows from the catalogue\n", rows.len())
            }
            Err(error) => format!("-- {line}\n-- refused: {error}\n"),
        });
    }
    std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes())
}
