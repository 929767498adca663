//! What must hold: some of it at any moment, all of it some time after the last fault.
//!
//! * I1 an id names one string, on every node and in the store. I2 after healing, one canonical id a string. I3 every stored id resolves.
//! * I5 no batch that was acknowledged, or that an agent still had, is missing. I6 none is stored twice.
//! * I7 nodes with the same view place alike.
//! * I11 answers equal the ledger, whichever node is asked.
//!
//! I8 (agents are served in time) and I10 (nothing moves without a fault) are watched in `run`, I9 (memory) in `world`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use metaflow_cluster_tests::{Value, ledger::LedgerAgent, process::Node, wait_for};

use crate::{agent::Agent, check_ledger};

/// Far longer than it takes to store what waits, and for nodes to compare names.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// Names whose ids are looked up on every node.
const NAMES_MAX: usize = 60;
/// Names that are asked for.
const FILTERS_MAX: usize = 20;
/// Agents whose place is explained: a few of each node.
const PLACED: u32 = 24;
const LOG: (&str, &str) = ("flow_log", "l7_flow_log");

/// Asks nodes, some of which may not answer.
#[derive(Debug, Clone)]
pub struct Observer {
    http: reqwest::Client,
    urls: Vec<String>,
}

impl Observer {
    pub fn new(nodes: &[Node], patience: Duration) -> Result<Self> {
        // Each question by a connection of its own: none is left over from before a cut.
        let http =
            reqwest::Client::builder().timeout(patience).no_proxy().pool_max_idle_per_host(0).build()?;
        Ok(Self { http, urls: nodes.iter().map(Node::http_url).collect() })
    }

    pub async fn page(&self, node: usize, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("{}{path}", self.urls[node])).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "node {node} answers {path} with {status}: {text}");
        text.parse().with_context(|| format!("node {node} answers {path} with {text}"))
    }

    /// What placement depends on, as a node sees it.
    async fn view(&self, node: usize) -> Result<Vec<String>> {
        let page = self.page(node, "/v1/cluster/members").await?;
        let members = page["members"].as_array().context("no members")?;
        Ok(members.iter().map(|it| format!("{} {} {}", it["node_id"], it["state"], it["eligible"])).collect())
    }

    /// I7 at any moment: who saw the same members before and after it was asked has the same answer.
    pub async fn places_alike(&self) -> Result<usize> {
        let mut answers: BTreeMap<Vec<String>, (usize, Vec<String>)> = BTreeMap::new();
        let mut compared = 0;
        for node in 0..self.urls.len() {
            let asked = async {
                let before = self.view(node).await?;
                let page = self.page(node, "/v1/balance").await?;
                ensure!(before == self.view(node).await?, "the view changed meanwhile");
                let spread = if page["now"].is_null() { &page } else { &page["now"] };
                let nodes = spread["nodes"].as_array().with_context(|| format!("no nodes in {page}"))?;
                let shares =
                    nodes.iter().map(|it| format!("{} {} {}", it["node_id"], it["shards"], it["partitions"]));
                let shares: Vec<_> = shares.collect();
                // A member may have come and gone meanwhile: who shares the work is part of what was seen.
                let sharing = nodes.iter().map(|it| format!("{} shares", it["node_id"]));
                anyhow::Ok((before.into_iter().chain(sharing).collect(), shares))
            };
            // Who does not answer, or changes its mind, is asked the next time.
            let Ok((view, shares)): Result<(Vec<String>, Vec<String>)> = asked.await else { continue };
            match answers.get(&view) {
                None => drop(answers.insert(view, (node, shares))),
                Some((other, known)) => {
                    compared += 1;
                    ensure!(
                        shares == *known,
                        "I7: nodes {other} and {node} see {view:?} and share out the work as {known:?} and {shares:?}"
                    );
                }
            }
        }
        Ok(compared)
    }

    /// I1 and I3 at any moment, as far as the nodes that answer know. Says how many answered.
    ///
    /// A statement of the store may read a row before it reads the names that were stored before that row, so an id counts as one
    /// without a name when it has none in the next answer either; `suspects` has those of the last.
    pub async fn names_hold(&self, node: usize, suspects: &mut BTreeSet<String>) -> Result<usize> {
        // A node that is away is no fault of the answer.
        let Ok(page) = self.page(node, "/v1/dictionary/verify?hours=24").await else { return Ok(0) };
        let mut unresolved = BTreeSet::new();
        let nodes = page["nodes"].as_array().context("no nodes")?;
        for answer in nodes {
            let (store, name) = (&answer["store"], &answer["name"]);
            let compared = &store["compared"];
            ensure!(compared["two_names"]["count"] == 0, "I1: {name} says {}", compared["two_names"]);
            ensure!(store["conflicts"] == 0, "I1: {name} was told another name of an id: {store}");
            let examples = store["unresolved"]["examples"].as_array().into_iter().flatten();
            unresolved.extend(examples.map(|example| format!("{name}: {example}")));
            let examples = compared["missing"]["examples"].as_array().into_iter().flatten();
            unresolved.extend(examples.map(|example| format!("{name} lacks in its store {example}")));
        }
        let both: Vec<_> = unresolved.intersection(suspects).collect();
        ensure!(both.is_empty(), "I3: ids without a name: {both:?}");
        *suspects = unresolved;
        Ok(nodes.len())
    }
}

