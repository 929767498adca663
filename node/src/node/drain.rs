//! Emptying a node: what would go where, whether that is safe, and the wait until its agents are gone.
//!
//! The plan is pure: it compares placement as it is with placement without the node. A signal drains without a plan, since whoever sends
//! it has decided.

use std::{collections::BTreeMap, time::Duration};

use metaflow_actors::{
    dictionary::NodeId,
    placement::{self, PartitionId, Placement, ShardId},
};
use serde::Serialize;
use tokio::time::Instant;

use super::Running;
use crate::membership::{Member, Membership, State, View};

/// Between two looks at how many agents are left.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What draining a node would do.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Plan {
    node_id: u16,
    name: String,
    /// Connected now.
    agents: u64,
    wal_bytes: u64,
    wal_batches: u64,
    /// Who takes over what.
    moves: Vec<Move>,
    /// Why it would not be safe.
    pub(crate) risks: Vec<String>,
    /// What an operator may want to know besides.
    notes: Vec<String>,
}

/// What one node would get.
#[derive(Debug, PartialEq, Serialize)]
struct Move {
    node_id: u16,
    name: String,
    /// Shards of agents of all regions.
    shards: usize,
    /// Partitions of the dictionary that it would own.
    partitions: usize,
    /// Partitions of which it would hold a copy that it does not hold now.
    copies: usize,
}

/// What the node itself knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) agents: u64,
    pub(crate) wal_bytes: u64,
    pub(crate) wal_batches: u64,
    pub(crate) store_answers: bool,
    /// Its rows are on its own disk.
    pub(crate) store_is_embedded: bool,
}

/// What draining the view's own node would do. Computes placement twice, so it takes some milliseconds.
pub(crate) fn plan(view: &View, standing: Standing) -> Plan {
    let Standing { agents, wal_bytes, wal_batches, .. } = standing;
    let name = view.member(view.own).map(|own| own.facts.name.clone()).unwrap_or_default();
    Plan {
        node_id: view.own,
        name,
        agents,
        wal_bytes,
        wal_batches,
        moves: moves(view),
        risks: risks(view, standing),
        notes: notes(view, standing),
    }
}

/// Members that would go on serving.
fn others_ready(view: &View) -> Vec<&Member> {
    view.live().filter(|member| member.node_id != view.own && member.facts.state == State::Ready).collect()
}

fn risks(view: &View, standing: Standing) -> Vec<String> {
    let mut risks = Vec::new();
    let others = others_ready(view);
    let region = view.member(view.own).map(|own| own.facts.region.as_str()).unwrap_or_default();
    match others.as_slice() {
        [] => risks.push("it is the last ready node: its agents would have none to go to".to_owned()),
        [one] => risks.push(format!(
            "only node {} would be left ready: its part of the dictionary would have no replica",
            one.facts.name
        )),
        others if others.iter().all(|other| other.facts.region != region) => {
            risks.push(format!(
                "it is the last ready node of region {region:?}: its agents would leave the region"
            ));
        }
        _ => {}
    }
    if !standing.store_answers {
        risks.push(format!(
            "the store does not answer: {} batches would stay in the log on its disk",
            standing.wal_batches
        ));
    }
    risks
}

fn notes(view: &View, standing: Standing) -> Vec<String> {
    let mut notes = Vec::new();
    if view.member(view.own).is_some_and(|own| own.facts.state == State::Draining) {
        notes.push("it is draining already".to_owned());
    }
    if standing.store_is_embedded {
        notes.push(
            "its store is embedded: what is stored on it cannot be queried while it is away".to_owned(),
        );
    }
    if others_ready(view).len() == 2 {
        notes.push(
            "two nodes would be left: names would have one replica until another node comes".to_owned(),
        );
    }
    notes
}

fn moves(view: &View) -> Vec<Move> {
    let Some(own) = NodeId::new(view.own) else { return vec![] };
    let before = view.placement();
    let mut after = before.clone();
    for member in after.members.iter_mut().filter(|member| member.node_id == own) {
        member.state = placement::State::Draining;
    }
    let (before, after) = (Placement::new(&before), Placement::new(&after));
    let mut moves: BTreeMap<NodeId, Move> = BTreeMap::new();
    let mut give = |node: NodeId, add: fn(&mut Move)| {
        let name = view.member(node.get()).map(|member| member.facts.name.clone()).unwrap_or_default();
        let none = || Move { node_id: node.get(), name, shards: 0, partitions: 0, copies: 0 };
        add(moves.entry(node).or_insert_with(none));
    };
    for region in before.regions() {
        for shard in ShardId::all().filter(|shard| before.servers(region, *shard).primary() == Some(own)) {
            if let Some(node) = after.servers(region, shard).primary() {
                give(node, |gets| gets.shards += 1);
            }
        }
    }
    for partition in PartitionId::all() {
        let (had, has) = (before.owners(partition), after.owners(partition));
        if had.owner() == Some(own)
            && let Some(node) = has.owner()
        {
            give(node, |gets| gets.partitions += 1);
        }
        for node in has.iter().filter(|node| had.iter().all(|holder| holder != *node)) {
            give(node, |gets| gets.copies += 1);
        }
    }
    moves.into_values().collect()
}

