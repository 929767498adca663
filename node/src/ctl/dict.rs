//! `metaflow ctl dict`: names and their ids.

use clap::Subcommand;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, Object, column, document, list, short, text as cell},
    pages::{Nodes, ask, nodes, objects, percent, text, unanswered},
};

const STATS: [Column; 7] = [
    column("NODE", "node"),
    column("KIND", "kind"),
    column("NAMES", "names"),
    column("ALIASES", "aliases"),
    column("IDS USED", "used"),
    column("OVERFLOWED", "overflowed"),
    column("HIGHEST ID", "highest_id").wide(),
];
const HOLDERS: [Column; 4] = [
    column("NODE", "name"),
    column("HOLDS", "holds"),
    column("IDS", "known"),
    column("IN THE STORE", "stored"),
];
const KNOWERS: [Column; 4] = [
    column("NODE", "name"),
    column("KNOWN", "is_known"),
    column("IN ITS STORE", "is_stored"),
    column("CANONICAL", "canonical_id"),
];
const STORES: [Column; 7] = [
    column("NODE", "name"),
    column("ENTRIES", "store.compared.entries"),
    column("ON THEIR WAY", "store.compared.pending"),
    column("ID WITH TWO NAMES", "store.compared.two_names.count"),
    column("NOT IN THE STORE", "store.compared.missing.count"),
    column("IDS WITHOUT NAME", "store.unresolved.count"),
    column("CONTRADICTED", "store.conflicts"),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Names by kind and node, aliases, and how much of each range of ids is used up.
    Stats {
        #[command(flatten)]
        view: View,
    },
    /// The ids of a name, its partition, and the nodes that hold it.
    Lookup {
        /// E.g. process, host, endpoint; a wrong one is answered with all there are.
        kind: String,
        name: String,
        #[command(flatten)]
        view: View,
    },
    /// What an id names, on each node and in the store.
    Resolve {
        kind: String,
        id: u32,
        #[command(flatten)]
        view: View,
    },
    /// Compares names between the nodes that hold them and with the store, and looks up the ids of stored rows. Exit code 3 when
    /// something differs.
    Verify {
        /// Hours of rows whose ids are looked up.
        #[arg(long, default_value_t = 1)]
        hours: u32,
        #[command(flatten)]
        view: View,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Stats { view } => {
            view.run(async |format| stats(&ask(client, "/v1/dictionary/stats", &[]).await?, format)).await
        }
        Verb::Lookup { kind, name, view } => {
            view.run(async |format| {
                let parameters = [("kind", Some(kind.clone())), ("name", Some(name.clone()))];
                lookup(&ask(client, "/v1/dictionary/lookup", &parameters).await?, format)
            })
            .await
        }
        Verb::Resolve { kind, id, view } => {
            view.run(async |format| {
                let parameters = [("kind", Some(kind.clone())), ("id", Some(id.to_string()))];
                resolve(&ask(client, "/v1/dictionary/resolve", &parameters).await?, format)
            })
            .await
        }
        Verb::Verify { hours, view } => {
            view.run(async |format| {
                verify(
                    &ask(client, "/v1/dictionary/verify", &[("hours", Some(hours.to_string()))]).await?,
                    format,
                )
            })
            .await
        }
    }
}

fn is_table(format: Format) -> bool {
    matches!(format, Format::Table | Format::Wide)
}

fn stats(page: &Value, format: Format) -> Result<Shown, Failure> {
    let Nodes { answers, trouble } = nodes(page);
    let mut rows: Vec<Object> = Vec::new();
    let mut notes = String::new();
    for answer in &answers {
        for mut kind in objects(answer.get("kinds").unwrap_or(&Value::Null)) {
            kind.insert("node".to_owned(), answer.get("node").cloned().unwrap_or_default());
            kind.insert(
                "used".to_owned(),
                percent(&kind.get("used_share").cloned().unwrap_or_default()).into(),
            );
            if kind.get("is_half_used") == Some(&Value::Bool(true)) {
                notes += &format!(
                    "warning: {} has used up {} of its ids of {}: plan another node_id for it\n",
                    cell(&kind["node"]),
                    cell(&kind["used"]),
                    kind.get("kind").map_or_else(String::new, cell)
                );
            }
            rows.push(kind);
        }
    }
    let text = match format {
        Format::Table | Format::Wide => short(&rows, &STATS, format) + &notes,
        Format::Csv => list(&rows, &STATS, format)?,
        Format::Json | Format::Yaml => document(page, format)?,
    };
    Ok(Shown { text, trouble })
}

fn lookup(page: &Value, format: Format) -> Result<Shown, Failure> {
    let trouble = unanswered(page).or_else(|| {
        page["canonical_id"].is_null().then(|| "no node that answers knows this name".to_owned())
    });
    if !is_table(format) {
        return Ok(Shown { text: document(page, format)?, trouble });
    }
    let rows: Vec<Object> = objects(&page["nodes"])
        .into_iter()
        .map(|mut node| {
            let ids = objects(node.get("ids").unwrap_or(&Value::Null));
            let known: Vec<String> = ids.iter().filter_map(|id| id.get("id").map(cell)).collect();
            let stored = ids.iter().filter(|id| id.get("is_stored") == Some(&Value::Bool(true))).count();
            node.insert("known".to_owned(), known.join(",").into());
            node.insert("stored".to_owned(), format!("{stored} of {}", ids.len()).into());
            node
        })
        .collect();
    let said = |value: &Value, word: &str| match value {
        Value::Null => format!("no {word}"),
        Value::Array(none) if none.is_empty() => format!("no {word}"),
        value => format!("{word} {}", cell(value)),
    };
    let text = format!(
        "{} {:?}: {}, partition {} of {}, {}\n\n{}",
        text(page, "kind"),
        text(page, "name"),
        said(&page["canonical_id"], "id"),
        page["partition"],
        page["owner"].as_str().unwrap_or("no node"),
        said(&page["replicas"], "replicas"),
        short(&rows, &HOLDERS, format)
    );
    Ok(Shown { text, trouble })
}