/// What was made, and what is known of it.
pub struct Ledgers<'a> {
    pub agents: &'a [Agent],
    pub rows_a_batch: u32,
    /// Agents that are gone, with what nodes had told them.
    pub gone: &'a [LedgerAgent],
}

/// Everything, with all nodes up and all rows on their way stored. Says how many copies nodes have removed from their stores since they
/// were started.
pub async fn check_end(nodes: &[Node], ledgers: &Ledgers<'_>) -> Result<usize> {
    let observer = Observer::new(nodes, Duration::from_secs(30))?;
    wait_for("every batch to be stored", SETTLES_WITHIN, async || {
        let left: Vec<_> =
            ledgers.agents.iter().filter(|agent| !agent.is_done()).map(|agent| &agent.name).collect();
        ensure!(left.is_empty(), "I5: the spools of {left:?} are not empty");
        for node in nodes {
            let left = node.metric("metaflow_wal_batches").await?;
            ensure!(left == 0.0, "I5: {left} batches are in the log of {}", node.http_url());
        }
        Ok(())
    })
    .await?;
    wait_for("copies in several stores to be found", SETTLES_WITHIN, async || {
        for node in nodes {
            let left = node.metric("metaflow_doubted_batches").await?;
            ensure!(left == 0.0, "I6: {left} batches of {} may have copies", node.http_url());
        }
        anyhow::Ok(())
    })
    .await?;
    let mut removed = 0.0;
    for node in nodes {
        removed += node.metric("metaflow_doubted_batches_removed_total").await?;
        check_rows(node, &observer, ledgers).await.with_context(|| format!("asked {}", node.http_url()))?;
    }
    wait_for("names to agree", SETTLES_WITHIN, async || {
        let page = observer.page(0, "/v1/dictionary/verify?hours=24").await?;
        ensure!(page["is_fine"] == true, "I1, I2, I3: {page}");
        anyhow::Ok(())
    })
    .await?;
    wait_for("one canonical id a name", SETTLES_WITHIN, async || check_ids(&observer, ledgers).await).await?;
    check_places(&observer, nodes.len()).await?;
    Ok(removed as usize)
}

/// The rows of an answer that lacks nothing: of who cannot be asked, an answer says so.
async fn whole(node: &Node, sql: &str) -> Result<Vec<Vec<Value>>> {
    wait_for("an answer that lacks nothing", SETTLES_WITHIN, async || {
        let (status, body) = node.ask(LOG.0, sql).await?;
        ensure!(status == 200 && body.get("missing").is_none(), "{status}: {body}");
        let rows = body["result"]["values"].as_array().context("no values")?;
        anyhow::Ok(rows.iter().map(|row| row.as_array().cloned().unwrap_or_default()).collect())
    })
    .await
}

