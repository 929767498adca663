//! `metaflow ctl status`: whether the cluster is well, on one screen.

use clap::Args;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, Object, column, document, list, short, text},
};

const COLUMNS: [Column; 21] = [
    column("NODE", "name"),
    column("STATE", "state"),
    column("ZONE", "zone"),
    column("AGENTS", "agents"),
    column("EXPECTED", "agents_expected").whole(),
    column("WAL", "wal_bytes").bytes(),
    column("STORE LAG", "store_lag_ms").milliseconds(),
    column("LOST ROWS", "own.rows_lost_by_agents"),
    column("REFUSED", "own.rows_refused"),
    column("REPEATED", "own.batches_repeated"),
    column("CLOCK", "skew_ms").milliseconds(),
    column("ID", "node_id").wide(),
    column("REGION", "region").wide(),
    column("WEIGHT", "weight").wide(),
    column("ROWS", "own.rows_accepted").wide(),
    column("PUT OFF", "own.batches_put_off").wide(),
    column("FAILED INSERTS", "own.inserts_failed").wide(),
    column("MEMORY", "own.memory_used_bytes").bytes().wide(),
    column("OF", "own.memory_budget_bytes").bytes().wide(),
    column("UP", "own.uptime_seconds").seconds().wide(),
    column("VERSION", "version").wide(),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    view: View,
}

/// Shows the cluster's state; degraded when it has problems.
pub(super) async fn run(client: &Client, Arguments { view }: Arguments) -> Result<(), Failure> {
    view.run(async |format| show(&client.get("/v1/cluster/status").await?, format)).await
}

fn show(status: &Object, format: Format) -> Result<Shown, Failure> {
    let problems: Vec<String> = array(status, "problems").map(text).collect();
    let nodes: Vec<Object> = array(status, "nodes").filter_map(|node| node.as_object().cloned()).collect();
    let text = match format {
        Format::Json | Format::Yaml => document(status, format)?,
        Format::Csv => list(&nodes, &COLUMNS, format)?,
        Format::Table | Format::Wide => head(status, nodes.len()) + &short(&nodes, &COLUMNS, format),
    };
    // One a line, where a person reads.
    Ok(Shown { text, trouble: (!problems.is_empty()).then(|| problems.join("\n  ")) })
}

fn array<'a>(object: &'a Object, field: &str) -> impl Iterator<Item = &'a Value> {
    object.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn head(status: &Object, nodes: usize) -> String {
    let field = |name: &str| status.get(name).map(text).unwrap_or_default();
    let most = status.get("max_over_mean").and_then(Value::as_f64);
    let most = most.map_or_else(|| "-".to_owned(), |most| format!("{most:.2}"));
    format!(
        "cluster {}: {} of {nodes} nodes ready, {} agents, max/mean {most}\n\n",
        field("cluster"),
        field("nodes_ready"),
        field("agents")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_screen_shows_nodes_and_what_is_wrong() {
        let status = r#"{"cluster":"c","nodes_ready":1,"agents":7,"max_over_mean":1.0,"problems":["n1: node 2 is dead"],"nodes":[
            {"name":"n1","state":"ready","agents":7,"agents_expected":6.8,"wal_bytes":2048,"store_lag_ms":3,"own":{"rows_refused":5}},
            {"name":"n2","state":"dead","agents":0,"own":null}]}"#;
        let status: Object = serde_json::from_str(status).unwrap();
        let Shown { text, trouble } = show(&status, Format::Table).unwrap();
        assert!(
            text.starts_with("cluster c: 1 of 2 nodes ready, 7 agents, max/mean 1.00\n\nNODE  STATE"),
            "{text}"
        );
        let line: Vec<&str> = text.lines().nth(3).unwrap().split_whitespace().collect();
        assert_eq!(line, ["n1", "ready", "7", "7", "2", "KiB", "3", "ms", "5"]);
        assert_eq!(trouble.as_deref(), Some("n1: node 2 is dead"));
        assert!(show(&status, Format::Yaml).unwrap().text.contains("max_over_mean"));
    }
}
