//! Why an agent is where it is: what became of each member, in the order in which the agent's shard prefers them.

use std::fmt;

use super::{
    Placement, SHARDS, Servers, ShardId, State,
    hash::Point,
    pool,
    ring::{Slot, ring_of},
};
use crate::dictionary::NodeId;

/// Where a shard is and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub servers: Servers,
    /// False when the region has no ready node, so that all regions share its agents.
    pub in_region: bool,
    /// All members, the most preferred first.
    pub candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub node_id: NodeId,
    pub verdict: Verdict,
}

/// What became of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Primary,
    /// Before the primary: it was full, and only the first place is bounded.
    Fallback,
    /// The last resort, from another region.
    LastResort,
    Full,
    /// A more preferred candidate, or the primary, is in its zone, and other zones had nodes.
    ZoneUsed,
    /// The places were taken by more preferred candidates.
    NotNeeded,
    NotReady(State),
    /// Ready for too short a time.
    HeldBack,
    OtherRegion,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Fallback => f.write_str("fallback"),
            Self::LastResort => f.write_str("last resort"),
            Self::Full => f.write_str("full"),
            Self::ZoneUsed => f.write_str("zone already used"),
            Self::NotNeeded => f.write_str("not needed"),
            Self::NotReady(state) => write!(f, "not ready: {}", state.name()),
            Self::HeldBack => f.write_str("held back: ready for too short a time"),
            Self::OtherRegion => f.write_str("other region"),
        }
    }
}

impl Placement {
    /// For `metaflow ctl shard explain`: about a millisecond, so not for the path of a row.
    pub fn explain(&self, region: &str, shard: ShardId) -> Explanation {
        let in_region = self.regions.contains_key(region);
        let servers = self.servers(region, shard);
        let [primary, fallbacks @ .., last_resort] = servers.0;
        let members: Vec<_> = self.members.iter().collect();
        let pool: Vec<_> = pool(&self.members, in_region.then_some(region));
        let ring = ring_of(&members, |_| true);
        let order: Vec<Slot> = ring.order(Point::even(shard.get(), SHARDS)).collect();
        let rank = |id: u16| order.iter().position(|&slot| members[usize::from(slot)].node_id.get() == id);
        let primary_rank = rank(primary);
        let last_rank = fallbacks.iter().filter_map(|&id| rank(id)).max();

        let verdict = |at: usize, slot: Slot| {
            let member = members[usize::from(slot)];
            let id = member.node_id.get();
            match () {
                () if id == primary => Verdict::Primary,
                () if fallbacks.contains(&id) => Verdict::Fallback,
                () if id == last_resort => Verdict::LastResort,
                () if member.state != State::Ready => Verdict::NotReady(member.state),
                () if in_region && member.region != region => Verdict::OtherRegion,
                () if !pool.contains(&member) => Verdict::HeldBack,
                () if Some(at) < primary_rank => Verdict::Full,
                () if Some(at) < last_rank => Verdict::ZoneUsed,
                () => Verdict::NotNeeded,
            }
        };
        let candidates = order
            .iter()
            .enumerate()
            .map(|(at, &slot)| Candidate {
                node_id: members[usize::from(slot)].node_id,
                verdict: verdict(at, slot),
            })
            .collect();
        Explanation { servers, in_region, candidates }
    }
}