/// Rows of each batch of an agent that are stored.
async fn batches_of(node: &Node, agent: &str) -> Result<BTreeMap<u64, u64>> {
    let sql = format!(
        "SELECT batch_seq, Count(row) AS stored FROM `{}` WHERE agent = '{agent}' GROUP BY batch_seq LIMIT 1000000",
        LOG.1
    );
    let rows = whole(node, &sql).await?;
    rows.iter().map(|row| Ok((exact(row.first())?, exact(row.get(1))?))).collect()
}

/// Batch numbers are beyond 2^53: they come as text or as exact integers, never through a float.
fn exact(cell: Option<&Value>) -> Result<u64> {
    let cell = cell.context("no number")?;
    cell.as_u64().or_else(|| cell.as_str()?.parse().ok()).with_context(|| format!("{cell} is no number"))
}

/// Where a batch is, for people.
async fn whereabouts(observer: &Observer, agent: &str, seq: u64) -> String {
    let asked = async {
        let page = observer.page(0, &format!("/v1/dictionary/lookup?kind=agent&name={agent}")).await?;
        let ids = &page["nodes"][0]["ids"];
        let id = ids[0]["id"].as_u64().with_context(|| format!("no id in {page}"))?;
        let trace = observer.page(0, &format!("/v1/ingest/trace?agent={id}&seq={seq}")).await?;
        anyhow::Ok(format!(
            "ids of {agent}: {ids}; batch {seq:#x}: {} {}",
            trace["conclusion"], trace["nodes"]
        ))
    };
    asked.await.unwrap_or_else(|error| format!("batch {seq:#x}: {error:#}"))
}

/// I5, I6, I11.
async fn check_rows(node: &Node, observer: &Observer, ledgers: &Ledgers<'_>) -> Result<()> {
    let mut domains: BTreeMap<String, u64> = BTreeMap::new();
    for agent in ledgers.agents {
        let (stored, name) = (batches_of(node, &agent.name).await?, &agent.name);
        check_single(name, &stored, observer, ledgers).await?;
        let (found, made) = (stored.len(), agent.batches as usize);
        if found != made {
            let missing = agent.seqs().find(|seq| !stored.contains_key(seq)).unwrap_or_default();
            let place = whereabouts(observer, name, missing).await;
            bail!("I5: {found} of {made} batches of {name} are stored; {place}");
        }
        for (domain, count) in &agent.domains {
            *domains.entry(domain.clone()).or_default() += count;
        }
    }
    for gone in ledgers.gone {
        let name = gone.machine_id();
        let stored = batches_of(node, name).await?;
        check_single(name, &stored, observer, ledgers).await?;
        check_ledger(gone, &stored, u64::from(ledgers.rows_a_batch))
            .with_context(|| format!("I5: {name}"))?;
    }
    let sql = "SELECT request_domain, Count(row) AS n FROM l7_flow_log GROUP BY request_domain LIMIT 100000";
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    for row in whole(node, sql).await? {
        let name = row[0].as_str().context("a name")?.to_owned();
        ensure!(!name.is_empty(), "I3: rows without the name of their domain: {row:?}");
        let count = exact(row.get(1))?;
        ensure!(answered.insert(name.clone(), count).is_none(), "I2: {name} stands in two groups");
    }
    // Of the agents that are gone it is not known what was stored.
    answered.retain(|name, _| domains.contains_key(name));
    let is_right = |(name, count): &(&String, &u64)| answered.get(*name) == Some(*count);
    let differ: Vec<_> = domains.iter().filter(|known| !is_right(known)).take(5).collect();
    ensure!(differ.is_empty(), "I11: counts by domain differ: {differ:?} are right of {}", domains.len());
    check_filters(node, &answered).await
}

