//! `metaflow ctl shard`: why an agent is where it is.

use clap::Subcommand;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, column, document, short},
    pages::{ask, objects, text, unanswered},
};

const COLUMNS: [Column; 10] = [
    column("NODE", "name"),
    column("VERDICT", "verdict"),
    column("WHY", "why"),
    column("CONNECTED", "connected_seconds").seconds(),
    column("LAST HEARD", "silent_seconds").seconds(),
    column("ZONE", "zone"),
    column("REGION", "region"),
    column("SHARDS", "shards").wide(),
    column("BOUND", "bound").wide(),
    column("ID", "node_id").wide(),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Why an agent is where it is: its shard, the nodes in the order in which the shard prefers them, and what became of each.
    Explain {
        /// The agent's id, its host's name or its machine id.
        agent: String,
        #[command(flatten)]
        view: View,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    let Verb::Explain { agent, view } = verb;
    view.run(async |format| {
        let page = ask(client, "/v1/shard", &[("agent", Some(agent.clone()))]).await?;
        render(&page, format)
    })
    .await
}

fn render(page: &Value, format: Format) -> Result<Shown, Failure> {
    let trouble = unanswered(page);
    let text = match format {
        Format::Table | Format::Wide => {
            let region = match (text(page, "region"), page["region_is_served"].as_bool()) {
                ("", _) => "no region".to_owned(),
                (region, Some(false)) => {
                    format!("region {region}, which has no ready node: all regions serve it")
                }
                (region, _) => format!("region {region}"),
            };
            let host = Some(text(page, "host")).filter(|host| !host.is_empty());
            let host = host.map_or_else(String::new, |host| format!(" {host}"));
            format!(
                "agent {}{}: shard {}, {region}\n{}\n\n{}",
                page["agent_id"],
                host,
                page["shard"],
                text(page, "conclusion"),
                short(&objects(&page["candidates"]), &COLUMNS, format)
            )
        }
        Format::Csv => super::output::list(&objects(&page["candidates"]), &COLUMNS, format)?,
        Format::Json | Format::Yaml => document(page, format)?,
    };
    Ok(Shown { text, trouble })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_nodes_stand_in_the_order_of_preference_below_the_conclusion() {
        let page = json!({
            "agent_id": 7, "host": "web", "shard": 12, "region": "eu", "region_is_served": true,
            "conclusion": "it is connected to n1, where it belongs",
            "candidates": [
                { "name": "n2", "verdict": "full", "why": "has 5 shards and may have 5", "shards": 5 },
                { "name": "n1", "verdict": "primary", "why": "serves the agent", "connected_seconds": 61 },
            ],
            "unanswered": [{ "name": "n3", "reason": "it is dead" }],
        });
        let Shown { text, trouble } = render(&page, Format::Table).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "agent 7 web: shard 12, region eu");
        assert!(lines[1].ends_with("where it belongs") && lines[3].starts_with("NODE  VERDICT"), "{text}");
        assert!(lines[4].starts_with("n2    full") && lines[5].contains("1m1s"), "{text}");
        assert!(trouble.unwrap().contains("n3: it is dead"));
        assert!(!text.contains("BOUND") && render(&page, Format::Wide).unwrap().text.contains("BOUND"));
    }
}
