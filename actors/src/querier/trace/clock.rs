//! Differences between the clocks of hosts, from requests that were seen on both.
//!
//! As in NTP (RFC 5905): a request takes as long to its server as the response takes back, so the middle of what the server saw is the
//! middle of what the client saw. The median of many requests is taken, since one may have waited in a queue.

use std::collections::{BTreeMap, VecDeque};

use super::{assemble::Request, row::Row};

/// What each agent's clock is ahead of the first one's, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    ahead: BTreeMap<u32, i64>,
}

impl Clocks {
    pub(super) fn of(rows: &[Row], requests: &[Request]) -> Self {
        let mut seen: BTreeMap<(u32, u32), Vec<i64>> = BTreeMap::new();
        for pair in requests.iter().flat_map(|request| request.rows.windows(2)) {
            let (near, far) = (&rows[pair[0]], &rows[pair[1]]);
            if near.agent_id != far.agent_id {
                let ahead = middle(far) - middle(near);
                seen.entry((near.agent_id, far.agent_id)).or_default().push(ahead);
                seen.entry((far.agent_id, near.agent_id)).or_default().push(-ahead);
            }
        }
        let medians: BTreeMap<(u32, u32), i64> = seen
            .into_iter()
            .map(|(agents, mut samples)| {
                samples.sort_unstable();
                (agents, samples[samples.len() / 2])
            })
            .collect();
        let mut ahead = BTreeMap::new();
        for row in rows {
            if ahead.contains_key(&row.agent_id) {
                continue;
            }
            ahead.insert(row.agent_id, 0);
            let mut open = VecDeque::from([row.agent_id]);
            while let Some(agent) = open.pop_front() {
                let known = ahead[&agent];
                for ((_, other), median) in medians.range((agent, 0)..=(agent, u32::MAX)) {
                    if !ahead.contains_key(other) {
                        ahead.insert(*other, known + median);
                        open.push_back(*other);
                    }
                }
            }
        }
        Self { ahead }
    }

    pub(super) fn start(&self, row: &Row) -> u64 {
        self.corrected(row, row.start_time)
    }

    pub(super) fn end(&self, row: &Row) -> u64 {
        self.corrected(row, row.end_time.max(row.start_time))
    }

    fn corrected(&self, row: &Row, time: u64) -> u64 {
        let ahead = self.ahead.get(&row.agent_id).copied().unwrap_or(0);
        if row.is_app_span() { time } else { time.saturating_add_signed(ahead.saturating_neg()) }
    }
}

/// Twice the middle would be exact; half a microsecond is nothing.
fn middle(row: &Row) -> i64 {
    let start = i64::try_from(row.start_time).unwrap_or(i64::MAX / 4);
    let end = i64::try_from(row.end_time).unwrap_or(i64::MAX / 4);
    start + (end - start).max(0) / 2
}
