//! `metaflow ctl member list`, and the same table below `metaflow ctl status`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Client, Failure, print, render, table, text};
use crate::cli::Format;

/// What the table shows of what the node tells; the other formats have everything.
const SHOWN: [&str; 13] = [
    "node_id",
    "name",
    "state",
    "zone",
    "region",
    "weight",
    "agents",
    "wal_bytes",
    "store_lag_ms",
    "skew_ms",
    "ready_seconds",
    "flaps",
    "gossip",
];

#[derive(Deserialize)]
struct Answer {
    members: Vec<Map<String, Value>>,
}

async fn ask(client: &Client) -> Result<Vec<Map<String, Value>>, Failure> {
    let answer: Answer = client.get("/v1/cluster/members").await?;
    Ok(answer.members)
}

/// Shows the nodes of the cluster.
pub(crate) async fn members(client: &Client, format: Format) -> Result<(), Failure> {
    let members = ask(client).await?;
    if format == Format::Table {
        return print(&short(&members));
    }
    let columns: Vec<String> =
        members.first().map_or_else(Vec::new, |member| member.keys().cloned().collect());
    let rows: Vec<Vec<Value>> = members
        .iter()
        .map(|member| columns.iter().map(|name| member.get(name).cloned().unwrap_or(Value::Null)).collect())
        .collect();
    print(&render(&columns, &rows, format))
}

/// The table; nothing for a cluster of one.
pub(super) async fn of_cluster(client: &Client) -> Result<String, Failure> {
    let members = ask(client).await?;
    Ok(if members.len() > 1 { format!("\n{}", short(&members)) } else { String::new() })
}

fn short(members: &[Map<String, Value>]) -> String {
    let rows: Vec<Vec<String>> = members
        .iter()
        .map(|member| SHOWN.iter().map(|name| member.get(*name).map_or_else(String::new, text)).collect())
        .collect();
    table::aligned(&SHOWN.map(|name| name.replace('_', " ").to_uppercase()), &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_matters_and_tolerates_what_is_missing() {
        let answer = r#"{"members":[{"node_id":1,"name":"n1","state":"ready","gossip":"a:1","version":"x"},{"node_id":2}]}"#;
        let answer: Answer = serde_json::from_str(answer).unwrap();
        let table = short(&answer.members);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("NODE ID  NAME  STATE  ZONE"), "{table}");
        assert!(lines[1].starts_with("1        n1    ready") && lines[1].ends_with("a:1"), "{table}");
        assert_eq!(lines[2], "2");
    }
}
