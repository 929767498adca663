//! Whether names agree: between the nodes that hold a partition, and between a node and its store.
//!
//! What is compared: digests of every partition among its holders (D2: who knows the same entries calls a name alike); every entry with
//! the store's row of it (D1: an id names one string; D3: what a row may use is there); and the ids in stored rows with the store's
//! dictionary (D3). Reading all of it takes a while and some of the store's time, so it is done when somebody asks.

use std::collections::{BTreeMap, HashMap};

use metaflow_actors::{
    dictionary::{Digest, NodeId},
    placement::{PARTITIONS, PartitionId},
    store::Store,
};
use metaflow_schema::{
    Role, TABLES, Table,
    enums::Kind,
    tables::{DICTIONARY, Partition},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Answer, Arguments, Failure, Topic,
    dictionary::{blocking, from_hex},
    gather, node_name, unanswered,
};
use crate::node::{Guide, Parts};

/// Entries compared in one step: a few megabytes of names.
const PAGE_ENTRIES: usize = 20_000;
/// Hours of rows whose ids are looked up, unless more is asked for.
const HOURS_DEFAULT: u32 = 1;
const HOURS_MAX: u32 = 24 * 30;
/// Findings of one sort that are listed; the rest is counted.
const LISTED_MAX: usize = 10;

/// The digests of all partitions, as numbers and hexadecimal hashes.
pub(super) fn digests(parts: &Parts) -> Answer {
    let dictionary = &parts.started()?.dictionary;
    let digests: Vec<_> = PartitionId::all()
        .map(|partition| {
            let Digest { entries, hash } = dictionary.digest(partition);
            (entries, format!("{hash:016x}"))
        })
        .collect();
    Ok(json!({ "partitions": digests }))
}

/// Findings of one sort.
#[derive(Debug, Default, Serialize)]
struct Findings {
    count: u64,
    /// Some of them.
    examples: Vec<String>,
}

impl Findings {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < LISTED_MAX {
            self.examples.push(example());
        }
    }
}

/// A dictionary against a store.
#[derive(Debug, Default, Serialize)]
struct Compared {
    entries: u64,
    /// Entries whose rows are still on their way.
    pending: u64,
    /// D1: an id with two names in the store, or with another one here.
    two_names: Findings,
    /// D3: the store lacks what it has confirmed.
    missing: Findings,
    /// Of other nodes, or of a life that this one does not remember: no error.
    unknown_here: u64,
}

/// An entry as the store has it: the first and the last of its names, which are one.
type Stored = HashMap<(u8, u32), (String, String)>;

impl Compared {
    /// Compares some entries with the rows of the same range.
    fn page(&mut self, entries: &[(metaflow_actors::dictionary::Entry, bool)], mut stored: Stored) {
        for (entry, is_stored) in entries {
            self.entries += 1;
            let key = (entry.kind as u8, entry.id);
            let shown = || format!("{} {}", entry.kind.name(), entry.id);
            match stored.remove(&key) {
                Some((first, last)) if first != last => {
                    self.two_names.add(|| format!("{}: {first:?} and {last:?} in the store", shown()));
                }
                Some((first, _)) if first != entry.name => {
                    self.two_names
                        .add(|| format!("{}: {:?} here, {first:?} in the store", shown(), entry.name));
                }
                Some(_) => {}
                None if *is_stored => self.missing.add(|| format!("{}: {:?}", shown(), entry.name)),
                None => self.pending += 1,
            }
        }
        for ((kind, id), (first, last)) in stored {
            self.unknown_here += 1;
            if first != last {
                self.two_names.add(|| format!("kind {kind}, id {id}: {first:?} and {last:?} in the store"));
            }
        }
    }
}

