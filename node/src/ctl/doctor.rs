//! `metaflow ctl doctor`: what is wrong with the nodes, their machines and their stores, and what to do.

use clap::Args;
use serde_json::Value;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, Object, column, document, list, short},
    pages::{Nodes, ask, nodes, objects},
};

const COLUMNS: [Column; 4] =
    [column("NODE", "node"), column("HEALTH", "health"), column("CHECK", "check"), column("FOUND", "found")];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// One node alone, by name or id.
    #[arg(long)]
    node: Option<String>,
    /// Only what is not ok.
    #[arg(long)]
    troubles: bool,
    #[command(flatten)]
    view: View,
}

/// Shows all checks; exit code 3 when one failed or a node did not answer.
pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { node, troubles, view } = arguments;
    view.run(async |format| {
        render(&ask(client, "/v1/doctor", &[("node", node.clone())]).await?, troubles, format)
    })
    .await
}

fn render(page: &Value, troubles: bool, format: Format) -> Result<Shown, Failure> {
    let Nodes { answers, trouble } = nodes(page);
    let mut checks: Vec<Object> = Vec::new();
    for answer in &answers {
        for mut check in objects(answer.get("checks").unwrap_or(&Value::Null)) {
            check.insert("node".to_owned(), answer.get("node").cloned().unwrap_or_default());
            checks.push(check);
        }
    }
    let count = |health: &str| checks.iter().filter(|check| field(check, "health") == health).count();
    let (warned, failed) = (count("warn"), count("fail"));
    checks.retain(|check| !troubles || field(check, "health") != "ok");
    let failed = (failed > 0).then(|| format!("{failed} checks failed"));
    let trouble = trouble.into_iter().chain(failed).reduce(|a, b| format!("{b}; {a}"));
    let text = match format {
        Format::Table | Format::Wide => {
            let wrong = checks.iter().filter(|check| field(check, "health") != "ok");
            let advice: String = wrong
                .map(|check| {
                    format!(
                        "{}: {}: {}\n",
                        field(check, "node"),
                        field(check, "check"),
                        field(check, "advice")
                    )
                })
                .collect();
            let advice = if advice.is_empty() {
                advice
            } else {
                format!("\nWhat to do ({warned} warnings):\n{advice}")
            };
            short(&checks, &COLUMNS, format) + &advice
        }
        Format::Csv => list(&checks, &COLUMNS, format)?,
        Format::Json | Format::Yaml => document(page, format)?,
    };
    Ok(Shown { text, trouble })
}

fn field<'a>(check: &'a Object, name: &str) -> &'a str {
    check.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(health: &str) -> Value {
        let checks = json!([
            { "check": "store", "health": "ok", "found": "it answers", "advice": "" },
            { "check": "disk space", "health": health, "found": "1 MiB is free", "advice": "make room" },
        ]);
        json!({ "nodes": [{ "name": "n1", "answer": { "checks": checks } }] })
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let Shown { text, trouble } = render(&page("fail"), false, Format::Table).unwrap();
        assert!(text.contains("n1    ok      store       it answers"), "{text}");
        assert!(text.ends_with("n1: disk space: make room\n"), "{text}");
        assert_eq!(trouble.as_deref(), Some("1 checks failed"));
        let Shown { text, trouble } = render(&page("warn"), true, Format::Table).unwrap();
        assert!(!text.contains("it answers") && trouble.is_none(), "a warning is no failure: {text}");
        assert!(!render(&page("ok"), false, Format::Table).unwrap().text.contains("What to do"));
    }
}
