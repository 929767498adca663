//! `metaflow ctl balance`: how evenly the work is spread, and what would move if a node left or came. Changes nothing.

use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, Object, column, document, list, short},
    pages::{ask, objects, percent},
};

const COLUMNS: [Column; 12] = [
    column("NODE", "name"),
    column("STATE", "state"),
    column("WEIGHT", "weight"),
    column("ZONE", "zone"),
    column("REGION", "region"),
    column("SHARDS", "shards"),
    column("BOUND", "bound").wide(),
    column("SHARE", "share"),
    column("EXPECTED", "expected_share"),
    column("PARTITIONS", "partitions"),
    column("AGENTS", "agents"),
    column("EXPECTED", "agents_expected"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What if these nodes were gone, by name or id, separated by commas.
    #[arg(long, value_name = "NODES", conflicts_with = "with")]
    without: Option<String>,
    /// What if there were one more node of this weight.
    #[arg(long, value_name = "WEIGHT")]
    with: Option<u8>,
    /// Region of the node that is tried.
    #[arg(long, requires = "with")]
    region: Option<String>,
    /// Zone of the node that is tried.
    #[arg(long, requires = "with")]
    zone: Option<String>,
    #[command(flatten)]
    view: View,
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { without, with, region, zone, view } = arguments;
    view.run(async |format| {
        let parameters = [
            ("without", without.clone()),
            ("with", with.map(|weight| weight.to_string())),
            ("region", region.clone()),
            ("zone", zone.clone()),
        ];
        render(&ask(client, "/v1/balance", &parameters).await?, format)
    })
    .await
}

fn render(page: &Value, format: Format) -> Result<Shown, Failure> {
    match format {
        Format::Table | Format::Wide => {
            let mut text = spread(&page["now"], format);
            if page["then"].is_object() {
                let moves = &page["moves"];
                // Writing to a String does not fail.
                let _infallible = write!(
                    text,
                    "\nwould move: {} of {} shards ({}; {} at least), {} partitions, about {} agents\n\n{}",
                    moves["shards"],
                    moves["shards_of"],
                    percent(&moves["share"]),
                    percent(&moves["share_min"]),
                    moves["partitions"],
                    moves["agents"],
                    spread(&page["then"], format)
                );
            }
            Ok(text.into())
        }
        Format::Csv => Ok(list(&objects(&page["now"]["nodes"]), &COLUMNS, format)?.into()),
        Format::Json | Format::Yaml => Ok(document(page, format)?.into()),
    }
}

fn spread(spread: &Value, format: Format) -> String {
    let nodes: Vec<Object> = objects(&spread["nodes"])
        .into_iter()
        .map(|mut node| {
            for share in ["share", "expected_share"] {
                let shown = node.get(share).map_or_else(String::new, percent);
                node.insert(share.to_owned(), shown.into());
            }
            let agents = node.get("agents_expected").and_then(Value::as_f64).unwrap_or(0.0);
            node.insert("agents_expected".to_owned(), format!("{agents:.0}").into());
            node
        })
        .collect();
    let ratio =
        |name: &str| spread[name].as_f64().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
    format!(
        "{}max/mean: shards {}, partitions {}, agents {}\n",
        short(&nodes, &COLUMNS, format),
        ratio("shards_max_to_mean"),
        ratio("partitions_max_to_mean"),
        ratio("agents_max_to_mean")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_move_stands_between_now_and_then() {
        let spread = |share: f64| {
            json!({
                "nodes": [{ "name": "n1", "state": "ready", "share": share, "expected_share": 0.5, "agents": 3, "agents_expected": 2.6 }],
                "shards_max_to_mean": 1.01, "agents_max_to_mean": null,
            })
        };
        let moves = json!({ "shards": 5461, "shards_of": 16384, "share": 0.3333, "share_min": 0.25, "partitions": 300, "agents": 2 });
        let page = json!({ "now": spread(0.505), "then": spread(1.0), "moves": moves });
        let text = render(&page, Format::Table).unwrap().text;
        assert!(
            text.contains("50.5 %") && text.contains("100.0 %") && text.contains("shards 1.010"),
            "{text}"
        );
        assert!(
            text.contains("5461 of 16384 shards (33.3 %; 25.0 % at least), 300 partitions, about 2 agents"),
            "{text}"
        );
        assert!(text.contains("agents -"), "{text}");
        assert!(!render(&json!({ "now": spread(1.0) }), Format::Table).unwrap().text.contains("would move"));
    }
}