/// The dictionary of this node against its store, and the ids in the rows of the last hours.
pub(super) async fn store(parts: &Parts, arguments: &Arguments) -> Answer {
    let hours = arguments.number("hours", HOURS_DEFAULT)?;
    if !(1..=HOURS_MAX).contains(&hours) {
        return Err(Failure::Wrong(format!("hours = {hours}: 1 to {HOURS_MAX}")));
    }
    let running = parts.started()?;
    let mut compared = Compared::default();
    let mut after = (0, 0);
    loop {
        let dictionary = running.dictionary.clone();
        let entries = blocking(move || {
            dictionary.entries_after(after, PAGE_ENTRIES).map_err(|error| error.to_string())
        })
        .await?;
        let upto = match entries.last() {
            Some((entry, _)) if entries.len() == PAGE_ENTRIES => (entry.kind as u8, entry.id),
            _ => (u8::MAX, u32::MAX),
        };
        compared.page(&entries, rows(&running.store, after, upto).await?);
        if upto == (u8::MAX, u32::MAX) {
            break;
        }
        after = upto;
    }
    let unresolved = unresolved(&running.store, hours).await?;
    let is_fine = compared.two_names.count == 0 && compared.missing.count == 0 && unresolved.count == 0;
    Ok(json!({
        "is_fine": is_fine && running.dictionary.conflicts() == 0,
        "conflicts": running.dictionary.conflicts(),
        "compared": compared,
        "hours": hours,
        "unresolved": unresolved,
    }))
}

/// The store's entries after one and up to another, in the order of kind and id.
async fn rows(store: &Store, after: (u8, u32), upto: (u8, u32)) -> Result<Stored, Failure> {
    let mut stored = Stored::new();
    let mut after = (u64::from(after.0), u64::from(after.1));
    loop {
        let sql = format!(
            "SELECT kind, id, hex(min(name)), hex(max(name)) FROM {}.`{}` WHERE (kind, id) > ({}, {}) AND (kind, id) <= ({}, {}) \
             GROUP BY kind, id ORDER BY kind, id LIMIT {PAGE_ENTRIES}",
            DICTIONARY.database, DICTIONARY.name, after.0, after.1, upto.0, upto.1
        );
        let rows = store.rows(&sql).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
        for row in &rows {
            let parsed = match row.as_slice() {
                [kind, id, first, last] => kind.parse().ok().zip(id.parse().ok()).zip(
                    // An id that no node of this release can have given is none of its entries.
                    from_hex(first).zip(from_hex(last)),
                ),
                _ => None,
            };
            let Some(((kind, id), names)) = parsed else { continue };
            stored.insert((kind, id), names);
        }
        let last = rows.last().and_then(|row| Some((row.first()?.parse().ok()?, row.get(1)?.parse().ok()?)));
        match last {
            Some(last) if rows.len() == PAGE_ENTRIES => after = last,
            _ => return Ok(stored),
        }
    }
}

/// Ids in the rows of the last hours that the store's dictionary does not know.
async fn unresolved(store: &Store, hours: u32) -> Result<Findings, Failure> {
    let mut found = Findings::default();
    for table in TABLES.iter().filter(|table| table.partition != Partition::None) {
        let Some(sql) = unresolved_sql(table, hours) else { continue };
        let rows = store.rows(&sql).await.map_err(|error| Failure::Unavailable(error.to_string()))?;
        for row in rows {
            let kind = row.first().and_then(|kind| kind.parse().ok()).and_then(Kind::from_number);
            let kind = kind.map_or("?", Kind::name);
            let id = row.get(1).map_or("?", String::as_str);
            found.add(|| format!("{}.{}: {kind} {id}", table.database, table.name));
        }
    }
    Ok(found)
}

/// Every id of every column that refers to the dictionary, without those that it has.
fn unresolved_sql(table: &Table, hours: u32) -> Option<String> {
    let seconds = u64::from(hours) * 3600;
    let parts: Vec<String> = (table.columns)()
        .iter()
        .filter_map(|column| match column.role {
            Role::Dictionary(kind) => Some(format!(
                "SELECT DISTINCT toUInt8({}) AS kind, toUInt64(`{}`) AS id FROM {}.`{}` WHERE time > now() - {seconds}",
                kind as u8, column.name, table.database, table.name
            )),
            _ => None,
        })
        .collect();
    let (database, dictionary) = (DICTIONARY.database, DICTIONARY.name);
    (!parts.is_empty()).then(|| {
        format!(
            "SELECT DISTINCT kind, id FROM ({}) WHERE id != 0 AND (kind, id) NOT IN (SELECT kind, id FROM {database}.`{dictionary}`) \
             ORDER BY kind, id LIMIT 1000",
            parts.join(" UNION ALL ")
        )
    })
}

