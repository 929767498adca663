//! Questions to the store on their way: late, cut, or answered by nobody.

use metaflow_actors::store::Error;

use super::{
    Event, World,
    store::{Call, Request},
};

/// What the store's clock shows at first: it may be set back from there.
const CLOCK_MS: u64 = 1_000_000_000;

impl World {
    /// A question to the store: whether it comes, and whether its answer does.
    pub(super) fn send(&mut self, mut call: Call) {
        call.is_slow = matches!(call.request, Request::Rows { .. }) && self.random.percent(30);
        let is_lost = !self.nodes[call.node].may_reach_store;
        let is_down = self.store_is_down;
        if is_lost || is_down {
            let answer = if is_lost {
                Error::Unknown("no answer came".to_owned())
            } else {
                Error::Transient { code: 0, message: "it is down".to_owned() }
            };
            self.soon(5, 400, Event::Answer(call, Err(answer)));
            return;
        }
        let most = if self.store_is_slow { 2_500 } else { 12 };
        self.soon(1, most.min(20), Event::Come(call));
    }

    pub(super) fn come(&mut self, call: Call) {
        if self.store_is_down {
            let error = Error::Unknown("the connection was cut".to_owned());
            self.soon(1, 50, Event::Answer(call, Err(error)));
            return;
        }
        self.store.clock_ms = (CLOCK_MS + self.now).saturating_add_signed(self.store_clock_ms);
        self.store.begin(&call);
        let most = if self.store_is_slow { 2_500 } else { 15 };
        if !self.is_healed && !self.is_quiet && self.random.percent(6) {
            // The connection breaks; whether the query has been performed then is open.
            let error = Error::Unknown("the answer was cut".to_owned());
            self.soon(1, most, Event::Answer(call.clone(), Err(error)));
        }
        self.soon(1, most, Event::Perform(call));
    }

    pub(super) fn perform(&mut self, call: &Call) {
        self.store.clock_ms = (CLOCK_MS + self.now).saturating_add_signed(self.store_clock_ms);
        let answer = self.store.perform(call);
        self.step("store performs", [call.node as u64, u64::from(answer.is_ok()), 0]);
        self.soon(1, 8, Event::Answer(call.clone(), answer));
    }
}
