//! `metaflow ctl status` and `metaflow ctl agent list`.

use serde_json::{Map, Value};

use super::{Client, Failure, members, print, render, table, text};
use crate::cli::Format;

/// Shows the node's state; degraded when it has problems.
pub(crate) async fn status(client: &Client) -> Result<(), Failure> {
    let status: Map<String, Value> = client.get("/v1/status").await?;
    let problems: Vec<String> =
        status.get("problems").and_then(Value::as_array).into_iter().flatten().map(text).collect();
    let rows: Vec<Vec<String>> = status
        .iter()
        .filter(|(name, _)| *name != "problems")
        .map(|(name, value)| vec![name.replace('_', " "), text(value)])
        .collect();
    let members = members::of_cluster(client).await?;
    print(&(table::aligned(&["NODE", ""], &rows) + &members))?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::Degraded(problems.join("; "))) }
}

/// Shows the agents that the node knows.
pub(crate) async fn agents(client: &Client, format: Format) -> Result<(), Failure> {
    let agents: Vec<Map<String, Value>> = client.get("/v1/agents").await?;
    let columns: Vec<String> = agents.first().map_or_else(Vec::new, |agent| agent.keys().cloned().collect());
    let rows: Vec<Vec<Value>> = agents
        .iter()
        .map(|agent| columns.iter().map(|name| agent.get(name).cloned().unwrap_or(Value::Null)).collect())
        .collect();
    if agents.is_empty() && format == Format::Table {
        return print("no agents\n");
    }
    print(&render(&columns, &rows, format))
}
