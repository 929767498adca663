//! How evenly the work is spread, and what would move if a node left or joined: placement computed without doing anything.

use metaflow_actors::{
    dictionary::NodeId,
    placement::{
        Load, Member, PARTITIONS, PartitionId, Placement, SHARDS, ShardId, State, View, view::WEIGHT_MAX,
    },
};
use serde::Serialize;

use super::{Answer, Arguments, Failure};
use crate::{membership, node::Parts};

/// What is to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    None,
    /// These nodes are gone.
    Without(Vec<NodeId>),
    /// One more node.
    With {
        weight: u8,
        region: String,
        zone: String,
    },
}

/// How work is spread over nodes.
#[derive(Debug, PartialEq, Serialize)]
struct Spread {
    nodes: Vec<Node>,
    /// The fullest node against the mean, by weight; 1.05 is the bound of a region's shards.
    shards_max_to_mean: f64,
    partitions_max_to_mean: f64,
    /// The same of the agents that are connected now; none when there are none.
    agents_max_to_mean: Option<f64>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Node {
    node_id: u16,
    name: String,
    region: String,
    zone: String,
    weight: u8,
    state: &'static str,
    /// Shards of agents of its own region that it serves first.
    shards: u16,
    /// As many as it may.
    bound: u16,
    /// Of its region's shards, 0 to 1.
    share: f64,
    /// The share that its weight stands for.
    expected_share: f64,
    /// Partitions of the dictionary that it owns.
    partitions: u16,
    /// Connected now, and as many as its share of them stands for.
    agents: u64,
    agents_expected: f64,
}

/// What a change would move.
#[derive(Debug, PartialEq, Serialize)]
struct Moves {
    /// Of the shards of all regions, those whose first node would be another one.
    shards: u64,
    shards_of: u64,
    share: f64,
    /// The least share that must move for the nodes to be even afterwards.
    share_min: f64,
    partitions: u16,
    /// Agents that would go elsewhere, about.
    agents: u64,
}

/// The spread now, and with `without` (nodes, by name or id) or `with` (a node's weight, with `region` and `zone`) the one that would be.
pub(crate) async fn balance(parts: &Parts, arguments: &Arguments) -> Answer {
    let view = parts.membership().view().borrow().clone();
    let change = change(&view, arguments)?;
    let work = move || {
        let now = view.placement();
        let placement = Placement::new(&now);
        let spread = spread(&view, &now, &placement);
        if change == Change::None {
            return serde_json::json!({ "now": spread });
        }
        let then = changed(&now, &change);
        let next = Placement::new(&then);
        let moves = moves(&now, &placement, &then, &next, &spread);
        let then = self::spread(&view, &then, &next);
        serde_json::json!({ "now": spread, "then": then, "moves": moves })
    };
    // Some milliseconds a region, with many nodes more.
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::Unavailable(error.to_string()))
}

fn change(view: &membership::View, arguments: &Arguments) -> Result<Change, Failure> {
    let (without, with) = (arguments.get("without"), arguments.get("with"));
    match (without, with) {
        (Some(_), Some(_)) => Err(Failure::Wrong("ask for without or with, one at a time".to_owned())),
        (None, None) => Ok(Change::None),
        (None, Some(_)) => {
            let weight: u8 = arguments.number("with", 1)?;
            if !(1..=WEIGHT_MAX).contains(&weight) {
                return Err(Failure::Wrong(format!("with = {weight}: a weight is 1 to {WEIGHT_MAX}")));
            }
            let text = |name: &str| arguments.get(name).unwrap_or_default().to_owned();
            Ok(Change::With { weight, region: text("region"), zone: text("zone") })
        }
        (Some(names), None) => {
            let find = |name: &str| {
                let is_it = |member: &&membership::Member| {
                    member.facts.name == name || member.node_id.to_string() == name
                };
                view.members
                    .iter()
                    .find(is_it)
                    .and_then(|member| NodeId::new(member.node_id))
                    .ok_or_else(|| Failure::Wrong(format!("there is no node {name:?}")))
            };
            Ok(Change::Without(names.split(',').map(|name| find(name.trim())).collect::<Result<_, _>>()?))
        }
    }
}

