//! Where a batch is now: from the agent's spool to the table that has its rows.

use metaflow_actors::{ingester::Found, rows::BatchId, store::Store, underway::Stage};
use metaflow_schema::{TABLES, Table, tables::Partition};
use serde_json::{Map, Value, json};

use super::{Answer, Answered, Arguments, Failure, Topic, ask_store, gather, unanswered};
use crate::{
    config,
    node::{Parts, Running},
};

/// Reads `agent` and `seq`; a seq is one number, or spool generation and counter as `GENERATION:COUNTER`.
fn batch_id(arguments: &Arguments) -> Result<BatchId, Failure> {
    arguments.text("agent")?;
    let agent_id = arguments.number("agent", 0)?;
    let text = arguments.text("seq")?;
    let seq = match text.split_once(':') {
        Some((generation, counter)) => generation
            .parse()
            .ok()
            .zip(counter.parse().ok())
            .map(|(generation, counter)| metaflow_wire::seq(generation, counter)),
        None => text.parse().ok(),
    };
    let seq = seq.ok_or_else(|| {
        Failure::Wrong(format!(
            "seq = {text:?}: write one number, or GENERATION:COUNTER of the agent's spool"
        ))
    })?;
    Ok(BatchId { agent_id, seq })
}

/// What this node knows of a batch. The store is asked where it is this node's own, or where `store` says so.
pub(super) async fn batch(parts: &Parts, arguments: &Arguments) -> Answer {
    let id = batch_id(arguments)?;
    let running = parts.started()?;
    let found = running.ingester.find(id).await.ok_or_else(|| "the node is stopping".to_owned())?;
    let (state, age, reason) = match found {
        Found::Unknown => ("unknown", None, None),
        Found::Logging(age) => ("logging", Some(age), None),
        Found::Logged(age) => (stage(running, id), Some(age), None),
        Found::Committed => ("committed", None, None),
        Found::Refused(reason) => ("refused", None, Some(reason)),
    };
    let table = running.writer.underway.stage(id).and_then(|stage| match stage {
        Stage::Labelling => None,
        Stage::Collecting(table) | Stage::Inserting(table) => {
            Some(format!("{}.{}", table.database, table.name))
        }
    });
    let has_own_store = matches!(parts.config().store, config::Store::Embedded { .. });
    let (stored, store_error) = if has_own_store || arguments.get("store").is_some() {
        match stored(&running.store, id).await {
            Ok(stored) => (stored, None),
            Err(error) => (Map::new(), Some(error)),
        }
    } else {
        (Map::new(), None)
    };
    Ok(json!({
        "state": state,
        "age_seconds": age.map(|age| age.as_secs_f64()),
        "reason": reason,
        "table": table,
        "stored": stored,
        "store_error": store_error,
    }))
}

/// What is being done to a batch that is in the log.
fn stage(running: &Running, id: BatchId) -> &'static str {
    // The writer first: the labeler may not have let go yet.
    match running.writer.underway.stage(id).or_else(|| running.labeler.underway.stage(id)) {
        None => "logged",
        Some(Stage::Labelling) => "labelling",
        Some(Stage::Collecting(_)) => "collecting",
        Some(Stage::Inserting(_)) => "inserting",
    }
}

/// Rows of the batch by table.
async fn stored(store: &Store, id: BatchId) -> Result<Map<String, Value>, String> {
    let tables = || TABLES.into_iter().filter(|table| table.partition != Partition::None);
    let sql = tables().map(|table| count_sql(table, id)).collect::<Vec<_>>().join(" UNION ALL ");
    let rows = ask_store(store, &sql).await?;
    let mut stored = Map::new();
    for row in rows {
        if let [table, count] = row.as_slice()
            && let Ok(count) = count.parse::<u64>()
            && count > 0
        {
            stored.insert(table.clone(), count.into());
        }
    }
    Ok(stored)
}

fn count_sql(table: &Table, BatchId { agent_id, seq }: BatchId) -> String {
    format!(
        "SELECT '{0}.{1}' AS t, count() AS c FROM {0}.`{1}` WHERE agent_id = {agent_id} AND batch_seq = {seq}",
        table.database, table.name
    )
}

/// Asks every node, and says where the batch is.
pub(crate) async fn trace(parts: &Parts, arguments: &Arguments) -> Answer {
    let id = batch_id(arguments)?;
    let mut answers = gather(parts, Topic::Batch, arguments).await?;
    // A store that is shared is asked once.
    let is_shared = matches!(parts.config().store, config::Store::Server { .. });
    let own = answers.iter_mut().find(|answered| answered.node_id == parts.config().node_id);
    if let Some(own) = own.filter(|_| is_shared) {
        let asked = batch(parts, &arguments.clone().with("store", "yes")).await;
        own.answer = asked.map_err(|failure| failure.to_string());
    }
    let agent = Arguments::default().with("agent", id.agent_id);
    let agents = gather(parts, Topic::Agent, &agent).await?;
    let agent = latest(&agents);
    let nodes: Vec<Value> = answers
        .iter()
        .filter_map(|answered| {
            let mut node = answered.answer.as_ref().ok()?.as_object()?.clone();
            node.insert("node_id".to_owned(), answered.node_id.into());
            node.insert("name".to_owned(), answered.name.clone().into());
            Some(node.into())
        })
        .collect();
    let silent = unanswered(&answers);
    Ok(json!({
        "agent_id": id.agent_id,
        "seq": id.seq,
        "generation": id.seq >> 32,
        "counter": id.seq & u64::from(u32::MAX),
        "conclusion": conclusion(&nodes, agent.as_ref(), silent.len()),
        "is_stored": is_stored(&nodes),
        "nodes": nodes,
        "agent": agent,
        "unanswered": silent,
    }))
}

