//! What placement knows of a cluster: plain data that membership fills in, and the rule by which a node that has just come, or
//! comes and goes, is kept from work. Leaves out how nodes are found and how long they have been heard.

use std::time::Duration;

use crate::dictionary::NodeId;

/// Weights above are cut: a node has at most this many times the share of the smallest one. Virtual nodes grow with the weight.
pub const WEIGHT_MAX: u8 = 16;

/// A node must have been ready for so long before it is given work: a start that fails fails sooner.
const READY_FOR_MIN: Duration = Duration::from_secs(5);
/// Doublings of [`READY_FOR_MIN`]; seven make 640 s, after which an operator has looked.
const DOUBLINGS_MAX: u32 = 7;

/// The members of a cluster as one node sees them. The order means nothing; of two members with one id only one counts, and every
/// node that sees both chooses the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct View {
    pub members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    pub node_id: NodeId,
    pub state: State,
    /// True when it has been ready for long enough, see [`is_eligible`]. A node decides this of itself and publishes it, because
    /// only one clock may decide, or nodes would disagree for as long as their clocks do.
    pub eligible: bool,
    pub region: String,
    /// A zone belongs to its region: zones of one name in two regions are two zones.
    pub zone: String,
    /// Share of the work in relation to others, 1 to [`WEIGHT_MAX`]; what is outside counts as the nearest.
    pub weight: u8,
}

impl Member {
    pub(super) fn weight(&self) -> u8 {
        self.weight.clamp(1, WEIGHT_MAX)
    }
}

/// Where a node is in its life. In this order, so that of two members with one id the ready one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    Ready,
    Starting,
    Draining,
    Drained,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// True when a node that has been ready for `ready_for` may be given work. `flaps` is how often it has lately stopped being ready
/// without having been asked to.
pub fn is_eligible(ready_for: Duration, flaps: u32) -> bool {
    ready_for >= held_back_for(flaps)
}

/// For how long a node is held back after it has become ready: twice as long with each flap, 640 s at most.
pub fn held_back_for(flaps: u32) -> Duration {
    READY_FOR_MIN * (1 << flaps.min(DOUBLINGS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_waits_longer_with_each_flap_up_to_a_bound() {
        let cases = [(0, 5), (1, 10), (2, 20), (6, 320), (7, 640), (8, 640), (u32::MAX, 640)];
        for (flaps, seconds) in cases {
            let wait = Duration::from_secs(seconds);
            assert_eq!(held_back_for(flaps), wait, "{flaps} flaps");
            assert!(is_eligible(wait, flaps), "{flaps} flaps");
            assert!(!is_eligible(wait - Duration::from_millis(1), flaps), "{flaps} flaps");
        }
    }
}