fn resolve(page: &Value, format: Format) -> Result<Shown, Failure> {
    let names = page["names"].as_array().map_or(0, Vec::len);
    let trouble = unanswered(page).or_else(|| match names {
        0 => Some("no node that answers and no store knows this id".to_owned()),
        1 => None,
        _ => Some("the id has several names, which must never be: see metaflow ctl dict verify".to_owned()),
    });
    if !is_table(format) {
        return Ok(Shown { text: document(page, format)?, trouble });
    }
    let names: Vec<String> =
        page["names"].as_array().into_iter().flatten().map(|name| format!("{:?}", cell(name))).collect();
    let text = format!(
        "{} {}: {}, given by {}\n\n{}",
        text(page, "kind"),
        page["id"],
        if names.is_empty() { "no name".to_owned() } else { names.join(" and ") },
        page["given_by"].as_str().unwrap_or("no node"),
        short(&objects(&page["nodes"]), &KNOWERS, format)
    );
    Ok(Shown { text, trouble })
}

fn verify(page: &Value, format: Format) -> Result<Shown, Failure> {
    let differs = (page["is_fine"] != true).then(|| "names do not agree everywhere".to_owned());
    let trouble = unanswered(page).or(differs);
    if !is_table(format) {
        return Ok(Shown { text: document(page, format)?, trouble });
    }
    let nodes = objects(&page["nodes"]);
    let mut text = short(&nodes, &STORES, format);
    text += &format!(
        "{} of {} partitions differ between their holders\n",
        page["differing"]["count"], page["partitions"]
    );
    let mut findings = vec![("holders differ", &page["differing"])];
    for node in page["nodes"].as_array().into_iter().flatten() {
        findings.push(("two names", &node["store"]["compared"]["two_names"]));
        findings.push(("not in the store", &node["store"]["compared"]["missing"]));
        findings.push(("no name", &node["store"]["unresolved"]));
    }
    for (what, found) in findings {
        for example in found["examples"].as_array().into_iter().flatten() {
            text += &format!("{what}: {}\n", cell(example));
        }
    }
    Ok(Shown { text, trouble })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn half_used_ranges_are_warned_of() {
        let kind = |share: f64| json!({ "kind": "pod", "names": 3, "aliases": 1, "used_share": share, "is_half_used": share >= 0.5 });
        let page = json!({ "nodes": [
            { "name": "n1", "answer": { "kinds": [kind(0.6)] } },
            { "name": "n2", "answer": { "kinds": [kind(0.1)] } },
        ]});
        let text = stats(&page, Format::Table).unwrap().text;
        assert!(text.contains("warning: n1 has used up 60.0 % of its ids of pod"), "{text}");
        assert_eq!((text.lines().count(), text.matches("warning").count()), (4, 1), "{text}");
    }

    #[test]
    fn a_name_and_an_id_are_shown_with_who_knows_them() {
        let page = json!({
            "kind": "host", "name": "web", "canonical_id": 5, "partition": 9, "owner": "n1", "replicas": ["n2", "n3"],
            "nodes": [{ "name": "n1", "holds": true, "ids": [{ "id": 5, "is_stored": true }, { "id": 8, "is_stored": false }] }],
            "unanswered": [],
        });
        let Shown { text, trouble } = lookup(&page, Format::Table).unwrap();
        assert!(text.starts_with("host \"web\": id 5, partition 9 of n1, replicas n2,n3\n"), "{text}");
        assert!(text.contains("5,8") && text.contains("1 of 2") && trouble.is_none(), "{text}");
        let unknown = json!({ "kind": "host", "name": "web", "partition": 9, "owner": "n1", "replicas": [], "nodes": [] });
        let text = lookup(&unknown, Format::Table).unwrap().text;
        assert!(text.starts_with("host \"web\": no id, partition 9 of n1, no replicas\n"), "{text}");
        assert!(lookup(&json!({}), Format::Table).unwrap().trouble.unwrap().contains("knows this name"));

        let page = json!({ "kind": "host", "id": 5, "names": ["web"], "given_by": "n1", "nodes": [{ "name": "n1", "is_known": true }] });
        let shown = resolve(&page, Format::Table).unwrap();
        assert!(shown.text.starts_with("host 5: \"web\", given by n1\n") && shown.trouble.is_none());
        assert!(
            resolve(&json!({ "names": ["a", "b"] }), Format::Json)
                .unwrap()
                .trouble
                .unwrap()
                .contains("several")
        );
    }

    #[test]
    fn what_differs_is_said_with_examples() {
        let store = json!({ "compared": { "entries": 7, "pending": 0, "two_names": { "count": 1, "examples": ["host 5: \"a\" here"] }, "missing": { "count": 0, "examples": [] } },
            "unresolved": { "count": 0, "examples": [] }, "conflicts": 0 });
        let page = json!({ "is_fine": false, "partitions": 1024, "differing": { "count": 1, "examples": ["partition 3"] },
            "nodes": [{ "name": "n1", "store": store }], "unanswered": [] });
        let Shown { text, trouble } = verify(&page, Format::Table).unwrap();
        assert!(text.contains("1 of 1024 partitions differ") && text.contains("two names: host 5"), "{text}");
        assert!(text.contains("holders differ: partition 3") && trouble.is_some(), "{text}");
    }
}
