//! Which flow is due when: a wheel of one-second slots with flows linked through it.
//!
//! A flow is in one slot, at or before the time at which it may be over. Packets do not touch the wheel: a flow that turns out to
//! be alive when its slot comes is put further ahead. Memory is one link pair a flow, whatever the traffic.

/// Slots: longer waits than this are checked once a turn.
const SLOTS: usize = 512;
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    /// Slot that holds the flow; `NONE` when it is in none.
    slot: u32,
    /// Second at which the flow is due.
    due: u64,
}

#[derive(Debug)]
pub(super) struct Timers {
    heads: Box<[u32; SLOTS]>,
    links: Vec<Link>,
    /// Second up to which all slots were visited.
    visited: u64,
}

impl Timers {
    pub(super) fn new() -> Self {
        Self { heads: Box::new([NONE; SLOTS]), links: Vec::new(), visited: 0 }
    }

    /// Begins at a second, or steps back to it.
    pub(super) fn rebase(&mut self, second: u64) {
        self.visited = second;
    }

    /// Puts a flow where it is due, if that is earlier than where it is.
    #[inline]
    pub(super) fn due_by(&mut self, flow: u32, second: u64) {
        match self.links.get(flow as usize) {
            Some(link) if link.slot != NONE && link.due <= second => {}
            _ => self.put(flow, second),
        }
    }

    /// Second at which a flow in the wheel is due.
    pub(super) fn due(&self, flow: u32) -> u64 {
        self.links.get(flow as usize).map_or(0, |link| link.due)
    }

    /// Puts a flow where it is due.
    pub(super) fn put(&mut self, flow: u32, second: u64) {
        self.remove(flow);
        while self.links.len() <= flow as usize {
            self.links.push(Link { previous: NONE, next: NONE, slot: NONE, due: 0 });
        }
        let due = second.clamp(self.visited + 1, self.visited + SLOTS as u64 - 1);
        let slot = due as usize % SLOTS;
        let head = self.heads[slot];
        self.links[flow as usize] = Link { previous: NONE, next: head, slot: slot as u32, due };
        if head != NONE {
            self.links[head as usize].previous = flow;
        }
        self.heads[slot] = flow;
    }

    pub(super) fn remove(&mut self, flow: u32) {
        let Some(link) = self.links.get_mut(flow as usize) else { return };
        let Link { previous, next, slot, .. } = *link;
        if slot == NONE {
            return;
        }
        link.slot = NONE;
        if previous == NONE {
            self.heads[slot as usize] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
    }

    /// Takes one flow that is due by `second`; none when all slots up to there are empty.
    pub(super) fn pop_due(&mut self, second: u64) -> Option<u32> {
        // After a long silence one turn visits every slot.
        self.visited = self.visited.max(second.saturating_sub(SLOTS as u64));
        while self.visited < second {
            let head = self.heads[(self.visited + 1) as usize % SLOTS];
            if head != NONE {
                self.remove(head);
                return Some(head);
            }
            self.visited += 1;
        }
        None
    }

    /// The flow that is due first, without taking it out.
    pub(super) fn earliest(&self) -> Option<u32> {
        (1..=SLOTS as u64)
            .map(|ahead| self.heads[(self.visited + ahead) as usize % SLOTS])
            .find(|head| *head != NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(timers: &mut Timers, second: u64) -> Vec<u32> {
        let mut flows: Vec<u32> = std::iter::from_fn(|| timers.pop_due(second)).collect();
        flows.sort_unstable();
        flows
    }

    #[test]
    fn flows_come_out_when_they_are_due() {
        let mut timers = Timers::new();
        timers.rebase(1_000);
        timers.put(0, 1_005);
        timers.put(1, 1_005);
        timers.put(2, 1_007);
        timers.due_by(2, 1_009);
        assert_eq!(timers.earliest().map(|flow| flow < 2), Some(true));
        assert!(due(&mut timers, 1_004).is_empty());
        timers.remove(0);
        assert_eq!(due(&mut timers, 1_006), [1]);
        assert_eq!(due(&mut timers, 1_007), [2]);
        assert_eq!(timers.earliest(), None);
    }

    #[test]
    fn an_earlier_time_moves_a_flow_and_a_leap_finds_all() {
        let mut timers = Timers::new();
        timers.rebase(10);
        for flow in 0..100 {
            timers.put(flow, 10 + u64::from(flow) * 3);
        }
        timers.due_by(99, 12);
        assert_eq!(due(&mut timers, 12), [0, 99]);
        assert_eq!(due(&mut timers, 1_000_000).len(), 98);
    }
}
