//! `metaflow ctl member`: the nodes of the cluster, as the asked node sees them.

use clap::Subcommand;
use serde::Deserialize;

use super::{
    Client, Failure,
    arguments::View,
    output::{Column, Format, Object, column, list, short},
};

const COLUMNS: [Column; 17] = [
    column("NODE", "node_id"),
    column("NAME", "name"),
    column("STATE", "state"),
    column("ZONE", "zone"),
    column("REGION", "region"),
    column("WEIGHT", "weight"),
    column("AGENTS", "agents"),
    column("WAL", "wal_bytes").bytes(),
    column("STORE LAG", "store_lag_ms").milliseconds(),
    column("CLOCK", "skew_ms").milliseconds(),
    column("READY FOR", "ready_seconds").seconds(),
    column("FLAPS", "flaps"),
    column("VERSION", "version").wide(),
    column("GRPC", "grpc").wide(),
    column("HTTP", "http").wide(),
    column("GOSSIP", "gossip").wide(),
    column("GENERATION", "generation").wide(),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// One line a node.
    List {
        #[command(flatten)]
        view: View,
    },
}

#[derive(Deserialize)]
struct Answer {
    members: Vec<Object>,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { view } => view.run(async |format| list(&ask(client).await?, &COLUMNS, format)).await,
    }
}

async fn ask(client: &Client) -> Result<Vec<Object>, Failure> {
    let answer: Answer = client.get("/v1/cluster/members").await?;
    Ok(answer.members)
}

/// The table; nothing for a cluster of one.
pub(super) async fn of_cluster(client: &Client, format: Format) -> Result<String, Failure> {
    let members = ask(client).await?;
    Ok(if members.len() > 1 { format!("\n{}", short(&members, &COLUMNS, format)) } else { String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_matters_and_tolerates_what_is_missing() {
        let answer = r#"{"members":[{"node_id":1,"name":"n1","state":"ready","gossip":"a:1","version":"x"},{"node_id":2}]}"#;
        let answer: Answer = serde_json::from_str(answer).unwrap();
        let table = short(&answer.members, &COLUMNS, Format::Wide);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("NODE  NAME  STATE  ZONE"), "{table}");
        assert!(lines[1].starts_with("1     n1    ready") && lines[1].ends_with("a:1"), "{table}");
        assert_eq!(lines[2], "2");
    }
}