fn changed(view: &View, change: &Change) -> View {
    let mut members = view.members.clone();
    match change {
        Change::None => {}
        Change::Without(nodes) => members.retain(|member| !nodes.contains(&member.node_id)),
        Change::With { weight, region, zone } => {
            let is_free = |node: &NodeId| members.iter().all(|member| member.node_id != *node);
            let free = (1..=NodeId::MAX).filter_map(NodeId::new).find(is_free);
            members.extend(free.map(|node_id| Member {
                node_id,
                state: State::Ready,
                eligible: true,
                region: region.clone(),
                zone: zone.clone(),
                weight: *weight,
            }));
        }
    }
    View { members }
}

fn spread(view: &membership::View, placed: &View, placement: &Placement) -> Spread {
    let of = |loads: &[Load], node: NodeId| loads.iter().find(|load| load.node_id == node).copied();
    let agents_of = |node: NodeId| view.member(node.get()).map_or(0, |member| member.facts.load.agents);
    let agents_all: u64 = placed.members.iter().map(|member| agents_of(member.node_id)).sum();
    let weight_all: f64 = working(placed, placement).map(|member| f64::from(member.weight)).sum();
    let nodes: Vec<Node> = placed
        .members
        .iter()
        .map(|member| {
            let load = of(placement.shard_loads(&member.region), member.node_id);
            let near = working(placed, placement).filter(|other| other.region == member.region);
            let weight: f64 = near.map(|other| f64::from(other.weight)).sum();
            let is_working = load.is_some();
            let part = |of: f64| if is_working && of > 0.0 { f64::from(member.weight) / of } else { 0.0 };
            let name = view
                .member(member.node_id.get())
                .map_or_else(|| "(new)".to_owned(), |known| known.facts.name.clone());
            Node {
                node_id: member.node_id.get(),
                name,
                region: member.region.clone(),
                zone: member.zone.clone(),
                weight: member.weight,
                state: if is_working || member.state != State::Ready {
                    member.state.name()
                } else {
                    "held back"
                },
                shards: load.map_or(0, |load| load.first),
                bound: load.map_or(0, |load| load.capacity),
                share: load.map_or(0.0, |load| f64::from(load.first) / f64::from(SHARDS)),
                expected_share: part(weight),
                partitions: of(placement.partition_loads(), member.node_id).map_or(0, |load| load.first),
                agents: agents_of(member.node_id),
                agents_expected: agents_all as f64 * part(weight_all),
            }
        })
        .collect();
    let ratio = |figure: fn(&Node) -> f64, mean: fn(&Node) -> f64| {
        let working = nodes.iter().filter(|node| mean(node) > 0.0);
        working.map(|node| figure(node) / mean(node)).fold(0.0, f64::max)
    };
    let owned: f64 = nodes.iter().map(|node| f64::from(node.partitions)).sum();
    let partitions_max_to_mean = nodes
        .iter()
        .filter(|node| node.expected_share > 0.0)
        .map(|node| f64::from(node.partitions) / (owned * f64::from(node.weight) / weight_all).max(1.0))
        .fold(0.0, f64::max);
    Spread {
        shards_max_to_mean: ratio(|node| node.share, |node| node.expected_share),
        partitions_max_to_mean,
        agents_max_to_mean: (agents_all > 0)
            .then(|| ratio(|node| node.agents as f64, |node| node.agents_expected)),
        nodes,
    }
}

/// The members that are given work.
fn working<'a>(view: &'a View, placement: &'a Placement) -> impl Iterator<Item = &'a Member> {
    view.members.iter().filter(|member| {
        placement.shard_loads(&member.region).iter().any(|load| load.node_id == member.node_id)
    })
}

