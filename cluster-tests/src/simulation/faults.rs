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
    /// Its disk is replaced by a backup.
    NodeRestored(usize),
    NodesCut(usize, usize),
    AgentCut(usize, usize),
    StoreCut(usize),
    StoreDown,
    StoreSlow,
    StoreRestarts,
    DiskFull(usize),
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
            0..15 => (Fault::NodeDies { node, power: false }, 4_000),
            15..25 => (Fault::NodeDies { node, power: true }, 4_000),
            25..35 => (Fault::NodeStops(node), 6_000),
            35..40 if self.agents_are_lost => (Fault::AgentLost(agent), 3_000),
            35..40 => (Fault::NodeRestored(node), 2_000),
            40..55 if node != other => (Fault::NodesCut(node.min(other), node.max(other)), 8_000),
            55..65 => (Fault::AgentCut(agent, node), 6_000),
            65..73 => (Fault::StoreCut(node), 5_000),
            73..77 => (Fault::StoreDown, 4_000),
            77..82 => (Fault::StoreSlow, 6_000),
            82..85 => (Fault::StoreRestarts, 1),
            85..89 => (Fault::DiskFull(node), 4_000),
            89..96 => (Fault::AgentDies(agent), 3_000),
            96..98 if self.has_second_node() => (Fault::SecondNode, 1),
            _ => (Fault::Loss, 5_000),
        };
        let lasts = self.random.between(most_ms.div_ceil(20), most_ms);
        if self.begin_fault(fault) {
            self.after(lasts, Event::Mend(fault));
        }
    }

    fn has_second_node(&self) -> bool {
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
            Fault::StoreDown => !std::mem::replace(&mut self.store_is_down, true),
            Fault::StoreSlow => !std::mem::replace(&mut self.store_is_slow, true),
            Fault::StoreRestarts => {
                self.step("store restarts", [0; 3]);
                self.store.restart();
                false
            }
            Fault::DiskFull(node) => {
                self.step("disk is full", [node as u64, 0, 0]);
                self.nodes[node].disk.set_full(true);
                true
            }
            Fault::AgentDies(agent) => {
                self.step("agent dies", [agent as u64, 0, 0]);
                self.kill_agent(agent);
                true
            }
            Fault::AgentLost(agent) => {
                self.step("agent is lost", [agent as u64, 0, 0]);
                self.kill_agent(agent);
                self.agents[agent].lose_disk();
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
        }
    }

    pub(super) fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::NodeDies { node, .. } | Fault::NodeRestored(node) => self.start(node),
            Fault::NodeStops(node) => self.pause(node, false),
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
            Fault::StoreRestarts | Fault::SecondNode => {}
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
        self.deferred.remove(&node);
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
            for event in self.deferred.remove(&node).unwrap_or_default() {
                self.at(self.now, event);
            }
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
        let generation = 2 + u32::try_from(self.now / 1_000).unwrap_or(u32::MAX);
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

    /// A node as the view has it. That one is held back for a while changes views, and views are anything here.
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

    /// Two running nodes have one id: both are told, and told again when it is over. Gossip takes some seconds to show it; what both name
    /// within these is not covered here.
    pub(super) fn look_at_shared_id(&mut self) {
        let running = |place: &super::Place| place.running.is_some() && !place.is_gone;
        for at in 0..self.nodes.len() {
            let id = self.nodes[at].node_id;
            let is_shared =
                self.nodes.iter().filter(|place| place.node_id == id && running(place)).count() > 1;
            if let Some(it) = &self.nodes[at].running
                && self.options.mutation != Some(Mutation::SharedIdGoesOn)
            {
                it.dictionary.suspend(is_shared);
            }
        }
    }
}
