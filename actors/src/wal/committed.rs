//! Which batches are known to be in the store: ranges of numbers for each agent and spool generation. Pure.
//!
//! Saves a lookup when an agent sends again what it does not know to be stored. To forget is harmless, to claim too much would lose rows:
//! so a gap is never closed by guessing, and what exceeds the bounds is forgotten.

use std::collections::{BTreeMap, HashMap};

use crate::rows::BatchId;

/// Gaps come from batches that an agent dropped or sent elsewhere; beyond this many the oldest ranges are forgotten.
const RANGES_MAX: usize = 64;
/// An agent begins a generation when it loses its spool: the previous one may still be sent again, older ones hardly.
const GENERATIONS_MAX: usize = 4;
/// Agents that one node may see; 100,000 is the largest cluster.
const AGENTS_MAX: usize = 1 << 17;

/// First and last number of each range, in order, none touching another.
type Ranges = BTreeMap<u32, u32>;

#[derive(Debug, Default)]
pub(crate) struct Committed {
    agents: HashMap<u32, BTreeMap<u32, Ranges>>,
}

impl Committed {
    pub(crate) fn contains(&self, id: BatchId) -> bool {
        let (generation, counter) = parts(id.seq);
        self.agents
            .get(&id.agent_id)
            .and_then(|generations| generations.get(&generation))
            .and_then(|ranges| ranges.range(..=counter).next_back())
            .is_some_and(|(_, last)| counter <= *last)
    }

    /// Adds a batch; the answer is the record to keep.
    pub(crate) fn insert(&mut self, id: BatchId) -> Option<(Vec<u8>, Vec<u8>)> {
        let (generation, counter) = parts(id.seq);
        if !self.agents.contains_key(&id.agent_id) && self.agents.len() >= AGENTS_MAX {
            return None;
        }
        let generations = self.agents.entry(id.agent_id).or_default();
        let ranges = generations.entry(generation).or_default();
        add(ranges, counter);
        while ranges.len() > RANGES_MAX {
            ranges.pop_first();
        }
        let record = (key(id.agent_id, generation), encode(ranges));
        while generations.len() > GENERATIONS_MAX {
            generations.pop_first();
        }
        Some(record)
    }

    /// Takes up a record of a previous run; damaged ones are passed over, which is harmless.
    pub(crate) fn load(&mut self, key: &[u8], value: &[u8]) {
        let Some((agent_id, rest)) = key.split_first_chunk() else { return };
        let Ok(generation) = <[u8; 4]>::try_from(rest) else { return };
        if self.agents.len() >= AGENTS_MAX {
            return;
        }
        let ranges: Ranges = value
            .chunks_exact(8)
            .take(RANGES_MAX)
            .filter_map(|chunk| {
                let (first, last) = chunk.split_first_chunk::<4>()?;
                Some((u32::from_be_bytes(*first), u32::from_be_bytes(last.try_into().ok()?)))
            })
            .collect();
        let generations = self.agents.entry(u32::from_be_bytes(*agent_id)).or_default();
        generations.insert(u32::from_be_bytes(generation), ranges);
        while generations.len() > GENERATIONS_MAX {
            generations.pop_first();
        }
    }
}

fn parts(seq: u64) -> (u32, u32) {
    ((seq >> 32) as u32, seq as u32)
}

fn add(ranges: &mut Ranges, counter: u32) {
    let before = ranges.range(..=counter).next_back().map(|(first, last)| (*first, *last));
    if before.is_some_and(|(_, last)| counter <= last) {
        return;
    }
    let first = match before {
        Some((first, last)) if last.checked_add(1) == Some(counter) => first,
        _ => counter,
    };
    let last = counter.checked_add(1).and_then(|next| ranges.remove(&next)).unwrap_or(counter);
    ranges.insert(first, last);
}

fn key(agent_id: u32, generation: u32) -> Vec<u8> {
    [agent_id.to_be_bytes(), generation.to_be_bytes()].concat()
}

fn encode(ranges: &Ranges) -> Vec<u8> {
    ranges.iter().flat_map(|(first, last)| [first.to_be_bytes(), last.to_be_bytes()].concat()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn id(generation: u32, counter: u32) -> BatchId {
        BatchId { agent_id: 7, seq: u64::from(generation) << 32 | u64::from(counter) }
    }

    #[test]
    fn neighbours_join_and_gaps_stay() {
        let mut ranges = Ranges::new();
        for counter in [5, 3, 4, 9, u32::MAX, 0] {
            add(&mut ranges, counter);
        }
        assert_eq!(ranges.into_iter().collect::<Vec<_>>(), [(0, 0), (3, 5), (9, 9), (u32::MAX, u32::MAX)]);
    }

    #[test]
    fn what_exceeds_the_bounds_is_forgotten() {
        let mut committed = Committed::default();
        for counter in 0..200 {
            committed.insert(id(1, counter * 2));
        }
        assert!(!committed.contains(id(1, 0)) && committed.contains(id(1, 398)));
        for generation in 2..=5 {
            committed.insert(id(generation, 1));
        }
        assert!(!committed.contains(id(1, 398)) && committed.contains(id(5, 1)));
    }

    proptest! {
        #[test]
        fn never_claims_what_was_not_committed(counters in prop::collection::vec(0_u32..300, 0..300)) {
            let mut committed = Committed::default();
            let mut reloaded = Committed::default();
            for &counter in &counters {
                let (key, value) = committed.insert(id(3, counter)).unwrap();
                reloaded.load(&key, &value);
            }
            let truth: HashSet<_> = counters.into_iter().collect();
            for counter in 0..300 {
                prop_assert!(!committed.contains(id(3, counter)) || truth.contains(&counter));
                prop_assert_eq!(committed.contains(id(3, counter)), reloaded.contains(id(3, counter)));
            }
        }
    }
}
