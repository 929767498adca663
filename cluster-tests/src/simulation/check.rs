//! What must hold, whatever happened.
//!
//! * I1 an id names one string, on every node and in the store (checked with each row of names that is stored, and at the end).
//! * I2 after healing, one canonical id a string, on every node that knows it.
//! * I3 every id of a stored row is named in the store (checked with each insert).
//! * I5 no batch that an agent has made durable is missing at the end, so none that was acknowledged either; none is refused.
//! * I6 none is stored twice.
//! * I7 placement is a function of the view, in whatever order its members come.
//! * I8 within 10 s of healing every agent is served by a node of its list.
//! * I9 all memory is given back, and the log is within its bound.
//! * I10 without faults nothing moves.
//! * I11 the store's rows are those of the agents' ledgers, one by one.

use std::collections::{BTreeMap, BTreeSet};

use metaflow_actors::placement::{Placement, View};
use metaflow_schema::enums::Kind;

use super::{Event, SERVED_WITHIN_MS, World, address, node::Running, store::lock};

impl World {
    /// Notes that an agent is served where it belongs.
    pub(super) fn note_served(&mut self, agent: usize) {
        if !self.is_healed || self.served[agent].is_some() || !self.is_at_home(agent) {
            return;
        }
        self.served[agent] = Some(self.now);
    }

    /// A node of its list serves the agent, by the list that all nodes have now.
    fn is_at_home(&self, agent: usize) -> bool {
        let it = &self.agents[agent];
        let connection = it.connection.filter(|_| it.is_welcome).and_then(|id| self.connections.get(&id));
        let Some((connection, spool)) = connection.zip(it.spool.as_ref()) else { return false };
        let servers = self.servers_of(connection.node, spool.agent_id());
        let is_of_list = servers.is_empty() || servers.contains(&address(connection.node));
        self.nodes[connection.node].running.is_some() && is_of_list
    }

    pub(super) fn check_served(&mut self) {
        for agent in 0..self.agents.len() {
            self.note_served(agent);
            if self.served[agent].is_none() {
                self.fail(format!("I8: agent {agent} is not served within {SERVED_WITHIN_MS} ms of healing"));
            }
        }
    }

    /// The end comes when nothing is under way; some time later at most.
    pub(super) fn look_whether_settled(&mut self) {
        self.is_settled = self.check_rows().is_ok() && self.check_room().is_ok();
        self.after(1_000, Event::Settled);
    }

    pub(super) fn all_welcomes(&self) -> u64 {
        self.agents.iter().map(|agent| agent.welcomes).sum()
    }

    pub(super) fn check_end(&self) -> Result<(), String> {
        self.check_rows()?;
        self.check_names()?;
        self.check_room()?;
        if self.is_quiet && self.all_welcomes() != self.welcomes {
            return Err("I10: agents moved without a fault".to_owned());
        }
        self.check_placement()
    }

    /// I5, I6, I11.
    fn check_rows(&self) -> Result<(), String> {
        let (mut ledger, mut lost): (BTreeMap<u64, u32>, BTreeMap<u64, u32>) = Default::default();
        for (number, agent) in self.agents.iter().enumerate() {
            ledger.extend(&agent.ledger);
            lost.extend(&agent.lost);
            let left = agent.spool.as_ref().map_or(0, |spool| spool.stats().batches);
            if left > 0 {
                return Err(format!("I5: agent {number} still has {left} batches that are not committed"));
            }
        }
        for (truth, rows) in &ledger {
            let stored = self.store.rows.get(truth).copied().unwrap_or(0);
            let (agent, batch) = (truth >> 32, truth & u64::from(u32::MAX));
            if stored < *rows {
                return Err(format!(
                    "I5: batch {batch} of agent {agent} has {stored} of {rows} rows in the store"
                ));
            }
            if stored > *rows {
                return Err(format!(
                    "I6: batch {batch} of agent {agent} of {rows} rows has {stored} in the store"
                ));
            }
        }
        // What an agent lost before any node had acknowledged it is stored or not, but not twice.
        let is_known = |(truth, rows): &(&u64, &u32)| {
            ledger.contains_key(truth) || lost.get(truth).is_some_and(|lost| *rows == lost)
        };
        match self.store.rows.iter().find(|stored| !is_known(stored)) {
            Some((truth, _)) => Err(format!("I11: the store has batch {truth:x}, which no ledger knows")),
            None => Ok(()),
        }
    }

    fn runs(&self) -> impl Iterator<Item = (usize, &Running)> {
        self.nodes.iter().enumerate().filter_map(|(at, place)| Some((at, place.running.as_ref()?)))
    }

    /// I1, I2.
    fn check_names(&self) -> Result<(), String> {
        let mut names: BTreeSet<(Kind, &String)> = BTreeSet::new();
        for ((kind, id), name) in self.store.names() {
            names.insert((*kind, name));
            for (node, running) in self.runs() {
                match running.dictionary.resolve(*kind, *id) {
                    Ok(Some(known)) if known != *name => {
                        return Err(format!(
                            "I1: id {id} of {kind:?} is {name} in the store, {known} on node {node}"
                        ));
                    }
                    _ => {}
                }
            }
        }
        for (kind, name) in names {
            let ids: BTreeMap<u32, usize> = self
                .runs()
                .filter_map(|(node, running)| Some((running.dictionary.lookup(kind, name)?, node)))
                .collect();
            if ids.len() > 1 {
                return Err(format!("I2: {name} of {kind:?} has several canonical ids, by node: {ids:?}"));
            }
        }
        Ok(())
    }

    /// I9.
    fn check_room(&self) -> Result<(), String> {
        for (node, running) in self.runs() {
            if !running.is_idle() {
                return Err(format!("I9: node {node} holds memory of batches that are stored"));
            }
            let room = running.core.wal().room();
            if room != self.wal_bytes_max {
                return Err(format!(
                    "I9: the log of node {node} has room for {room} of {} bytes",
                    self.wal_bytes_max
                ));
            }
        }
        Ok(())
    }

    /// I7. It costs as much as a seed, so not with each.
    fn check_placement(&self) -> Result<(), String> {
        if !self.trace.hash().is_multiple_of(64) {
            return Ok(());
        }
        let net = lock(&self.net);
        let Some(member) = net.members.values().next() else { return Ok(()) };
        let Some(placement) = &member.placement else { return Ok(()) };
        let members = self.nodes.iter().filter(|place| place.running.is_some()).rev().map(Self::member);
        let again = Placement::new(&View { members: members.collect() });
        if again == **placement { Ok(()) } else { Err("I7: the same view is placed in two ways".to_owned()) }
    }
}
