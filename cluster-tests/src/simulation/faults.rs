//! What goes wrong, and how it is mended.

use metaflow_actors::placement::{Member, State, View};

use super::{AGENTS, CHAOS_MS, Event, Mutation, SERVED_WITHIN_MS, World, place, store::lock};

/// A fault; its end is an event of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process is killed, or the machine loses its power: then what was not synced is lost.
    NodeDies {
        node: usize,
        power: bool,
    },
    /// SIGSTOP.
    NodeStops(usize),
    AgentStops(usize),
    StoreStops,
    /// It dies and comes back, several times within seconds.
    NodeFlaps(usize),
    /// The store's clock is set.
    StoreClock,
    /// Its disk is replaced by a backup.
    NodeRestored(usize),
    NodesCut(usize, usize),
    AgentCut(usize, usize),
    StoreCut(usize),
    StoreDown,
    StoreSlow,
    StoreRestarts,
    DiskFull(usize),
    /// Its clock may be another when it comes back.
    AgentDies(usize),
    /// It dies, and its disk is replaced by an empty one.
    AgentLost(usize),
    Loss,
    /// Another process starts with the number of a node.
    SecondNode,
}

impl World {
    pub(super) fn fault(&mut self) {
        if self.now + 2_000 > CHAOS_MS {
            return;
        }
        self.soon(300, 2_000, Event::Fault);
        let node = self.random.index(self.nodes.len());
        let other = self.random.index(self.nodes.len());
        let agent = self.random.index(AGENTS);
        let (fault, most_ms): (Fault, u64) = match self.random.below(100) {
            0..12 => (Fault::NodeDies { node, power: false }, 4_000),
            12..20 => (Fault::NodeDies { node, power: true }, 4_000),
            20..31 => (Fault::NodeStops(node), 9_000),
            31..34 => (Fault::AgentStops(agent), 9_000),
            34..36 => (Fault::NodeFlaps(node), 1),
            // The second node goes for good, with its log: it may be the only one that has what a lost agent sent.
            36..40 if self.has_second_node() => (Fault::AgentStops(agent), 9_000),
            36..40 if self.agents_are_lost => (Fault::AgentLost(agent), 3_000),
            36..40 => (Fault::NodeRestored(node), 2_000),
            40..54 if node != other => (Fault::NodesCut(node.min(other), node.max(other)), 8_000),
            54..63 => (Fault::AgentCut(agent, node), 6_000),
            63..71 => (Fault::StoreCut(node), 5_000),
            71..75 => (Fault::StoreDown, 4_000),
            75..79 => (Fault::StoreSlow, 6_000),
            79..82 => (Fault::StoreRestarts, 1),
            82..84 => (Fault::StoreStops, 4_000),
            84..86 => (Fault::StoreClock, 1),
            86..89 => (Fault::DiskFull(node), 4_000),
            89..94 => (Fault::AgentDies(agent), 3_000),
            94..98 if self.has_second_node() => (Fault::SecondNode, 1),
            _ => (Fault::Loss, 5_000),
        };
        let lasts = self.random.between(most_ms.div_ceil(20), most_ms);
        if self.begin_fault(fault) {
            self.after(lasts, Event::Mend(fault));
        }
    }

    pub(super) fn has_second_node(&self) -> bool {
        self.nodes.last().is_some_and(|last| last.node_id == self.nodes[0].node_id)
    }