/// I6.
async fn check_single(
    agent: &str,
    stored: &BTreeMap<u64, u64>,
    observer: &Observer,
    ledgers: &Ledgers<'_>,
) -> Result<()> {
    let rows = u64::from(ledgers.rows_a_batch);
    let Some((seq, found)) = stored.iter().find(|(_, found)| **found != rows) else { return Ok(()) };
    let place = whereabouts(observer, agent, *seq).await;
    bail!("I6: batch {seq:#x} of {agent} has {found} rows in the store instead of {rows}; {place}")
}

/// A name that is asked for finds what a grouping found: each store filters by the names that it has.
async fn check_filters(node: &Node, answered: &BTreeMap<String, u64>) -> Result<()> {
    for (name, count) in answered.iter().step_by(answered.len().div_ceil(FILTERS_MAX).max(1)) {
        let sql = format!("SELECT Count(row) FROM l7_flow_log WHERE request_domain = '{name}'");
        let rows = whole(node, &sql).await?;
        let found = exact(rows.first().and_then(|row| row.first()))?;
        ensure!(found == *count, "I11: {found} rows are found by {name}, which has {count}");
    }
    Ok(())
}

/// I2 name by name, and I1 id by id.
async fn check_ids(observer: &Observer, ledgers: &Ledgers<'_>) -> Result<()> {
    let names: BTreeSet<&String> = ledgers.agents.iter().flat_map(|agent| agent.domains.keys()).collect();
    let step = names.len().div_ceil(NAMES_MAX).max(1);
    for name in names.into_iter().step_by(step) {
        let page =
            observer.page(0, &format!("/v1/dictionary/lookup?kind=request_domain&name={name}")).await?;
        let nodes = page["nodes"].as_array().context("no nodes")?;
        ensure!(page["unanswered"].as_array().is_some_and(Vec::is_empty), "{page}");
        let ids = |node: &Value| -> Vec<u64> {
            node["ids"].as_array().into_iter().flatten().filter_map(|id| id["id"].as_u64()).collect()
        };
        let canonical: BTreeSet<u64> = nodes.iter().filter_map(|node| ids(node).first().copied()).collect();
        ensure!(canonical.len() == 1, "I2: {name} has several canonical ids, or none: {page}");
        for id in nodes.iter().flat_map(ids).collect::<BTreeSet<u64>>() {
            let page =
                observer.page(0, &format!("/v1/dictionary/resolve?kind=request_domain&id={id}")).await?;
            ensure!(page["names"] == Value::from(vec![name.as_str()]), "I1: id {id} of {name}: {page}");
        }
    }
    Ok(())
}

/// I7, agent by agent.
async fn check_places(observer: &Observer, nodes: usize) -> Result<()> {
    for agent in 1..=PLACED {
        let mut first = None;
        for node in 0..nodes {
            let page = observer.page(node, &format!("/v1/shard?agent={agent}")).await?;
            let candidates = page["candidates"].as_array().context("no candidates")?;
            let order: Vec<_> =
                candidates.iter().map(|it| format!("{} {}", it["node_id"], it["verdict"])).collect();
            let known = first.get_or_insert_with(|| order.clone());
            ensure!(order == *known, "I7: agent {agent}: node 0 says {known:?}, node {node} {order:?}");
        }
    }
    Ok(())
}

/// I8: a node of the agent's list serves it.
pub async fn is_at_home(observer: &Observer, agent: &str) -> Result<()> {
    let page = observer.page(0, &format!("/v1/shard?agent={agent}")).await?;
    let of_list = |verdict: &Value| ["primary", "fallback", "last resort"].iter().any(|word| verdict == word);
    let candidates = page["candidates"].as_array().context("no candidates")?;
    let list: Vec<_> = candidates.iter().filter(|it| of_list(&it["verdict"])).map(|it| &it["name"]).collect();
    let connected = page["connected_to"].as_array().context("no connections")?;
    ensure!(
        connected.iter().any(|node| list.contains(&node)),
        "{agent} is connected to {connected:?} of {list:?}"
    );
    Ok(())
}
