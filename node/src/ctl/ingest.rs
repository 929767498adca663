//! `metaflow ctl ingest`: where a batch of rows is now.

use clap::Subcommand;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, Object, column, document, list, short, text as cell},
    pages::{ask, objects, text, unanswered},
};

const COLUMNS: [Column; 6] = [
    column("NODE", "name"),
    column("STATE", "state"),
    column("FOR", "age_seconds").seconds(),
    column("TABLE", "table"),
    column("ROWS IN ITS STORE", "rows"),
    column("REASON", "reason"),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Where a batch is: not seen yet, in a node's log, being labelled, in an insert, stored, or refused. Exit code 3 when it is not
    /// stored.
    Trace {
        /// The agent's id.
        agent: u32,
        /// The batch: one number, or GENERATION:COUNTER of the agent's spool.
        seq: String,
        #[command(flatten)]
        view: View,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    let Verb::Trace { agent, seq, view } = verb;
    view.run(async |format| {
        let parameters = [("agent", Some(agent.to_string())), ("seq", Some(seq.clone()))];
        render(&ask(client, "/v1/ingest/trace", &parameters).await?, format)
    })
    .await
}

fn render(page: &Value, format: Format) -> Result<Shown, Failure> {
    let trouble = if page["is_stored"] == true {
        None
    } else {
        let silent = unanswered(page).map_or_else(String::new, |silent| format!("; {silent}"));
        Some(format!("the batch is not stored{silent}"))
    };
    let nodes: Vec<Object> = objects(&page["nodes"])
        .into_iter()
        .map(|mut node| {
            let stored = node.get("stored").and_then(Value::as_object);
            let rows = stored.map_or_else(String::new, |stored| {
                stored
                    .iter()
                    .map(|(table, rows)| format!("{table} {}", cell(rows)))
                    .collect::<Vec<_>>()
                    .join(", ")
            });
            node.insert("rows".to_owned(), rows.into());
            node
        })
        .collect();
    let text = match format {
        Format::Table | Format::Wide => format!(
            "agent {}, batch {}:{}\n{}\n\n{}",
            page["agent_id"],
            page["generation"],
            page["counter"],
            text(page, "conclusion"),
            short(&nodes, &COLUMNS, format)
        ),
        Format::Csv => list(&nodes, &COLUMNS, format)?,
        Format::Json | Format::Yaml => document(page, format)?,
    };
    Ok(Shown { text, trouble })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_conclusion_stands_above_what_each_node_knows() {
        let page = json!({
            "agent_id": 7, "generation": 1, "counter": 2, "conclusion": "stored: 7 rows", "is_stored": true,
            "nodes": [{ "name": "n1", "state": "committed", "stored": { "flow_log.l7_flow_log": 7 } }], "unanswered": [],
        });
        let Shown { text, trouble } = render(&page, Format::Table).unwrap();
        assert!(text.starts_with("agent 7, batch 1:2\nstored: 7 rows\n\nNODE"), "{text}");
        assert!(text.contains("flow_log.l7_flow_log 7") && trouble.is_none(), "{text}");
        let missing = json!({ "is_stored": false, "unanswered": [{ "name": "n2", "reason": "slow" }] });
        assert!(render(&missing, Format::Json).unwrap().trouble.unwrap().contains("n2: slow"));
    }
}
