//! Names and their ids: how many there are, who holds a name, what an id names.

use metaflow_actors::{
    dictionary::{Dictionary, NodeId},
    placement::partition_of,
};
use metaflow_schema::{enums::Kind, tables::DICTIONARY};
use serde_json::{Value, json};

use super::{Answer, Arguments, Failure, Topic, ask_store, gather, node_name, unanswered};
use crate::node::Parts;

/// Share of a range of ids from which on it is time to think of another node id.
const WARN_SHARE: f64 = 0.5;

pub(super) fn kind(arguments: &Arguments) -> Result<Kind, Failure> {
    let name = arguments.text("kind")?;
    let by_number = || name.parse().ok().and_then(Kind::from_number);
    Kind::ALL.iter().copied().find(|kind| kind.name() == name).or_else(by_number).ok_or_else(|| {
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        Failure::Wrong(format!("there is no kind of name {name:?}; kinds are {}", names.join(", ")))
    })
}

/// Names by kind.
pub(super) fn stats(parts: &Parts) -> Answer {
    let dictionary = &parts.started()?.dictionary;
    let kinds: Vec<Value> = dictionary
        .stats()
        .into_iter()
        .map(|stats| {
            json!({
                "kind": stats.kind.name(),
                "names": stats.names,
                "aliases": stats.aliases,
                "highest_id": stats.highest_id,
                "used_share": stats.used_share(),
                "is_half_used": stats.used_share() >= WARN_SHARE,
                "overflowed": stats.overflowed,
            })
        })
        .collect();
    Ok(json!({
        "kinds": kinds,
        "pending": dictionary.pending(),
        "conflicts": dictionary.conflicts(),
    }))
}

/// The ids of a name that this node knows, the canonical one first.
pub(super) async fn name(parts: &Parts, arguments: &Arguments) -> Answer {
    let (kind, name) = (kind(arguments)?, arguments.text("name")?.to_owned());
    let dictionary = parts.started()?.dictionary.clone();
    let ids = blocking(move || dictionary.ids_of(kind, &name).map_err(|error| error.to_string())).await?;
    let ids: Vec<Value> = ids
        .into_iter()
        .map(|(id, is_stored)| {
            json!({ "id": id, "given_by": NodeId::of(id).map(NodeId::get), "is_stored": is_stored })
        })
        .collect();
    Ok(json!({ "ids": ids }))
}

/// What an id names here and in the store.
pub(super) async fn id(parts: &Parts, arguments: &Arguments) -> Answer {
    let (kind, id) = (kind(arguments)?, arguments.number("id", 0_u32)?);
    let running = parts.started()?;
    let dictionary = running.dictionary.clone();
    let name = blocking(move || dictionary.resolve(kind, id).map_err(|error| error.to_string())).await?;
    let canonical = name.as_ref().and_then(|name| running.dictionary.lookup(kind, name));
    let sql = format!(
        "SELECT DISTINCT hex(name) FROM {}.`{}` WHERE kind = {} AND id = {id} LIMIT 10",
        DICTIONARY.database, DICTIONARY.name, kind as u8
    );
    let stored = ask_store(&running.store, &sql)
        .await
        .map(|rows| rows.iter().filter_map(|row| from_hex(row.first()?)).collect::<Vec<String>>());
    let (stored, store_error) = match stored {
        Ok(names) => (names, None),
        Err(error) => (vec![], Some(error)),
    };
    Ok(json!({ "name": name, "canonical_id": canonical, "stored_names": stored, "store_error": store_error }))
}

/// A name: its partition, who holds that, and the ids that each node knows it by.
pub(crate) async fn lookup(parts: &Parts, arguments: &Arguments) -> Answer {
    let (kind, name) = (kind(arguments)?, arguments.text("name")?);
    let partition = Dictionary::partition(kind, name);
    let guide = parts.started()?.guides.borrow().clone();
    let owners = guide.placement().map(|placement| placement.owners(partition));
    let own = NodeId::new(parts.config().node_id);
    let owner = owners.map_or(own, |owners| owners.owner());
    let replicas: Vec<String> =
        owners.into_iter().flat_map(|owners| owners.replicas()).map(|node| node_name(parts, node)).collect();
    let answers = gather(parts, Topic::DictionaryName, arguments).await?;
    let mut canonical: Option<u64> = None;
    let nodes: Vec<Value> = answers
        .iter()
        .filter_map(|answered| {
            let ids = answered.answer.as_ref().ok()?["ids"].as_array()?.clone();
            let first = ids.first().and_then(|id| id["id"].as_u64());
            canonical = canonical.into_iter().chain(first).min();
            let holds = NodeId::new(answered.node_id)
                .is_some_and(|node| owners.is_none_or(|owners| owners.iter().any(|holder| holder == node)));
            Some(json!({ "node_id": answered.node_id, "name": answered.name, "holds": holds, "ids": ids }))
        })
        .collect();
    Ok(json!({
        "kind": kind.name(),
        "name": name,
        "partition": partition.get(),
        "owner": owner.map(|owner| node_name(parts, owner)),
        "replicas": replicas,
        "canonical_id": canonical,
        "nodes": nodes,
        "unanswered": unanswered(&answers),
    }))
}

/// An id: who gave it, what it names on every node and in the store.
pub(crate) async fn resolve(parts: &Parts, arguments: &Arguments) -> Answer {
    let kind = kind(arguments)?;
    arguments.text("id")?;
    let id = arguments.number("id", 0_u32)?;
    let answers = gather(parts, Topic::DictionaryId, arguments).await?;
    let mut names: Vec<String> = Vec::new();
    let nodes: Vec<Value> = answers
        .iter()
        .filter_map(|answered| {
            let answer = answered.answer.as_ref().ok()?;
            let stored = answer["stored_names"].as_array().into_iter().flatten();
            for name in stored.chain([&answer["name"]]).filter_map(Value::as_str) {
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
            Some(json!({
                "node_id": answered.node_id,
                "name": answered.name,
                "is_known": !answer["name"].is_null(),
                "is_stored": answer["stored_names"].as_array().is_some_and(|names| !names.is_empty()),
                "canonical_id": answer["canonical_id"],
                "store_error": answer["store_error"],
            }))
        })
        .collect();
    let partition = names.first().map(|name| partition_of(kind, name).get());
    Ok(json!({
        "kind": kind.name(),
        "id": id,
        "given_by": NodeId::of(id).map(|node| node_name(parts, node)),
        "names": names,
        "partition": partition,
        "nodes": nodes,
        "unanswered": unanswered(&answers),
    }))
}

/// Runs what blocks for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Failure::Unavailable(error.to_string()))??)
}

/// The store's answers are lines of text; names may hold anything, so they come as digits.
pub(super) fn from_hex(text: &str) -> Option<String> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok());
    String::from_utf8(pairs.collect::<Option<Vec<u8>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_digits() {
        assert_eq!(from_hex("612F0A09C3A9").as_deref(), Some("a/\n\té"));
        for wrong in ["6", "zz", "ff", "é"] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn kinds_are_found_by_name_and_number() {
        let find = |text: &str| kind(&Arguments::default().with("kind", text));
        assert_eq!(find("process").unwrap(), Kind::Process);
        assert_eq!(find("16").unwrap(), Kind::Agent);
        assert!(find("colour").unwrap_err().to_string().contains("pod_ns"));
    }
}