/// Waits until no agent is connected, at most `within`; agents move by themselves once they are told. Without another ready node they
/// have nowhere to go, and nothing is waited for.
pub(super) async fn agents_gone(running: &Running, membership: &Membership, within: Duration) {
    if others_ready(&membership.view().borrow()).is_empty() {
        return;
    }
    let deadline = Instant::now() + within;
    loop {
        let left = running.sessions.count().max(running.streams.open());
        if left == 0 {
            return tracing::info!("all agents have moved to other nodes");
        }
        if Instant::now() >= deadline {
            return tracing::warn!(
                left,
                "not all agents moved in time: they are cut off and go by themselves"
            );
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::membership::Facts;

    /// Nodes 1 to `size`, ready, in zones of their own, seen by node 1.
    fn view(size: u16, change: impl Fn(&mut Member)) -> View {
        let members = (1..=size).map(|node_id| {
            let facts = Facts {
                name: format!("n{node_id}"),
                zone: format!("z{node_id}"),
                state: State::Ready,
                eligible: true,
                ..Facts::default()
            };
            let mut member = Member {
                node_id,
                gossip: SocketAddr::from(([127, 0, 0, 1], node_id)),
                generation: 1,
                facts,
                live: true,
                ready_since: None,
                flaps: 0,
                skew_ms: None,
            };
            change(&mut member);
            member
        });
        View { cluster: "test".to_owned(), own: 1, members: members.collect(), duplicates: vec![] }
    }

    const WELL: Standing =
        Standing { agents: 7, wal_bytes: 0, wal_batches: 0, store_answers: true, store_is_embedded: false };

    #[test]
    fn all_that_the_node_has_goes_to_the_others() {
        let plan = plan(&view(4, |_| {}), WELL);
        let sum = |what: fn(&Move) -> usize| plan.moves.iter().map(what).sum::<usize>();
        assert_eq!(plan.moves.iter().map(|to| to.node_id).collect::<Vec<_>>(), [2, 3, 4]);
        let share = usize::from(placement::SHARDS) / 4;
        assert!((share * 9 / 10..=share * 11 / 10).contains(&sum(|to| to.shards)), "{plan:?}");
        let owned = usize::from(placement::PARTITIONS) / 4;
        assert!((owned * 9 / 10..=owned * 11 / 10).contains(&sum(|to| to.partitions)), "{plan:?}");
        // Three of four nodes hold each partition: those that this one held get another holder.
        assert!(sum(|to| to.copies) >= owned * 2, "{plan:?}");
        assert_eq!((plan.risks.len(), plan.notes.len(), plan.agents), (0, 0, 7));
    }

    #[test]
    fn what_is_not_safe_is_named() {
        let check = |view: &View, standing: Standing, parts: &[&str]| {
            let risks = plan(view, standing).risks;
            assert_eq!(risks.len(), parts.len(), "{risks:?}");
            for (risk, part) in risks.iter().zip(parts) {
                assert!(risk.contains(part), "{risk}");
            }
        };
        check(&view(3, |_| {}), WELL, &[]);
        check(&view(1, |_| {}), WELL, &["last ready node"]);
        check(&view(2, |_| {}), WELL, &["only node n2"]);
        let one_is_dead = view(3, |member| member.live = member.node_id != 3);
        check(&one_is_dead, WELL, &["only node n2"]);
        let one_drains = view(3, |member| {
            if member.node_id == 2 {
                member.facts.state = State::Draining;
            }
        });
        check(&one_drains, WELL, &["only node n3"]);
        let regions = view(3, |member| member.facts.region = format!("r{}", member.node_id.min(2)));
        check(&regions, WELL, &["region \"r1\""]);
        let stuck = Standing { store_answers: false, wal_batches: 12, ..WELL };
        check(&view(3, |_| {}), stuck, &["12 batches"]);
    }
}
