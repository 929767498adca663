//! What an operator may ask about the inside of the cluster, through any node: why an agent is where it is, where a batch is, whether
//! names agree, what is wrong with a machine, what happened lately.
//!
//! A [`Topic`] is what a node can say of itself alone. The node that is asked answers for itself, asks the others over `NodeService`, and
//! joins the answers; who does not answer is named with the reason, and nothing waits long for it. Answers are JSON as the HTTP interface
//! shows it. Leaves out: how it is shown (`ctl`), and who may ask (`http/guard`, the cluster's secret).

mod agent;
mod balance;
mod dictionary;
mod doctor;
mod log;
mod shard;
mod trace;
mod verify;
mod wal;

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use metaflow_actors::{dictionary::NodeId, store::Store};
use serde_json::{Value, json};

use crate::{membership::Member, node::Parts};

pub(crate) use balance::balance;
pub(crate) use dictionary::{lookup, resolve};
pub(crate) use shard::explain;
pub(crate) use trace::trace;
pub(crate) use verify::verify;

/// Time for another node to answer: it may read its whole dictionary or ask its store.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Time for a store to answer a small question: one that hangs must not hide what the node itself knows.
const STORE_WITHIN: Duration = Duration::from_secs(4);
/// Longest text of a question.
const ARGUMENT_BYTES_MAX: usize = 4_096;

/// What a node can be asked about itself. Names go over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    /// One agent: whether it is known and connected.
    Agent,
    /// One batch.
    Batch,
    /// Names by kind.
    DictionaryStats,
    /// What is known of every partition, to compare.
    DictionaryDigests,
    /// The ids of a name.
    DictionaryName,
    /// The name of an id.
    DictionaryId,
    /// The dictionary against the store.
    DictionaryStore,
    Doctor,
    Events,
    Logs,
    Metrics,
    Settings,
    Wal,
}

