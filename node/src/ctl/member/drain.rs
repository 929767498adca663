//! `metaflow ctl member drain`.

use axum::http::Method;
use serde_json::Value;

use super::{Drain, segment, show};
use crate::ctl::{
    Client, Failure,
    arguments::Progress,
    output::{Column, Format, Object, column, document, short, text},
    print,
};

const MOVES: [Column; 4] = [
    column("TO", "name"),
    column("SHARDS", "shards"),
    column("PARTITIONS", "partitions"),
    column("COPIES", "copies"),
];

pub(super) async fn run(client: &Client, order: Drain) -> Result<(), Failure> {
    let Drain { node, force, dry_run, wait, output } = order;
    let is_dry = dry_run.dry_run;
    let path = format!("/v1/cluster/members/{}/drain?dry_run={is_dry}&force={force}", segment(&node)?);
    let plan: Object = match client.send(Method::POST, &path, None::<&()>).await {
        Err(Failure::Unsafe(reason)) => {
            return Err(Failure::Unsafe(format!("{reason}; --force does it all the same")));
        }
        answer => answer?,
    };
    print(&render(&plan, is_dry, output.format)?)?;
    if is_dry {
        let risks = texts(&plan, "risks").join("; ");
        return if risks.is_empty() || force { Ok(()) } else { Err(Failure::Unsafe(risks)) };
    }
    wait.until(&format!("draining {node}"), async || look(client, &node).await).await
}

/// How far it is.
async fn look(client: &Client, node: &str) -> Result<Progress, Failure> {
    let member = show(client, node).await?;
    let number = |field: &str| member.get(field).and_then(Value::as_u64).unwrap_or(0);
    let state = member.get("state").map(text).unwrap_or_default();
    match state.as_str() {
        "drained" | "left" if number("wal_bytes") == 0 => Ok(Progress::Done),
        "left" => Err(Failure::Degraded(format!(
            "{node} has ended with {} bytes in its log that the store did not take: start it again to have them stored",
            number("wal_bytes")
        ))),
        "dead" => Err(Failure::Degraded(format!("{node} died before it was empty"))),
        _ => Ok(Progress::Unfinished(format!(
            "it is {state}, {} agents are with it, {} bytes in its log",
            number("agents"),
            number("wal_bytes")
        ))),
    }
}

fn texts(plan: &Object, field: &str) -> Vec<String> {
    plan.get(field).and_then(Value::as_array).into_iter().flatten().map(text).collect()
}

fn render(plan: &Object, is_dry: bool, format: Format) -> Result<String, Failure> {
    if matches!(format, Format::Json | Format::Yaml) {
        return document(plan, format);
    }
    let field = |name: &str| plan.get(name).map(text).unwrap_or_default();
    let (name, will) = (field("name"), if is_dry { "would" } else { "will" });
    let mut out = format!(
        "{name}: {} agents {will} move, {} batches ({} bytes) {will} go to the store\n",
        field("agents"),
        field("wal_batches"),
        field("wal_bytes")
    );
    let moves = plan.get("moves").and_then(Value::as_array).into_iter().flatten();
    let moves: Vec<Object> = moves.filter_map(|to| to.as_object().cloned()).collect();
    out += &short(&moves, &MOVES, format);
    for (field, word) in [("notes", "note"), ("risks", "not safe")] {
        for line in texts(plan, field) {
            out += &format!("{word}: {line}\n");
        }
    }
    Ok(out)
}