fn moves(view: &View, now: &Placement, then_view: &View, then: &Placement, spread: &Spread) -> Moves {
    let regions: Vec<&str> = now.regions().collect();
    let moved_of = |region: &str| {
        let differs =
            |shard: &ShardId| now.servers(region, *shard).primary() != then.servers(region, *shard).primary();
        ShardId::all().filter(differs).count() as u64
    };
    let moved: Vec<u64> = regions.iter().map(|region| moved_of(region)).collect();
    let agents = regions.iter().zip(&moved).map(|(region, moved)| {
        let there = spread.nodes.iter().filter(|node| node.region == *region);
        let agents: u64 = there.map(|node| node.agents).sum();
        agents as f64 * *moved as f64 / f64::from(SHARDS)
    });
    let shards_of = regions.len() as u64 * u64::from(SHARDS);
    let shards: u64 = moved.iter().sum();
    // Who leaves gives away all that it had, who comes takes the share of its weight.
    let weight = |view: &View| -> f64 { view.members.iter().map(|member| f64::from(member.weight)).sum() };
    let (before, after) = (weight(view), weight(then_view));
    let largest = before.max(after);
    let share_min = if largest > 0.0 { (before - after).abs() / largest } else { 0.0 };
    let partitions =
        PartitionId::all().filter(|id| now.owners(*id).owner() != then.owners(*id).owner()).count();
    Moves {
        agents: agents.sum::<f64>().round() as u64,
        shards,
        shards_of,
        share: if shards_of > 0 { shards as f64 / shards_of as f64 } else { 0.0 },
        share_min,
        partitions: u16::try_from(partitions).unwrap_or(PARTITIONS),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::membership::Facts;

    /// Ready nodes with these weights, each with ten agents a unit of weight.
    fn view(weights: &[u8]) -> membership::View {
        let member = |(at, weight): (usize, &u8)| {
            let node_id = u16::try_from(at + 1).unwrap();
            let mut facts = Facts {
                name: format!("n{node_id}"),
                weight: *weight,
                eligible: true,
                state: membership::State::Ready,
                ..Facts::default()
            };
            facts.load.agents = u64::from(*weight) * 10;
            membership::Member {
                node_id,
                gossip: SocketAddr::from((Ipv4Addr::LOCALHOST, node_id)),
                generation: 1,
                facts,
                live: true,
                ready_since: None,
                flaps: 0,
                skew_ms: None,
            }
        };
        let members = weights.iter().enumerate().map(member).collect();
        membership::View { cluster: String::new(), own: 1, members, duplicates: vec![] }
    }

    fn tried(weights: &[u8], arguments: &[(&str, &str)]) -> Result<(Spread, Spread, Moves), Failure> {
        let view = view(weights);
        let arguments =
            arguments.iter().fold(Arguments::default(), |all, (name, value)| all.with(name, value));
        let change = change(&view, &arguments)?;
        let now = view.placement();
        let then = changed(&now, &change);
        let (placement, next) = (Placement::new(&now), Placement::new(&then));
        let before = spread(&view, &now, &placement);
        let moves = moves(&now, &placement, &then, &next, &before);
        Ok((before, spread(&view, &then, &next), moves))
    }

    #[test]
    fn shares_follow_weights_and_sum_up() {
        let (now, ..) = tried(&[1, 2, 1], &[]).unwrap();
        let shares: f64 = now.nodes.iter().map(|node| node.share).sum();
        assert!((shares - 1.0).abs() < 1e-9);
        assert_eq!(now.nodes[1].expected_share, 0.5);
        assert!((now.nodes[1].share - 0.5).abs() < 0.03, "{now:?}");
        assert!(now.shards_max_to_mean <= 1.06 && now.shards_max_to_mean >= 1.0, "{now:?}");
        assert_eq!(now.agents_max_to_mean, Some(1.0));
        assert!(now.nodes.iter().all(|node| node.shards <= node.bound));
    }

    #[test]
    fn a_leave_and_a_join_are_tried_without_doing_them() {
        let (now, then, moves) = tried(&[1; 4], &[("without", "n2")]).unwrap();
        assert_eq!((now.nodes.len(), then.nodes.len()), (4, 3));
        assert!(moves.shards >= u64::from(now.nodes[1].shards), "{moves:?}");
        assert_eq!((moves.share_min, moves.shards_of), (0.25, u64::from(SHARDS)));
        assert!(moves.share < 1.3 * 0.25, "{moves:?}");
        let (_, then, moves) = tried(&[1; 3], &[("with", "1")]).unwrap();
        assert_eq!((then.nodes[3].name.as_str(), moves.share_min), ("(new)", 0.25));
        assert!(moves.share < 1.3 * 0.25 && moves.agents > 3 && moves.partitions > 0, "{moves:?}");
    }

    #[test]
    fn what_cannot_be_tried_is_refused_by_name() {
        for (arguments, part) in [
            (&[("without", "n9")][..], "n9"),
            (&[("with", "17")], "1 to 16"),
            (&[("with", "x")], "not a number"),
            (&[("with", "1"), ("without", "n1")], "one at a time"),
        ] {
            let error = tried(&[1, 1], arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_empty_cluster_is_no_division_by_zero() {
        let (now, then, moves) = tried(&[1], &[("without", "1")]).unwrap();
        assert_eq!((now.nodes[0].share, then.nodes.len(), moves.share), (1.0, 0, 1.0));
        assert_eq!(then.shards_max_to_mean, 0.0);
    }
}