/// What the node says of the agent that heard of it last.
fn latest(answers: &[Answered]) -> Option<Value> {
    let known = answers.iter().filter_map(|answered| answered.answer.as_ref().ok()?["agents"].get(0));
    known.min_by_key(|agent| agent["silent_seconds"].as_u64().unwrap_or(u64::MAX)).cloned()
}

fn is_stored(nodes: &[Value]) -> bool {
    nodes.iter().any(|node| node["stored"].as_object().is_some_and(|stored| !stored.is_empty()))
}

/// One sentence: where the batch is.
fn conclusion(nodes: &[Value], agent: Option<&Value>, silent: usize) -> String {
    let in_state = |state: &str| nodes.iter().find(|node| node["state"] == state);
    let name = |node: &Value| node["name"].as_str().unwrap_or_default().to_owned();
    let age = |node: &Value| format!("{:.1} s", node["age_seconds"].as_f64().unwrap_or(0.0));
    let table = |node: &Value| node["table"].as_str().unwrap_or("its table").to_owned();
    let stored = nodes.iter().find_map(|node| {
        let stored = node["stored"].as_object().filter(|stored| !stored.is_empty())?;
        let tables: Vec<_> = stored.iter().map(|(table, rows)| format!("{rows} rows in {table}")).collect();
        Some(tables.join(", "))
    });
    if let Some(stored) = stored {
        let by =
            in_state("committed").map_or_else(String::new, |node| format!(", brought by {}", name(node)));
        let again = ["inserting", "collecting", "labelling", "logged", "logging"]
            .iter()
            .find_map(|state| in_state(state));
        let again = again.map_or_else(String::new, |node| {
            format!("; {} has it in its log as well, and looks it up before it inserts", name(node))
        });
        return format!("stored: {stored}{by}{again}");
    }
    for (state, what) in
        [("inserting", "in an insert into"), ("collecting", "labelled, and waits for a block of")]
    {
        if let Some(node) = in_state(state) {
            return format!("in the log of {} since {}, {what} {}", name(node), age(node), table(node));
        }
    }
    for (state, what) in [
        ("labelling", "being labelled"),
        ("logged", "waiting to be labelled"),
        ("logging", "being written to it"),
    ] {
        if let Some(node) = in_state(state) {
            return format!("in the log of {} since {}, {what}", name(node), age(node));
        }
    }
    if let Some(node) = in_state("refused") {
        let reason = node["reason"].as_str().unwrap_or_default();
        return format!("refused by {} and lost: {reason}", name(node));
    }
    if let Some(node) = in_state("committed") {
        return format!(
            "stored by {} before, but no table has its rows any more: their time to live is over, or the store was replaced",
            name(node)
        );
    }
    let silent =
        if silent > 0 { format!("; {silent} nodes did not answer and may have it") } else { String::new() };
    let agent = match agent {
        None => "no node knows the agent".to_owned(),
        Some(agent) => {
            let losses = agent["losses"].as_object().filter(|losses| !losses.is_empty());
            let losses = losses.map_or_else(
                || "it reports no loss".to_owned(),
                |losses| {
                    let losses: Vec<_> =
                        losses.iter().map(|(reason, rows)| format!("{reason} {rows}")).collect();
                    format!("it reports lost rows: {}", losses.join(", "))
                },
            );
            format!("the agent's spool holds {} bytes, and {losses}", agent["spool_bytes"])
        }
    };
    format!(
        "not seen by any node that answers{silent}: it is still in the agent's spool, or the agent dropped it ({agent})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_named_by_a_number_or_its_two_halves() {
        let of = |seq: &str| batch_id(&Arguments::default().with("agent", 7).with("seq", seq));
        assert_eq!(of("4294967298").unwrap(), BatchId { agent_id: 7, seq: (1 << 32) + 2 });
        assert_eq!(of("1:2").unwrap(), of("4294967298").unwrap());
        for wrong in ["x", "1:", "1:x", "-1", "99999999999:1"] {
            assert!(of(wrong).unwrap_err().to_string().contains("GENERATION:COUNTER"), "{wrong}");
        }
        assert!(batch_id(&Arguments::default().with("seq", 1)).unwrap_err().to_string().contains("agent"));
    }

    #[test]
    fn one_sentence_says_where_a_batch_is() {
        let node = |state: &str| json!({ "name": "n2", "state": state, "age_seconds": 1.5, "table": "flow_log.l7_flow_log", "stored": {}, "reason": "checksum" });
        let check = |nodes: &[Value], agent: Option<&Value>, silent, expected: &str| {
            let text = conclusion(nodes, agent, silent);
            assert!(text.contains(expected), "{text}");
        };
        check(
            &[node("unknown"), node("inserting")],
            None,
            0,
            "log of n2 since 1.5 s, in an insert into flow_log.l7_flow_log",
        );
        check(&[node("collecting")], None, 0, "waits for a block");
        check(&[node("labelling")], None, 0, "being labelled");
        check(&[node("logged")], None, 0, "waiting to be labelled");
        check(&[node("logging")], None, 0, "being written");
        check(&[node("refused")], None, 0, "refused by n2 and lost: checksum");
        check(&[node("committed")], None, 0, "time to live");
        check(&[node("unknown")], None, 1, "1 nodes did not answer");
        let agent = json!({ "spool_bytes": 9, "losses": { "spool_full": 3 } });
        check(&[node("unknown")], Some(&agent), 0, "holds 9 bytes, and it reports lost rows: spool_full 3");
        let mut stored = node("committed");
        stored["stored"] = json!({ "flow_log.l7_flow_log": 7 });
        check(&[stored.clone()], None, 0, "stored: 7 rows in flow_log.l7_flow_log, brought by n2");
        check(&[stored, node("logged")], None, 0, "looks it up");
    }
}
