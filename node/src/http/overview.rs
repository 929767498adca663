//! The whole cluster on one screen, as the asked node gathers it: what each node says of itself, beside what placement and gossip say of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use axum::{extract::State, http::StatusCode, response::Response};
use futures::future::join_all;
use metaflow_actors::dictionary::NodeId;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Services, api::json, cluster::ask};
use crate::membership::{Member, State as Life, View};

/// Time for a node to say how it is; who is slower is shown with what gossip knows.
const STATUS_WITHIN: Duration = Duration::from_secs(2);
/// What gossip takes to arrive looks like being behind, so up to this no clock is wrong.
const SKEW_MS_MAX: i64 = 2_000;

#[derive(Debug, Serialize)]
struct Overview {
    cluster: String,
    /// The node that was asked.
    node_id: u16,
    nodes_ready: usize,
    agents: u64,
    /// The most agents of a ready node, by weight, in relation to the mean.
    max_over_mean: Option<f64>,
    problems: Vec<String>,
    nodes: Vec<Node>,
}

#[derive(Debug, Serialize)]
struct Node {
    node_id: u16,
    name: String,
    state: &'static str,
    zone: String,
    region: String,
    weight: u8,
    version: String,
    agents: u64,
    /// As placement would have it.
    agents_expected: Option<f64>,
    wal_bytes: u64,
    store_lag_ms: u64,
    skew_ms: Option<i64>,
    /// What the node says of itself; none when it did not answer.
    own: Option<Map<String, Value>>,
}

pub(super) async fn overview(State(services): State<Services>) -> Response {
    let view = Arc::clone(&services.parts.membership().view().borrow());
    let answers = join_all(view.members.iter().map(|member| status_of(&services, member))).await;
    let mut problems: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut nodes = Vec::new();
    for (member, answer) in view.members.iter().zip(answers) {
        let name = member.facts.name.as_str();
        let own = match answer {
            Ok(own) => Some(own),
            // That it is dead is told once, by those that live.
            Err(_) if !member.live => None,
            Err(error) => {
                problems.entry(error).or_default();
                None
            }
        };
        let told = own.iter().filter_map(|own| own.get("problems")?.as_array()).flatten();
        for problem in told.filter_map(Value::as_str) {
            problems.entry(problem.to_owned()).or_default().push(name);
        }
        if let Some(skew) = member.skew_ms.filter(|skew| member.live && skew.abs() > SKEW_MS_MAX) {
            let way = if skew > 0 { "ahead of" } else { "behind" };
            let seconds = skew.unsigned_abs() as f64 / 1e3;
            problems.insert(
                format!("the clock of {name} is {seconds:.1} s {way} that of the asked node"),
                vec![],
            );
        }
        nodes.push(node(member, own));
    }
    if let Ok(running) = services.parts.started() {
        expect(&mut nodes, &view, &running.guides.borrow());
    }
    let overview = Overview {
        cluster: view.cluster.clone(),
        node_id: view.own,
        nodes_ready: nodes.iter().filter(|node| node.state == Life::Ready.name()).count(),
        agents: nodes.iter().map(|node| node.agents).sum(),
        max_over_mean: max_over_mean(&nodes),
        problems: problems.into_iter().map(|(problem, by)| said(problem, &by)).collect(),
        nodes,
    };
    json(StatusCode::OK, &overview)
}

/// A problem, and who sees it.
fn said(problem: String, by: &[&str]) -> String {
    if by.is_empty() { problem } else { format!("{}: {problem}", by.join(", ")) }
}

async fn status_of(services: &Services, member: &Member) -> Result<Map<String, Value>, String> {
    if member.node_id != services.parts.config().node_id {
        return ask(services, member, "/v1/status", STATUS_WITHIN).await;
    }
    match serde_json::to_value(services.parts.status().await) {
        Ok(Value::Object(own)) => Ok(own),
        _ => Err("the status cannot be written".to_owned()),
    }
}

fn node(member: &Member, own: Option<Map<String, Value>>) -> Node {
    let told = |field: &str| own.as_ref()?.get(field)?.as_u64();
    let facts = &member.facts;
    Node {
        node_id: member.node_id,
        name: facts.name.clone(),
        state: member.word(),
        zone: facts.zone.clone(),
        region: facts.region.clone(),
        weight: facts.weight,
        version: facts.version.clone(),
        // What gossip last said of a dead node is no figure of now.
        agents: if member.live { told("agents").unwrap_or(facts.load.agents) } else { 0 },
        agents_expected: None,
        wal_bytes: told("wal_bytes").unwrap_or(facts.load.wal_bytes),
        store_lag_ms: facts.load.store_lag_ms,
        skew_ms: member.skew_ms,
        own,
    }
}

/// Fills in how many agents placement gives to each node.
fn expect(nodes: &mut [Node], view: &View, guide: &crate::node::Guide) {
    let mut by_region: HashMap<String, u64> = HashMap::new();
    for node in nodes.iter() {
        *by_region.entry(node.region.clone()).or_default() += node.agents;
    }
    let Some(expected) = guide.expected(&by_region) else {
        let alone = nodes.iter_mut().find(|node| node.node_id == view.own);
        return alone.into_iter().for_each(|own| own.agents_expected = Some(own.agents as f64));
    };
    for node in nodes {
        let share = NodeId::new(node.node_id).and_then(|node| expected.get(&node));
        node.agents_expected = Some(share.copied().unwrap_or(0.0));
    }
}

fn max_over_mean(nodes: &[Node]) -> Option<f64> {
    let ready = || nodes.iter().filter(|node| node.state == Life::Ready.name());
    let agents: u64 = ready().map(|node| node.agents).sum();
    let weight: f64 = ready().map(|node| f64::from(node.weight)).sum();
    let mean = agents as f64 / weight;
    let most = ready().map(|node| node.agents as f64 / f64::from(node.weight)).fold(0.0, f64::max);
    (mean > 0.0).then(|| most / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node_id: u16, state: &'static str, weight: u8, agents: u64) -> Node {
        Node {
            node_id,
            name: format!("n{node_id}"),
            state,
            zone: String::new(),
            region: String::new(),
            weight,
            version: String::new(),
            agents,
            agents_expected: None,
            wal_bytes: 0,
            store_lag_ms: 0,
            skew_ms: None,
            own: None,
        }
    }

    #[test]
    fn the_fullest_node_is_compared_with_the_mean_by_weight() {
        let nodes = [node(1, "ready", 1, 120), node(2, "ready", 2, 180), node(3, "draining", 1, 1000)];
        assert_eq!(max_over_mean(&nodes), Some(1.2));
        assert_eq!(max_over_mean(&nodes[2..]), None);
        assert_eq!(max_over_mean(&[node(1, "ready", 1, 0)]), None);
    }

    #[test]
    fn a_problem_that_several_see_is_told_once() {
        assert_eq!(said("node 3 is dead".to_owned(), &["n1", "n2"]), "n1, n2: node 3 is dead");
        assert_eq!(said("it".to_owned(), &[]), "it");
    }
}
