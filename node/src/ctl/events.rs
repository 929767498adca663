//! `metaflow ctl events`: what happened in the cluster lately, and what happens now.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;

use super::{
    Client, Failure,
    output::{Column, Format, Object, column, document, list},
    pages::{Nodes, ask, nodes, objects},
    print, table,
};

/// Between two looks at what is new.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

const COLUMNS: [Column; 5] = [
    column("TIME", "time"),
    column("NODE", "node"),
    column("KIND", "kind"),
    column("SUBJECT", "subject"),
    column("WHAT", "text"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Go on: print what happens from now on, too, until the program is stopped.
    #[arg(short, long)]
    follow: bool,
    /// Only one kind: node, member, drain, refusal, store, wal, agent, config, dictionary.
    #[arg(long)]
    kind: Option<String>,
    /// What one node noticed, by its name or id.
    #[arg(long)]
    node: Option<String>,
    /// Events of each node at most.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// How to print.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", value_name = "FORMAT")]
    format: Format,
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { follow, kind, node, limit, format } = arguments;
    let mut after: Option<String> = None;
    loop {
        let parameters = [
            ("kind", kind.clone()),
            ("node", node.clone()),
            ("limit", Some(limit.to_string())),
            ("after", after.clone()),
        ];
        match ask(client, "/v1/events", &parameters).await {
            Ok(page) => {
                let Nodes { trouble, .. } = nodes(&page);
                print(&render(&page, after.is_none(), format)?)?;
                if !follow {
                    return trouble.map_or(Ok(()), |trouble| Err(Failure::Degraded(trouble)));
                }
                after = Some(next(&page, after.as_deref()));
            }
            // A node that restarts comes back, and whoever follows wants to see it.
            Err(failure @ (Failure::Unreachable(_) | Failure::Degraded(_))) if follow && after.is_some() => {
                eprintln!("metaflow: {failure}");
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN_AFTER) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// The events of all nodes in the order of their times. Clocks of nodes differ a little, so neighbours may stand the other way round.
fn merged(page: &Value) -> Vec<Object> {
    let mut events = Vec::new();
    for answer in nodes(page).answers {
        for mut event in objects(answer.get("events").unwrap_or(&Value::Null)) {
            let milliseconds = event.get("time_ms").and_then(Value::as_u64).unwrap_or(0);
            let time = UNIX_EPOCH + Duration::from_millis(milliseconds);
            event.insert("time".to_owned(), humantime::format_rfc3339_millis(time).to_string().into());
            event.insert("node".to_owned(), answer.get("node").cloned().unwrap_or_default());
            events.push(event);
        }
    }
    events.sort_by_key(|event| event.get("time_ms").and_then(Value::as_u64));
    events
}

fn render(page: &Value, is_first: bool, format: Format) -> Result<String, Failure> {
    let events = merged(page);
    match format {
        Format::Table | Format::Wide if is_first => list(&events, &COLUMNS, format),
        // Lines that follow have no header, and widths that do not change from one look to the next.
        Format::Table | Format::Wide => Ok(events.iter().map(line).collect()),
        // One a line: what is followed never ends.
        Format::Json => {
            Ok(events.iter().map(|event| format!("{}\n", Value::Object(event.clone()))).collect())
        }
        Format::Csv => list(&events, &COLUMNS, format),
        Format::Yaml if events.is_empty() => Ok(String::new()),
        Format::Yaml => document(&events, format),
    }
}

fn line(event: &Object) -> String {
    let field = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let cells = ["time", "node", "kind", "subject", "text"].map(field);
    table::aligned(&cells, &[])
}

/// Where to go on: the last number of each node.
fn next(page: &Value, before: Option<&str>) -> String {
    let mut numbers: Vec<(String, String)> = before
        .into_iter()
        .flat_map(|before| before.split(','))
        .filter_map(|part| part.split_once(':'))
        .map(|(node, number)| (node.to_owned(), number.to_owned()))
        .collect();
    for node in page["nodes"].as_array().into_iter().flatten() {
        let (id, number) = (node["node_id"].to_string(), &node["answer"]["next"]);
        if number.is_null() {
            continue;
        }
        numbers.retain(|(known, _)| *known != id);
        numbers.push((id, number.to_string()));
    }
    numbers.iter().map(|(node, number)| format!("{node}:{number}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page() -> Value {
        let event = |time: u64, subject: &str| json!({ "time_ms": time, "kind": "member", "subject": subject, "text": "is there" });
        json!({ "nodes": [
            { "node_id": 1, "name": "n1", "answer": { "events": [event(3_000, "n2")], "next": 4 } },
            { "node_id": 2, "name": "n2", "answer": { "events": [event(1_000, "n1"), event(5_000, "n3")], "next": 9 } },
            { "node_id": 3, "name": "n3", "unanswered": "it is dead" },
        ]})
    }

    #[test]
    fn events_of_all_nodes_stand_in_the_order_of_time() {
        let text = render(&page(), true, Format::Table).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("TIME") && lines.len() == 4, "{text}");
        assert!(lines[1].starts_with("1970-01-01T00:00:01.000Z  n2    member  n1"), "{text}");
        assert!(lines[3].contains("n3       is there"), "{text}");
        assert_eq!(render(&page(), false, Format::Table).unwrap().lines().count(), 3);
        assert_eq!(render(&page(), false, Format::Json).unwrap().lines().count(), 3);
    }

    #[test]
    fn following_goes_on_where_it_was_even_for_nodes_that_are_silent_now() {
        assert_eq!(next(&page(), None), "1:4,2:9");
        assert_eq!(next(&page(), Some("1:1,3:7")), "3:7,1:4,2:9");
    }
}
