//! `metaflow ctl member reachability`.

use serde_json::Value;

use crate::ctl::{
    Client, Failure,
    arguments::Shown,
    output::{Format, Object, csv_line, document, text},
    table,
};

/// An error in a cell would push the others off the screen: the whole text follows below the table.
const CELL_ERROR: &str = "no";

pub(super) async fn ask(client: &Client, format: Format) -> Result<Shown, Failure> {
    let rows: Vec<Object> = client.get("/v1/cluster/reachability").await?;
    let (cells, troubles) = matrix(&rows);
    let text = match format {
        Format::Json | Format::Yaml => document(&rows, format)?,
        Format::Csv => cells.into_iter().map(|row| csv_line(row.into_iter())).collect(),
        Format::Table | Format::Wide => table::aligned(&cells[0], &cells[1..]),
    };
    Ok(Shown { text, trouble: (!troubles.is_empty()).then(|| troubles.join("\n  ")) })
}

/// Header and rows, and what is wrong.
fn matrix(rows: &[Object]) -> (Vec<Vec<String>>, Vec<String>) {
    let field = |object: &Object, name: &str| object.get(name).map(text).unwrap_or_default();
    let mut columns: Vec<(u64, String)> = Vec::new();
    let reached = |row: &Object| -> Vec<Object> {
        let reaches = row.get("reaches").and_then(Value::as_array).into_iter().flatten();
        reaches.filter_map(|reached| reached.as_object().cloned()).collect()
    };
    let number = |object: &Object| object.get("node_id").and_then(Value::as_u64).unwrap_or(0);
    for object in rows.iter().cloned().chain(rows.iter().flat_map(reached)) {
        let column = (number(&object), field(&object, "name"));
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns.sort();
    let header = ["FROM".to_owned()].into_iter().chain(columns.iter().map(|(_, name)| name.clone()));
    let mut cells = vec![header.collect()];
    let mut troubles = Vec::new();
    for row in rows {
        let from = field(row, "name");
        let why = field(row, "error");
        if !why.is_empty() {
            troubles.push(format!("{from}: {why}"));
        }
        let others = reached(row);
        let cell = |(node_id, to): &(u64, String)| {
            let Some(other) = others.iter().find(|other| number(other) == *node_id) else {
                return if *node_id == number(row) { "-" } else { "?" }.to_owned();
            };
            match other.get("milliseconds").and_then(Value::as_f64) {
                Some(milliseconds) => format!("{milliseconds:.1} ms"),
                None => {
                    troubles.push(format!("{from} does not reach {to}: {}", field(other, "error")));
                    CELL_ERROR.to_owned()
                }
            }
        };
        cells.push([from.clone()].into_iter().chain(columns.iter().map(cell).collect::<Vec<_>>()).collect());
    }
    (cells, troubles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_says_how_fast_or_that_it_is_not_reached() {
        let rows = r#"[
            {"node_id":1,"name":"n1","error":null,"reaches":[
                {"node_id":2,"name":"n2","milliseconds":1.24,"error":null},
                {"node_id":3,"name":"n3","milliseconds":null,"error":"connection refused"}]},
            {"node_id":2,"name":"n2","error":"no answer in time","reaches":[]}
        ]"#;
        let (cells, troubles) = matrix(&serde_json::from_str::<Vec<Object>>(rows).unwrap());
        assert_eq!(
            cells,
            [vec!["FROM", "n1", "n2", "n3"], vec!["n1", "-", "1.2 ms", "no"], vec!["n2", "?", "-", "?"],]
        );
        assert_eq!(troubles, ["n1 does not reach n3: connection refused", "n2: no answer in time"]);
    }
}
