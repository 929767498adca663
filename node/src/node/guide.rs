//! What the view of the cluster means for this node: where agents belong, and whether it may name things.
//!
//! The view changes with each word of gossip; the guide only when who does what changes. A node that is alone guides nobody.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use metaflow_actors::{
    dictionary::{Dictionary, NodeId},
    placement::{self, Owners, PartitionId, Placement, shard_of},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::membership::View;

/// Who serves whom, as of one view.
#[derive(Debug, Default)]
pub(crate) struct Guide {
    /// None: a cluster of one.
    placement: Option<Placement>,
    /// Where agents reach the nodes.
    grpc: HashMap<NodeId, SocketAddr>,
    /// Of the own node.
    region: String,
}

/// The guide now and every later one.
pub(crate) type Guides = watch::Receiver<Arc<Guide>>;

#[cfg(test)]
impl Guide {
    /// Ready nodes without zones, at these addresses.
    pub(crate) fn of(nodes: &[(NodeId, SocketAddr)]) -> Self {
        let member = |node_id| placement::Member {
            node_id,
            state: placement::State::Ready,
            eligible: true,
            region: String::new(),
            zone: String::new(),
            weight: 1,
        };
        let members = nodes.iter().map(|(node, _)| member(*node)).collect();
        let grpc = nodes.iter().copied().collect();
        let placement = placement::View { members };
        Basis { placement, grpc, region: String::new(), own_id_is_shared: false }.guide()
    }
}

impl Guide {
    /// The servers of an agent, the preferred first; empty: those of its own configuration. `region` may be empty.
    pub(crate) fn servers(&self, agent_id: u32, region: &str) -> Vec<String> {
        let Some(placement) = &self.placement else { return vec![] };
        let region = if region.is_empty() { &self.region } else { region };
        let servers = placement.servers(region, shard_of(agent_id));
        servers.iter().filter_map(|node| self.grpc.get(&node)).map(SocketAddr::to_string).collect()
    }
}

impl Guide {
    /// The nodes that hold a partition of the dictionary; none in a cluster of one.
    pub(crate) fn owners(&self, partition: PartitionId) -> Owners {
        self.placement.as_ref().map(|placement| placement.owners(partition)).unwrap_or_default()
    }

    /// Who serves whom; none in a cluster of one.
    pub(crate) fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// Of the own node.
    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    /// Every node that can be called, by its id.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, SocketAddr)> {
        let mut nodes: Vec<_> = self.grpc.iter().map(|(node, address)| (*node, *address)).collect();
        nodes.sort_unstable();
        nodes.into_iter()
    }

    /// How many of the agents each node should have, from how many there are in each region; none in a cluster of one.
    pub(crate) fn expected(&self, by_region: &HashMap<String, u64>) -> Option<HashMap<NodeId, f64>> {
        let placement = self.placement.as_ref()?;
        let mut expected: HashMap<NodeId, f64> = HashMap::new();
        for (region, agents) in by_region {
            for load in placement.shard_loads(region) {
                let share = f64::from(load.first) / f64::from(placement::SHARDS);
                *expected.entry(load.node_id).or_default() += *agents as f64 * share;
            }
        }
        Some(expected)
    }
}

/// What of a view the guide depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    placement: placement::View,
    grpc: HashMap<NodeId, SocketAddr>,
    region: String,
    own_id_is_shared: bool,
}

impl Basis {
    fn of(view: &View) -> Self {
        let grpc = view
            .live()
            .filter_map(|member| Some((NodeId::new(member.node_id)?, member.facts.grpc?)))
            .collect();
        let region = view.member(view.own).map(|own| own.facts.region.clone()).unwrap_or_default();
        let own_id_is_shared = view.own_id_is_shared();
        Self { placement: view.placement(), grpc, region, own_id_is_shared }
    }

    fn guide(self) -> Guide {
        let Self { placement, grpc, region, own_id_is_shared: _ } = self;
        let placement = (placement.members.len() > 1).then(|| Placement::new(&placement));
        Guide { placement, grpc, region }
    }
}

/// Follows the view until membership ends or the task is aborted.
pub(super) fn follow(
    mut views: watch::Receiver<Arc<View>>,
    dictionary: Dictionary,
) -> (Guides, JoinHandle<()>) {
    let (sender, guides) = watch::channel(Arc::<Guide>::default());
    let task = tokio::spawn(async move {
        let mut known = None;
        loop {
            let basis = Basis::of(&views.borrow_and_update());
            if known.as_ref() != Some(&basis) {
                dictionary.suspend(basis.own_id_is_shared);
                known = Some(basis.clone());
                match tokio::task::spawn_blocking(|| basis.guide()).await {
                    Ok(guide) => {
                        sender.send_replace(Arc::new(guide));
                    }
                    Err(error) => tracing::error!(%error, "placement failed: agents stay where they are"),
                }
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    });
    (guides, task)
}
