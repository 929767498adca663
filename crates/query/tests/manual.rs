//! The manual `docs/sql.md`: its statements compile, and it describes every function.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use metaflow_query::{Compiled, Request, Value, compile};

const MANUAL: &str = include_str!("../../../docs/sql.md");
const PROFILING: &str = include_str!("../../../docs/profiling.md");

fn compiled(statement: &str) -> Compiled {
    let request = Request { database: None, now_seconds: 1_700_000_000, shards: None };
    compile(statement, &request).unwrap_or_else(|error| panic!("{statement}\n{error}"))
}

#[test]
fn statements_of_the_manual_compile() {
    let pages = [MANUAL, PROFILING].into_iter();
    let blocks =
        pages.flat_map(|page| page.split("```sql\n").skip(1)).map(|rest| rest.split("```").next().unwrap());
    let statements: Vec<&str> = blocks.flat_map(str::lines).collect();
    assert!(statements.len() >= 5, "{statements:?}");
    for statement in statements {
        compiled(statement);
    }
}

#[test]
fn conditions_of_the_manual_compile() {
    let section = MANUAL.split("## Conditions").nth(1).unwrap().split("## Metric").next().unwrap();
    let conditions = section
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|text| text.contains(['=', '(', '>']) || text.contains(' '));
    let mut seen = 0;
    for condition in conditions {
        compiled(&format!("SELECT Count(row) FROM l7_flow_log WHERE {condition}"));
        seen += 1;
    }
    assert!(seen >= 14, "{seen} conditions");
}

#[test]
fn every_function_is_in_the_manual() {
    let Compiled::Answer { rows, .. } = compiled("SHOW METRICS FUNCTIONS") else { panic!("no answer") };
    for row in rows {
        let Some(Value::Text(name)) = row.first() else { panic!("{row:?}") };
        assert!(MANUAL.contains(&format!("`{name}(")), "{name} is not in the manual");
    }
}