/// Compares all nodes with each other, and each with its store.
pub(crate) async fn verify(parts: &Parts, arguments: &Arguments) -> Answer {
    let digests = gather(parts, Topic::DictionaryDigests, &Arguments::default()).await?;
    let stores = gather(parts, Topic::DictionaryStore, arguments).await?;
    let guide = parts.started()?.guides.borrow().clone();
    let known: BTreeMap<u16, Vec<Value>> = digests
        .iter()
        .filter_map(|answered| {
            let partitions = answered.answer.as_ref().ok()?["partitions"].as_array()?.clone();
            Some((answered.node_id, partitions))
        })
        .collect();
    let differing = differing(&guide, &known, |node| node_name(parts, node));
    let mut nodes = Vec::new();
    let mut is_fine = differing.count == 0;
    for answered in &stores {
        if let Ok(answer) = &answered.answer {
            is_fine &= answer["is_fine"] == true;
            nodes.push(json!({ "node_id": answered.node_id, "name": answered.name, "store": answer }));
        }
    }
    let mut silent = unanswered(&digests);
    silent.extend(unanswered(&stores).into_iter().filter(|node| !silent.contains(node)).collect::<Vec<_>>());
    Ok(json!({
        "is_fine": is_fine && silent.is_empty(),
        "partitions": PARTITIONS,
        "differing": differing,
        "nodes": nodes,
        "unanswered": silent,
    }))
}

/// Partitions whose holders do not know the same entries. While names are given they differ for a second or two.
fn differing(guide: &Guide, known: &BTreeMap<u16, Vec<Value>>, name: impl Fn(NodeId) -> String) -> Findings {
    let mut findings = Findings::default();
    let Some(placement) = guide.placement() else { return findings };
    for partition in PartitionId::all() {
        let holders: Vec<(NodeId, &Value)> = placement
            .owners(partition)
            .iter()
            .filter_map(|node| Some((node, known.get(&node.get())?.get(partition.index())?)))
            .collect();
        if holders.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            findings.add(|| {
                let each = holders.iter().map(|(node, digest)| format!("{} {}", name(*node), digest[0]));
                format!("partition {}: entries {}", partition.get(), each.collect::<Vec<_>>().join(", "))
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use metaflow_actors::dictionary::Entry;
    use metaflow_schema::tables::L7_FLOW_LOG;

    use super::*;

    fn entry(id: u32, name: &str) -> Entry {
        Entry { kind: Kind::Process, id, name: name.to_owned() }
    }

    #[test]
    fn what_differs_between_node_and_store_is_said_by_sort() {
        let kind = Kind::Process as u8;
        let entries =
            [(entry(1, "a"), true), (entry(2, "b"), true), (entry(3, "c"), true), (entry(4, "d"), false)];
        let stored = [
            ((kind, 1), ("a".to_owned(), "a".to_owned())),
            ((kind, 2), ("x".to_owned(), "x".to_owned())),
            ((kind, 9), ("p".to_owned(), "q".to_owned())),
        ];
        let mut compared = Compared::default();
        compared.page(&entries, stored.into());
        assert_eq!((compared.entries, compared.pending, compared.unknown_here), (4, 1, 1));
        assert_eq!(compared.missing.examples, ["process 3: \"c\""]);
        assert_eq!(compared.two_names.count, 2);
        assert!(compared.two_names.examples[0].contains("\"b\" here, \"x\" in the store"));
    }

    #[test]
    fn holders_that_know_other_entries_are_named() {
        let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let id = |number| NodeId::new(number).unwrap();
        let guide = Guide::of(&[(id(1), address(1)), (id(2), address(2))]);
        let same = vec![json!([3, "ab"]); PARTITIONS.into()];
        let mut other = same.clone();
        other[7] = json!([4, "cd"]);
        let name = |node: NodeId| format!("n{}", node.get());
        let alike = [(1, same.clone()), (2, same.clone())].into();
        assert_eq!(differing(&guide, &alike, name).count, 0);
        let found = differing(&guide, &[(1, same), (2, other)].into(), name);
        assert_eq!(found.count, 1);
        assert!(found.examples[0].starts_with("partition 7: entries ") && found.examples[0].contains("n2 4"));
    }

    #[test]
    fn the_ids_of_every_tag_are_looked_up() {
        let sql = unresolved_sql(&L7_FLOW_LOG, 2).unwrap();
        assert!(sql.contains("`process_id_0`") && sql.contains("`process_id_1`"), "{sql}");
        assert!(sql.contains("now() - 7200") && sql.contains("NOT IN"), "{sql}");
    }
}
