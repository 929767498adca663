//! `metaflow ctl member`: the nodes of the cluster, as the asked node sees them, and what is done with one of them.

mod drain;
mod reachability;

use axum::http::Method;
use clap::{Args, Subcommand};
use serde::Deserialize;

use super::{
    Client, Failure,
    arguments::{DryRun, Output, View, Wait},
    output::{Column, Object, column, list, one},
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
    /// Everything about one node.
    Show {
        /// Its number or name.
        node: String,
        #[command(flatten)]
        view: View,
    },
    /// Empty a node and end it: its agents go to other nodes, its rows to the store. Refused with exit code 4 when that is not safe.
    Drain(Drain),
    /// Forget a dead node, on every node. One that comes back is a member again.
    Remove {
        /// Its number or name.
        node: String,
        #[command(flatten)]
        dry_run: DryRun,
        #[command(flatten)]
        output: Output,
    },
    /// Which node reaches which over gRPC, and how fast: a line for each that asks, a column for each that is asked.
    Reachability {
        #[command(flatten)]
        view: View,
    },
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// Its number or name.
    node: String,
    /// Do it although it is not safe.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry_run: DryRun,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    output: Output,
}

#[derive(Deserialize)]
struct Answer {
    members: Vec<Object>,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { view } => {
            view.run(async |format| {
                let answer: Answer = client.get("/v1/cluster/members").await?;
                list(&answer.members, &COLUMNS, format)
            })
            .await
        }
        Verb::Show { node, view } => view.run(async |format| one(&show(client, &node).await?, format)).await,
        Verb::Drain(order) => drain::run(client, order).await,
        Verb::Remove { node, dry_run, output } => remove(client, &node, dry_run, output).await,
        Verb::Reachability { view } => view.run(async |format| reachability::ask(client, format).await).await,
    }
}

async fn show(client: &Client, node: &str) -> Result<Object, Failure> {
    client.get(&format!("/v1/cluster/members/{}", segment(node)?)).await
}

async fn remove(client: &Client, node: &str, dry_run: DryRun, output: Output) -> Result<(), Failure> {
    let path = format!("/v1/cluster/members/{}?dry_run={}", segment(node)?, dry_run.dry_run);
    let removed: Object = client.send(Method::DELETE, &path, None::<&()>).await?;
    super::print(&one(&removed, output.format)?)?;
    let failed =
        removed.get("failed").and_then(serde_json::Value::as_array).filter(|failed| !failed.is_empty());
    failed.map_or(Ok(()), |failed| {
        let reasons: Vec<String> = failed.iter().map(super::output::text).collect();
        Err(Failure::Degraded(format!("not every node was told: {}", reasons.join("; "))))
    })
}

/// A name as part of a path. What is no name of a node is refused here rather than misread there.
fn segment(node: &str) -> Result<&str, Failure> {
    let is_name = !node.is_empty() && node.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    is_name.then_some(node).ok_or_else(|| {
        Failure::Usage(format!(
            "{node:?} cannot stand in an address; use the node's number (`metaflow ctl member list`)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::output::{Format, short};

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

    #[test]
    fn names_that_would_change_the_address_are_refused() {
        for name in ["", "a/b", "a?x", "..%2f", "a b", "\u{e9}"] {
            assert_eq!(segment(name).unwrap_err().code(), 1, "{name:?}");
        }
        assert_eq!(segment("n-1.eu_2").unwrap(), "n-1.eu_2");
    }
}
