//! The table's clock: when seconds, minutes and flows are over.

use super::{Ending, FlowTable, Output};

/// A second is reported this long after its end, so that packets that other interfaces deliver a little later still count in it.
const GRACE_S: u64 = 1;

/// Packets this much older than others mean that the clock was set back; less is disorder.
const STEP_S: u64 = 10;

/// The second of a time.
#[inline]
pub(super) fn second_of(microseconds: u64) -> u64 {
    microseconds / 1_000_000
}

impl FlowTable {
    /// A packet tells the time.
    #[inline]
    pub(super) fn clock_of_packet(&mut self, timestamp: u64, output: &mut Output) {
        let second = second_of(timestamp);
        if second == self.now {
            return;
        }
        if second > self.now {
            self.advance(timestamp, output);
        } else if second + STEP_S < self.now {
            self.step_back(second, output);
        } else if second + GRACE_S < self.now {
            self.counters.late += 1;
        }
    }

    /// Reports what is over by now.
    pub(super) fn advance(&mut self, now_us: u64, output: &mut Output) {
        if self.now == 0 {
            self.timers.rebase(second_of(now_us));
        }
        let minute_before = self.now.saturating_sub(GRACE_S) / 60;
        self.now = second_of(now_us);
        self.report_seconds(output, false);
        while let Some(at) = self.timers.pop_due(self.now) {
            let Some(flow) = &mut self.slots[at as usize].flow else { continue };
            flow.last_seen = flow.last_seen.min(now_us);
            let deadline = flow.deadline(&self.config.timeouts);
            if deadline <= self.now {
                self.close(at, now_us, Ending::Silence, output);
                continue;
            }
            flow.expire(now_us, &mut self.shared);
            self.timers.put(at, flow.next_look(self.now, &self.config.timeouts));
            if !self.shared.sessions.is_empty() {
                self.open_second(at, now_us, output);
                if let Some(flow) = &mut self.slots[at as usize].flow {
                    flow.record(&mut self.shared, output);
                }
            }
        }
        if self.now.saturating_sub(GRACE_S) / 60 != minute_before {
            self.report_minutes(output, false);
        }
    }

    /// The clock was set back: closes the books of what would be the future, then goes on from there.
    fn step_back(&mut self, second: u64, output: &mut Output) {
        self.counters.clock_steps += 1;
        self.report_seconds(output, true);
        self.report_minutes(output, true);
        self.now = second;
        self.timers.rebase(second);
    }

    fn report_seconds(&mut self, output: &mut Output, all: bool) {
        let now = self.now;
        let slots = &mut self.slots;
        self.seconds.retain(|at| {
            let slot = &mut slots[*at as usize];
            // The last second of a flow that has ended is reported together with its end.
            slot.in_seconds = match &mut slot.flow {
                Some(flow) if flow.has_open_second() && (all || !flow.state.has_ended()) => {
                    let over = all || flow.second + 1 + GRACE_S <= now;
                    if over {
                        flow.report_second(output);
                    }
                    !over
                }
                _ => false,
            };
            slot.in_seconds
        });
    }

    fn report_minutes(&mut self, output: &mut Output, all: bool) {
        let now = self.now;
        let slots = &mut self.slots;
        self.minutes.retain(|at| {
            let slot = &mut slots[*at as usize];
            slot.in_minutes = match &mut slot.flow {
                Some(flow) if all || !flow.state.has_ended() => {
                    let over = all || (flow.minute + 1) * 60 + GRACE_S <= now;
                    if over {
                        flow.report_minute(output);
                    }
                    !over
                }
                _ => false,
            };
            slot.in_minutes
        });
    }
}