impl Topic {
    const ALL: [Self; 13] = [
        Self::Agent,
        Self::Batch,
        Self::DictionaryStats,
        Self::DictionaryDigests,
        Self::DictionaryName,
        Self::DictionaryId,
        Self::DictionaryStore,
        Self::Doctor,
        Self::Events,
        Self::Logs,
        Self::Metrics,
        Self::Settings,
        Self::Wal,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Batch => "batch",
            Self::DictionaryStats => "dictionary_stats",
            Self::DictionaryDigests => "dictionary_digests",
            Self::DictionaryName => "dictionary_name",
            Self::DictionaryId => "dictionary_id",
            Self::DictionaryStore => "dictionary_store",
            Self::Doctor => "doctor",
            Self::Events => "events",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
            Self::Settings => "settings",
            Self::Wal => "wal",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The question.
    #[error("{0}")]
    Wrong(String),
    /// The node or its store.
    #[error("{0}")]
    Unavailable(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Unavailable(reason)
    }
}

type Answer = Result<Value, Failure>;

/// What a question is about; empty values count as missing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arguments(BTreeMap<String, String>);

impl Arguments {
    pub(crate) fn new(arguments: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(arguments.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A text that must be there.
    fn text(&self, name: &str) -> Result<&str, Failure> {
        let text =
            self.get(name).ok_or_else(|| Failure::Wrong(format!("the parameter {name} is missing")))?;
        if text.len() > ARGUMENT_BYTES_MAX {
            return Err(Failure::Wrong(format!("{name} is longer than {ARGUMENT_BYTES_MAX} bytes")));
        }
        Ok(text)
    }

    /// A number that may be missing.
    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, Failure> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse()
            .map_err(|_| Failure::Wrong(format!("{name} = {text:?} is not a number that can be meant")))
    }
}

/// What this node says of itself.
pub(crate) async fn answer(parts: &Parts, topic: Topic, arguments: &Arguments) -> Answer {
    match topic {
        Topic::Agent => agent::agent(parts, arguments).await,
        Topic::Batch => trace::batch(parts, arguments).await,
        Topic::DictionaryStats => dictionary::stats(parts),
        Topic::DictionaryDigests => verify::digests(parts),
        Topic::DictionaryName => dictionary::name(parts, arguments).await,
        Topic::DictionaryId => dictionary::id(parts, arguments).await,
        Topic::DictionaryStore => verify::store(parts, arguments).await,
        Topic::Doctor => doctor::examine(parts).await,
        Topic::Events => log::events(parts, arguments),
        Topic::Logs => log::lines(arguments),
        Topic::Metrics => Ok(Value::String(parts.metrics_text()?)),
        Topic::Settings => Ok(log::settings(parts)),
        Topic::Wal => wal::status(parts).await,
    }
}

/// A node's answer, or why there is none.
pub(crate) struct Answered {
    pub(crate) node_id: u16,
    pub(crate) name: String,
    pub(crate) answer: Result<Value, String>,
}

impl Answered {
    fn json(self) -> Value {
        let Self { node_id, name, answer } = self;
        match answer {
            Ok(answer) => json!({ "node_id": node_id, "name": name, "answer": answer }),
            Err(reason) => json!({ "node_id": node_id, "name": name, "unanswered": reason }),
        }
    }
}

/// The nodes that did not answer, for answers that are made of several.
fn unanswered(answers: &[Answered]) -> Vec<Value> {
    let silent = answers.iter().filter_map(|answered| Some((answered, answered.answer.as_ref().err()?)));
    silent
        .map(|(answered, reason)| {
            json!({ "node_id": answered.node_id, "name": answered.name, "reason": reason })
        })
        .collect()
}

/// Every node's answer, side by side; with the argument `node`, of one of them.
pub(crate) async fn of_cluster(parts: &Parts, topic: Topic, arguments: &Arguments) -> Answer {
    let answers = gather(parts, topic, arguments).await?;
    let nodes: Vec<Value> = answers.into_iter().map(Answered::json).collect();
    Ok(json!({ "nodes": nodes }))
}

/// Asks this node and every other, by node id.
async fn gather(parts: &Parts, topic: Topic, arguments: &Arguments) -> Result<Vec<Answered>, Failure> {
    let view = parts.membership().view().borrow().clone();
    let wanted = arguments.get("node");
    let is_wanted = |member: &&Member| {
        wanted.is_none_or(|node| member.facts.name == node || member.node_id.to_string() == node)
    };
    // Who left is no part of the cluster any more, and has nothing to say.
    let members: Vec<_> =
        view.members.iter().filter(is_wanted).filter(|member| member.word() != "left").collect();
    if members.is_empty() {
        let names: Vec<_> = view.members.iter().map(|member| member.facts.name.as_str()).collect();
        return Err(Failure::Wrong(format!(
            "there is no node {:?}; the nodes are {}",
            wanted.unwrap_or_default(),
            names.join(", ")
        )));
    }
    let asked = members.into_iter().map(async |member| {
        let answer = if member.node_id == view.own {
            let answering = tokio::time::timeout(ANSWER_WITHIN, answer(parts, topic, arguments));
            let late = || format!("no answer came within {} s", ANSWER_WITHIN.as_secs());
            match answering.await {
                Ok(Ok(answer)) => Ok(answer),
                // A wrong question is wrong everywhere.
                Ok(Err(wrong @ Failure::Wrong(_))) => return Err(wrong),
                Ok(Err(failure)) => Err(failure.to_string()),
                Err(_) => Err(late()),
            }
        } else {
            ask(parts, member, topic, arguments).await
        };
        Ok(Answered { node_id: member.node_id, name: member.facts.name.clone(), answer })
    });
    join_all(asked).await.into_iter().collect()
}

/// Asks another node.
async fn ask(parts: &Parts, member: &Member, topic: Topic, arguments: &Arguments) -> Result<Value, String> {
    if !member.live {
        return Err("it is dead: nothing was heard of it lately".to_owned());
    }
    let address = member.facts.grpc.ok_or("it does not say where it can be asked")?;
    let peers = &parts.started()?.peers;
    peers.inspect(address, topic.name(), &arguments.0, ANSWER_WITHIN).await
}

/// A small question to the store of this node.
async fn ask_store(store: &Store, sql: &str) -> Result<Vec<Vec<String>>, String> {
    match tokio::time::timeout(STORE_WITHIN, store.rows(sql)).await {
        Ok(rows) => rows.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the store gave no answer within {} s", STORE_WITHIN.as_secs())),
    }
}

/// What people call a node.
fn node_name(parts: &Parts, node: NodeId) -> String {
    let view = parts.membership().view().borrow().clone();
    view.member(node.get()).map_or_else(|| format!("node {}", node.get()), |member| member.facts.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_have_one_name_each() {
        for topic in Topic::ALL {
            assert_eq!(Topic::from_name(topic.name()), Some(topic));
        }
        assert_eq!(Topic::from_name("shadow"), None);
    }

    #[test]
    fn arguments_that_are_missing_or_wrong_are_named() {
        let arguments =
            Arguments::new([("a", "1"), ("b", ""), ("c", "x")].map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(arguments.text("a").unwrap(), "1");
        assert!(arguments.text("b").unwrap_err().to_string().contains("parameter b"));
        assert_eq!(arguments.number("a", 7_u32).unwrap(), 1);
        assert_eq!(arguments.number("b", 7_u32).unwrap(), 7);
        assert!(arguments.number("c", 7_u32).unwrap_err().to_string().contains("c = \"x\""));
        let long = Arguments::default().with("a", "x".repeat(ARGUMENT_BYTES_MAX + 1));
        assert!(long.text("a").is_err());
    }
}
