//! Sums by second and minute over bounded sets of keys.

use std::{collections::BTreeMap, hash::Hash};

use rustc_hash::FxHashMap;

/// Open seconds (and minutes) at one time; more means that times in the traffic jump, and the oldest go out early.
const OPEN_INTERVALS_MAX: usize = 128;

/// How a key loses details when an interval has too many of them.
pub(super) trait Key: Eq + Hash + Clone {
    fn one_sided(&self) -> Self;
    /// Level 1 drops texts, level 2 the client as well, level 3 all but a handful of values.
    fn collapsed(&self, level: u8) -> Self;
}

/// Sums, counts and maxima.
pub(super) trait Value: Default + Clone {
    fn merge(&mut self, other: &Self);
    /// The same for the minute's row.
    fn for_minute(&self) -> Self;
}

/// Length of a sealed interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interval {
    Second,
    Minute,
}

pub(super) type Keys<K, V> = FxHashMap<K, V>;

#[derive(Debug)]
pub(super) struct Rollup<K, V> {
    seconds: BTreeMap<u32, Keys<K, V>>,
    minutes: BTreeMap<u32, Keys<K, V>>,
    keys_max: usize,
    /// Additions that went to a key with fewer details.
    pub(super) collapsed: u64,
}

impl<K: Key, V: Value> Rollup<K, V> {
    pub(super) fn new(keys_max: usize) -> Self {
        Self { seconds: BTreeMap::new(), minutes: BTreeMap::new(), keys_max, collapsed: 0 }
    }

    pub(super) fn add(&mut self, second: u32, key: K, value: &V) {
        let keys = self.seconds.entry(second).or_default();
        self.collapsed += u64::from(merge_bounded(keys, key, value, self.keys_max));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seconds.is_empty() && self.minutes.is_empty()
    }

    /// Hands out the intervals that end at or before `until`, and the oldest ones when too many are open.
    pub(super) fn seal(&mut self, until: u32, mut sink: impl FnMut(Interval, u32, Keys<K, V>)) {
        while let Some((&time, _)) = self.seconds.first_key_value() {
            if time >= until && self.seconds.len() <= OPEN_INTERVALS_MAX {
                break;
            }
            let keys = self.seconds.remove(&time).unwrap_or_default();
            let minute = self.minutes.entry(time / 60 * 60).or_default();
            for (key, value) in &keys {
                let collapsed = merge_bounded(minute, key.clone(), &value.for_minute(), self.keys_max);
                self.collapsed += u64::from(collapsed);
            }
            sink(Interval::Second, time, keys);
        }
        while let Some((&time, _)) = self.minutes.first_key_value() {
            if time.saturating_add(60) > until && self.minutes.len() <= OPEN_INTERVALS_MAX {
                break;
            }
            sink(Interval::Minute, time, self.minutes.remove(&time).unwrap_or_default());
        }
    }

    /// The rows of the serving sides.
    pub(super) fn one_sided(keys: &Keys<K, V>) -> Keys<K, V> {
        let mut folded: Keys<K, V> = Keys::default();
        for (key, value) in keys {
            folded.entry(key.one_sided()).or_default().merge(value);
        }
        folded
    }
}

/// Adds to the key, or to a key with fewer details when there are too many. Says which.
fn merge_bounded<K: Key, V: Value>(keys: &mut Keys<K, V>, key: K, value: &V, keys_max: usize) -> bool {
    if let Some(sum) = keys.get_mut(&key) {
        sum.merge(value);
        return false;
    }
    let level = u8::try_from((keys.len() / keys_max.max(1)).min(3)).unwrap_or(3);
    if level == 0 {
        keys.entry(key).or_default().merge(value);
        return false;
    }
    for level in 1..level {
        if let Some(sum) = keys.get_mut(&key.collapsed(level)) {
            sum.merge(value);
            return true;
        }
    }
    keys.entry(key.collapsed(level)).or_default().merge(value);
    true
}