    /// False when it cannot happen now.
    fn begin_fault(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::NodeDies { node, power } => {
                self.step("node dies", [node as u64, u64::from(power), 0]);
                self.kill_node(node, power)
            }
            Fault::NodeStops(node) => {
                self.step("node stops", [node as u64, 0, 0]);
                let is_running = self.nodes[node].running.is_some() && !self.nodes[node].is_paused;
                if is_running {
                    self.pause(node, true);
                }
                is_running
            }
            Fault::NodeFlaps(node) => {
                for time in 0..self.random.between(2, 5) {
                    self.after(time * 700, Event::Flap(node));
                }
                false
            }
            Fault::NodeRestored(node) => self.restore(node),
            Fault::NodesCut(one, other) => {
                self.step("nodes are cut", [one as u64, other as u64, 0]);
                lock(&self.net).cuts.insert((one, other))
            }
            Fault::AgentCut(agent, node) => {
                self.step("agent is cut", [agent as u64, node as u64, 0]);
                self.agent_cuts.insert((agent, node))
            }
            Fault::StoreCut(node) => {
                self.step("store is cut", [node as u64, 0, 0]);
                std::mem::replace(&mut self.nodes[node].may_reach_store, false)
            }
            Fault::DiskFull(node) => {
                self.step("disk is full", [node as u64, 0, 0]);
                self.nodes[node].disk.set_full(true);
                true
            }
            Fault::Loss => {
                lock(&self.net).loss_percent = 20;
                true
            }
            Fault::SecondNode => {
                self.step("second node", [0; 3]);
                if let Some(last) = self.nodes.last_mut() {
                    last.is_gone = false;
                }
                self.start(self.nodes.len() - 1);
                false
            }
            other => self.begin_fault_elsewhere(other),
        }
    }

    /// Of agents and the store.
    fn begin_fault_elsewhere(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::AgentStops(agent) => {
                self.step("agent stops", [agent as u64, 0, 0]);
                self.stopped.insert(super::STOPPED_AGENTS + agent)
            }
            Fault::StoreStops => {
                self.step("store stops", [0; 3]);
                self.stopped.insert(super::STOPPED_STORE)
            }
            Fault::AgentDies(agent) => {
                self.step("agent dies", [agent as u64, 0, 0]);
                self.kill_agent(agent);
                true
            }
            Fault::AgentLost(agent) => {
                self.step("agent is lost", [agent as u64, 0, 0]);
                if self.options.mutation == Some(Mutation::AckBeforeSync) {
                    self.lose_power_of_its_node(agent);
                }
                self.kill_agent(agent);
                self.agents[agent].lose_disk();
                true
            }
            Fault::StoreDown => !std::mem::replace(&mut self.store_is_down, true),
            Fault::StoreSlow => !std::mem::replace(&mut self.store_is_slow, true),
            Fault::StoreRestarts => {
                self.step("store restarts", [0; 3]);
                self.store.restart();
                false
            }
            Fault::StoreClock => {
                self.store_clock_ms = self.random.between(0, 400_000).cast_signed() - 200_000;
                self.step("store's clock is set", [self.store_clock_ms.cast_unsigned(), 0, 0]);
                false
            }
            _ => false,
        }
    }

    pub(super) fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::NodeDies { node, .. } | Fault::NodeRestored(node) => self.start(node),
            Fault::NodeStops(node) => self.pause(node, false),
            Fault::AgentStops(agent) => self.go_on(super::STOPPED_AGENTS + agent),
            Fault::StoreStops => self.go_on(super::STOPPED_STORE),
            Fault::NodesCut(one, other) => {
                lock(&self.net).cuts.remove(&(one, other));
            }
            Fault::AgentCut(agent, node) => {
                self.agent_cuts.remove(&(agent, node));
            }
            Fault::StoreCut(node) => self.nodes[node].may_reach_store = true,
            Fault::StoreDown => self.store_is_down = false,
            Fault::StoreSlow => self.store_is_slow = false,
            Fault::DiskFull(node) => self.nodes[node].disk.set_full(false),
            Fault::AgentDies(agent) | Fault::AgentLost(agent) => self.start_agent(agent),
            Fault::Loss => lock(&self.net).loss_percent = 0,
            Fault::NodeFlaps(_) | Fault::StoreClock | Fault::StoreRestarts | Fault::SecondNode => {}
        }
    }

    /// Who was stopped goes on, with what came in the meantime.
    fn go_on(&mut self, who: usize) {
        self.stopped.remove(&who);
        for event in self.deferred.remove(&who).unwrap_or_default() {
            self.at(self.now, event);
        }
    }

    /// A rack without power: nobody else has what the node said that it has.
    fn lose_power_of_its_node(&mut self, agent: usize) {
        let connection = self.agents[agent].connection.and_then(|id| self.connections.get(&id));
        let Some(node) = connection.map(|connection| connection.node) else { return };
        if self.kill_node(node, true) {
            self.soon(500, 3_000, Event::Start(node));
        }
    }

    pub(super) fn flap(&mut self, node: usize) {
        if !self.is_healed && self.kill_node(node, false) {
            self.step("node flaps", [node as u64, 0, 0]);
            self.soon(50, 500, Event::Start(node));
        }
    }

    /// Makes a backup, or puts the last one in the place of the disk.
    fn restore(&mut self, node: usize) -> bool {
        let Some(backup) = self.nodes[node].backup.take() else {
            self.nodes[node].backup = Some(self.nodes[node].disk.copy());
            return false;
        };
        self.step("node is restored", [node as u64, 0, 0]);
        let is_dead = self.kill_node(node, false);
        self.nodes[node].disk = backup;
        is_dead
    }

    fn kill_node(&mut self, node: usize, power: bool) -> bool {
        let place = &mut self.nodes[node];
        if !place.is_up() {
            return false;
        }
        (place.running, place.starting) = (None, None);
        if power {
            let kept = self.random.index(place.disk.unsynced() + 1);
            place.disk.crash(kept);
        }
        place.is_paused = false;
        for event in self.deferred.remove(&node).unwrap_or_default() {
            // Its kernel closes the connection in the middle of an insert; a machine without power closes nothing.
            if let (Event::Perform(call), false) = (event, power) {
                self.store.cut(&call.query_id);
            }
        }
        lock(&self.net).forget(node);
        let is_said = !power || self.random.percent(50);
        self.nodes[node].is_silent = !is_said;
        self.break_streams(node, is_said);
        true
    }

    fn pause(&mut self, node: usize, is_paused: bool) {
        let place = &mut self.nodes[node];
        if place.running.is_none() {
            return;
        }
        place.is_paused = is_paused;
        if let Some(member) = lock(&self.net).members.get_mut(&node) {
            member.is_paused = is_paused;
        }
        if !is_paused {
            self.step("node goes on", [node as u64, 0, 0]);
            self.go_on(node);
            self.after(0, Event::Wake(node));
        }
    }

    fn kill_agent(&mut self, agent: usize) {
        let it = &mut self.agents[agent];
        it.kill();
        it.tries += 1;
        if let Some(connection) = it.connection.take() {
            self.say_to_node(connection, super::streams::Up::Closed);
        }
    }

    fn start_agent(&mut self, agent: usize) {
        let mut generation = 1_000 + u32::try_from(self.now / 1_000).unwrap_or(u32::MAX);
        if self.agents[agent].has_disk() && self.random.percent(30) {
            // Its clock was set, back or forth.
            generation = if self.random.percent(50) { 1 } else { generation + 1_000_000 };
        }
        let it = &mut self.agents[agent];
        if it.spool.is_some() {
            return;
        }
        it.start(generation);
        let number = it.tries;
        self.step("agent starts", [agent as u64, 0, 0]);
        self.after(1, Event::Try(agent, number));
    }

    /// Faults are over.
    pub(super) fn heal(&mut self) {
        self.step("all is healed", [0; 3]);
        self.is_healed = true;
        let mut net = lock(&self.net);
        net.cuts.clear();
        net.loss_percent = 0;
        drop(net);
        self.agent_cuts.clear();
        for who in std::mem::take(&mut self.stopped) {
            self.go_on(who);
        }
        (self.store_is_down, self.store_is_slow) = (false, false);
        if self.has_second_node() {
            // Its number is another node's: whoever started it stops it.
            let last = self.nodes.len() - 1;
            self.kill_node(last, false);
            self.nodes[last].is_gone = true;
            self.after(1_000, Event::SharedId);
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.set_full(false);
            self.nodes[node].may_reach_store = true;
            self.pause(node, false);
            self.soon(10, 900, Event::Start(node));
        }
        for agent in 0..AGENTS {
            self.start_agent(agent);
        }
        for pause in [1_500, 3_000] {
            self.after(pause, Event::SeeAll);
        }
        self.after(1_500 + SERVED_WITHIN_MS, Event::Served);
        // By then every two nodes have compared their names.
        self.after(20_000, Event::Settled);
    }

    /// What a node sees of the cluster from now on: anything, as long as there are faults.
    pub(super) fn view(&mut self, node: usize) {
        if self.nodes[node].running.is_none() {
            return;
        }
        let is_true = self.is_healed || self.is_quiet;
        let mut seen = Vec::new();
        for other in 0..self.nodes.len() {
            let is_up = self.nodes[other].running.is_some();
            if other == node || (is_up && (is_true || self.random.percent(75))) {
                seen.push(other);
            }
        }
        self.see(node, &seen);
        if !is_true {
            self.soon(500, 5_000, Event::View(node));
        }
    }

    pub(super) fn see_all(&mut self) {
        let up: Vec<usize> =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].running.is_some()).collect();
        for node in &up {
            self.see(*node, &up);
        }
    }

    fn see(&mut self, node: usize, seen: &[usize]) {
        let mut members: Vec<Member> = seen.iter().map(|at| Self::member(&self.nodes[*at])).collect();
        if !self.is_healed && !self.is_quiet {
            // Who flaps is held back, and who sees it so is anybody's guess.
            let held_back = self.random.index(4 * members.len());
            if let Some(member) = members.get_mut(held_back) {
                member.eligible = false;
            }
        }
        members.sort();
        members.dedup_by_key(|member| member.node_id);
        let nodes = members.iter().map(|member| member.node_id).collect();
        let placement = (members.len() > 1).then(|| place(&View { members }));
        let mut net = lock(&self.net);
        let Some(member) = net.members.get_mut(&node) else { return };
        member.nodes = nodes;
        let is_new = match (&member.placement, &placement) {
            (Some(before), Some(after)) => !std::sync::Arc::ptr_eq(before, after),
            (before, after) => before.is_some() != after.is_some(),
        };
        member.placement = placement;
        drop(net);
        if is_new {
            self.step("view", [node as u64, seen.len() as u64, 0]);
            self.tell_servers(node);
        }
    }

    /// A node as the view has it.
    pub(super) fn member(place: &super::Place) -> Member {
        Member {
            node_id: place.node_id,
            state: State::Ready,
            eligible: true,
            region: String::new(),
            zone: place.zone.to_owned(),
            weight: 1,
        }
    }

    /// Two running nodes have one id: both are told by gossip, some seconds later, and told again when it is over. What both name in the
    /// meantime is the matter of the ranges that they claim.
    pub(super) fn look_at_shared_id(&mut self) {
        let running = |place: &super::Place| place.running.is_some() && !place.is_gone;
        for at in 0..self.nodes.len() {
            let id = self.nodes[at].node_id;
            let is_shared =
                self.nodes.iter().filter(|place| place.node_id == id && running(place)).count() > 1;
            if let Some(it) = &self.nodes[at].running {
                it.dictionary.suspend(is_shared);
            }
        }
    }
}
