//! `metaflow ctl wal`: what waits in the nodes' write-ahead logs.

use clap::Subcommand;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, column, document, list},
    pages::{Nodes, ask, nodes},
};

const COLUMNS: [Column; 15] = [
    column("NODE", "node"),
    column("STATE", "state"),
    column("BATCHES", "batches"),
    column("BYTES", "bytes").bytes(),
    column("LIMIT", "bytes_max").bytes(),
    column("OLDEST", "oldest_seconds").seconds(),
    column("CREDIT", "credit_bytes").bytes(),
    column("MEMORY", "memory_bytes").bytes(),
    column("LIMIT", "memory_bytes_max").bytes(),
    column("ACCEPTED", "accepted"),
    column("COMMITTED", "committed"),
    column("LABELLING", "labelling").wide(),
    column("WRITING", "writing").wide(),
    column("SYNCS", "syncs").wide(),
    column("WRITE ERRORS", "write_errors").wide(),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// One line a node: what waits for the store, since when, and how much more may. Exit code 3 when a log takes nothing.
    Status {
        /// One node alone, by name or id.
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        view: View,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    let Verb::Status { node, view } = verb;
    view.run(async |format| render(&ask(client, "/v1/wal", &[("node", node.clone())]).await?, format)).await
}

fn render(page: &Value, format: Format) -> Result<Shown, Failure> {
    let Nodes { answers, trouble } = nodes(page);
    let shut: Vec<String> = answers
        .iter()
        .filter(|answer| answer.get("state").is_some_and(|state| state != "open"))
        .map(|answer| format!("the log of {} is {}", answer["node"].as_str().unwrap_or("?"), answer["state"]))
        .collect();
    let trouble =
        trouble.into_iter().chain((!shut.is_empty()).then(|| shut.join("; "))).reduce(|a, b| a + "; " + &b);
    let text = match format {
        Format::Json | Format::Yaml => document(page, format)?,
        _ => list(&answers, &COLUMNS, format)?,
    };
    Ok(Shown { text, trouble })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_log_that_takes_nothing_is_trouble() {
        let page = |state: &str| json!({ "nodes": [{ "name": "n1", "answer": { "state": state, "batches": 2, "bytes": 2048, "oldest_seconds": 61.0 } }] });
        let Shown { text, trouble } = render(&page("open"), Format::Table).unwrap();
        assert!(text.contains("n1    open   2        2 KiB") && text.contains("1m1s"), "{text}");
        assert_eq!(trouble, None);
        assert!(render(&page("full"), Format::Table).unwrap().trouble.unwrap().contains("n1 is \"full\""));
    }
}
