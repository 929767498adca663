//! Connections between agents and nodes: in order while they last, late now and then, and over at any moment, which either end may learn of
//! late or never.

use std::collections::VecDeque;

use metaflow_actors::{dictionary::NodeId, ingester::Acks, placement::shard_of};
use metaflow_agent::sender::{Ended, Session};
use metaflow_wire::{Batch, IngestAck, Rejection, SeqRange};

use super::{
    Event, World, address,
    node::{Stream, Taken},
    store::lock,
};

/// A connection that is not welcomed within this is given up.
const WELCOME_WITHIN_MS: u64 = 2_000;
const TICK_MS: u64 = 250;
const HEARTBEAT_MS: u64 = 1_000;
/// Batches that the transport takes.
const BATCHES_UNDER_WAY: usize = 8;
/// What is held up by a cut is tried again after this.
const AGAIN_AFTER_MS: u64 = 200;

pub(super) enum Up {
    Hello(u32),
    Heartbeat,
    Batch(Batch),
    Closed,
}

pub(super) enum Down {
    Welcome(u32, Vec<String>),
    Servers(Vec<String>),
    Heartbeat,
    Ack(IngestAck),
    Reset,
}

pub(super) struct Connection {
    pub(super) agent: usize,
    pub(super) node: usize,
    /// Of the node's process.
    life: u64,
    to_node: VecDeque<(u64, Up)>,
    to_agent: VecDeque<(u64, Down)>,
    pub(super) stream: Option<Stream>,
    told: Vec<String>,
}

impl World {
    pub(super) fn try_server(&mut self, agent: usize, number: u64) {
        let it = &mut self.agents[agent];
        if it.tries != number || it.spool.is_none() || it.connection.is_some() {
            return;
        }
        let Some(server) = it.servers.current() else { return };
        let Some(node) = (0..self.nodes.len()).find(|node| address(*node) == server) else { return };
        self.numbered += 1;
        let id = self.numbered;
        it.connection = Some(id);
        (it.since_ms, it.is_welcome) = (self.now, false);
        let agent_id = it.spool.as_ref().map_or(0, |spool| spool.agent_id());
        let life = self.nodes[node].life;
        let connection = Connection {
            agent,
            node,
            life,
            to_node: VecDeque::new(),
            to_agent: VecDeque::new(),
            stream: None,
            told: Vec::new(),
        };
        self.connections.insert(id, connection);
        self.step("agent connects", [agent as u64, node as u64, id]);
        if self.nodes[node].running.is_some() {
            self.say_to_node(id, Up::Hello(agent_id));
        } else if !self.nodes[node].is_silent {
            self.say_to_agent(id, Down::Reset);
        }
        self.after(WELCOME_WITHIN_MS, Event::GiveUp(agent, number));
    }

    pub(super) fn give_up(&mut self, agent: usize, number: u64) {
        let it = &self.agents[agent];
        if it.tries == number && it.connection.is_some() && !it.is_welcome {
            self.ended(agent, Ended::NotReached);
        }
    }

    /// The agent's end of a connection is over.
    pub(super) fn ended(&mut self, agent: usize, how: Ended) {
        let now = self.office.instant();
        let random = self.random.next();
        let it = &mut self.agents[agent];
        let connection = it.connection.take();
        it.session = None;
        it.is_welcome = false;
        it.tries += 1;
        let (pause, number) = (it.servers.next(how, now, &it.config, random), it.tries);
        if let Some(connection) = connection {
            self.say_to_node(connection, Up::Closed);
        }
        self.step("agent is alone", [agent as u64, how as u64, pause.as_millis() as u64]);
        self.after(pause.as_millis() as u64 + 1, Event::Try(agent, number));
    }

    pub(super) fn tick(&mut self, agent: usize) {
        self.after(TICK_MS, Event::Tick(agent));
        let now = self.office.instant();
        let random = self.random.next();
        let now_ms = self.now;
        let it = &mut self.agents[agent];
        let (Some(connection), Some(session), Some(spool)) = (it.connection, &mut it.session, &it.spool)
        else {
            return;
        };
        if session.check(now, &it.config).is_err() {
            self.ended(agent, Ended::Lost);
            return;
        }
        if session.goes(spool, now) {
            self.ended(agent, Ended::Moves);
            return;
        }
        if session.leaves_at().is_none() {
            session.plan_move(&it.servers, now, &it.config, random);
        }
        if now_ms >= it.beat_ms + HEARTBEAT_MS {
            it.beat_ms = now_ms;
            self.say_to_node(connection, Up::Heartbeat);
        }
        self.note_served(agent);
        self.send_batches(agent);
    }

    fn send_batches(&mut self, agent: usize) {
        let now = self.office.instant();
        let Some(id) = self.agents[agent].connection else { return };
        while let Some(connection) = self.connections.get(&id)
            && connection.to_node.len() < BATCHES_UNDER_WAY
            && let Some(batch) = self.agents[agent].next_batch(now)
        {
            self.say_to_node(id, Up::Batch(batch));
        }
    }

    pub(super) fn say_to_node(&mut self, id: u64, message: Up) {
        let due = self.now + self.delay();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let due = connection.to_node.back().map_or(due, |(last, _)| due.max(*last));
        connection.to_node.push_back((due, message));
        self.at(due, Event::Up(id));
    }

    pub(super) fn say_to_agent(&mut self, id: u64, message: Down) {
        let due = self.now + self.delay();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let due = connection.to_agent.back().map_or(due, |(last, _)| due.max(*last));
        connection.to_agent.push_back((due, message));
        self.at(due, Event::Down(id));
    }

    fn delay(&mut self) -> u64 {
        let is_slow = !self.is_healed && !self.is_quiet && self.random.percent(5);
        if is_slow { self.random.between(50, 1_500) } else { self.random.between(1, 10) }
    }

    /// A message arrives at a node.
    pub(super) fn up(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (agent, node, life) = (connection.agent, connection.node, connection.life);
        if self.agent_cuts.contains(&(agent, node)) {
            self.after(AGAIN_AFTER_MS, Event::Up(id));
            return;
        }
        let Some((_, message)) = connection.to_node.pop_front() else { return };
        let place = &mut self.nodes[node];
        let is_silent = place.is_silent;
        let Some(running) = place.running.as_mut().filter(|_| place.life == life) else {
            if !is_silent {
                self.say_to_agent(id, Down::Reset);
            }
            return;
        };
        match message {
            Up::Hello(agent_id) => match running.hello(&self.agents[agent].machine, agent_id) {
                Ok(stream) => {
                    let agent_id = stream.agent_id;
                    let servers = self.servers_of(node, agent_id);
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.stream = Some(stream);
                        connection.told.clone_from(&servers);
                    }
                    self.step("node welcomes", [node as u64, agent as u64, agent_id.into()]);
                    self.say_to_agent(id, Down::Welcome(agent_id, servers));
                }
                Err(_) => {
                    self.step("node refuses", [node as u64, agent as u64, 0]);
                    self.say_to_agent(id, Down::Reset);
                }
            },
            Up::Heartbeat => self.say_to_agent(id, Down::Heartbeat),
            Up::Batch(batch) => {
                let (seq, resent) = (batch.seq, batch.resent);
                let Some(stream) = &mut connection.stream else { return };
                match running.batch(batch, stream) {
                    Taken::Done => {
                        self.step("batch comes", [node as u64, agent as u64, seq << 1 | u64::from(resent)]);
                    }
                    Taken::Waits(batch) => {
                        connection.to_node.push_front((self.now, Up::Batch(*batch)));
                        self.after(AGAIN_AFTER_MS, Event::Up(id));
                        return;
                    }
                    Taken::Refused(_) => {
                        self.step("stream is refused", [node as u64, agent as u64, seq]);
                        self.say_to_agent(id, Down::Reset);
                    }
                }
            }
            Up::Closed => {
                self.connections.remove(&id);
            }
        }
        self.work(node);
    }

    /// A message arrives at an agent.
    pub(super) fn down(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (agent, node) = (connection.agent, connection.node);
        if self.agent_cuts.contains(&(agent, node)) {
            self.after(AGAIN_AFTER_MS, Event::Down(id));
            return;
        }
        let Some((_, message)) = connection.to_agent.pop_front() else { return };
        let now = self.office.instant();
        let random = self.random.next();
        let it = &mut self.agents[agent];
        if it.connection != Some(id) {
            return;
        }
        if let (Down::Welcome(agent_id, servers), Some(spool)) = (&message, &mut it.spool) {
            it.servers.welcome(&address(node), servers);
            spool.set_agent_id(*agent_id).expect("the spool's folder can be used");
            it.session = Some(Session::new(now));
            (it.is_welcome, it.welcomes) = (true, it.welcomes + 1);
        }
        let Some(session) = &mut it.session else {
            if matches!(message, Down::Reset) {
                self.ended(agent, Ended::NotReached);
            }
            return;
        };
        match message {
            Down::Welcome(..) => session.plan_move(&it.servers, now, &it.config, random),
            Down::Servers(servers) => {
                session.hear(now);
                it.servers.welcome(&address(node), &servers);
                session.plan_move(&it.servers, now, &it.config, random);
            }
            Down::Heartbeat => session.hear(now),
            Down::Ack(ack) => {
                if let Some(rejection) = ack.rejected.first() {
                    let what = format!("I5: batch {:x} is refused: {}", rejection.seq, rejection.reason);
                    self.violation.get_or_insert(what);
                    return;
                }
                it.note_received(&ack);
                let committed = ack.committed.last().map_or(0, |range| range.last);
                if let (Some(spool), Some(session)) = (&mut it.spool, &mut it.session) {
                    session.take_ack(ack, spool, now);
                    let oldest = spool.next_after(None).map_or(0, |(seq, _)| seq);
                    self.step("agent hears", [agent as u64, committed, oldest]);
                }
            }
            Down::Reset => {
                self.ended(agent, Ended::Lost);
                return;
            }
        }
        self.send_batches(agent);
    }

    /// What the node has to say on its streams.
    pub(super) fn tell_agents(&mut self, node: usize) {
        let life = self.nodes[node].life;
        let Some(credit) = self.nodes[node].running.as_ref().map(|running| running.credit()) else { return };
        let mut messages = Vec::new();
        for (id, connection) in &mut self.connections {
            if connection.node != node || connection.life != life {
                continue;
            }
            let Some(stream) = &mut connection.stream else { continue };
            let acks = stream.answers.take();
            let is_incomplete = acks.incomplete;
            if !acks.is_empty() || (credit == 0) != (stream.credit_told == 0) {
                stream.credit_told = credit;
                messages.push((*id, Down::Ack(message(acks, credit))));
            }
            if is_incomplete {
                messages.push((*id, Down::Reset));
            }
        }
        for (id, message) in messages {
            self.say_to_agent(id, message);
        }
    }

    /// The servers of an agent as a node sees the cluster.
    pub(super) fn servers_of(&self, node: usize, agent_id: u32) -> Vec<String> {
        let net = lock(&self.net);
        let placement = net.members.get(&node).and_then(|member| member.placement.clone());
        let Some(placement) = placement else { return vec![] };
        let place_of = |id: NodeId| self.nodes.iter().position(|place| place.node_id == id);
        let servers = placement.servers("", shard_of(agent_id));
        servers.iter().filter_map(place_of).map(address).collect()
    }

    /// Tells agents that belong elsewhere now.
    pub(super) fn tell_servers(&mut self, node: usize) {
        let agents: Vec<(u64, u32)> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.node == node)
            .filter_map(|(id, connection)| Some((*id, connection.stream.as_ref()?.agent_id)))
            .collect();
        for (id, agent_id) in agents {
            let servers = self.servers_of(node, agent_id);
            if let Some(connection) = self.connections.get_mut(&id)
                && connection.told != servers
            {
                connection.told.clone_from(&servers);
                self.say_to_agent(id, Down::Servers(servers));
            }
        }
    }

    /// The node's process is gone: what its kernel says to agents, if it says anything.
    pub(super) fn break_streams(&mut self, node: usize, is_said: bool) {
        let broken: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.node == node)
            .map(|(id, _)| *id)
            .collect();
        for id in broken {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.stream = None;
                // What was on its way may arrive.
                let cut = self.random.index(connection.to_agent.len() + 1);
                connection.to_agent.truncate(cut);
            }
            if is_said {
                self.say_to_agent(id, Down::Reset);
            }
        }
    }
}

fn message(acks: Acks, credit_bytes: u64) -> IngestAck {
    let Acks { received, committed, rejected, incomplete: _ } = acks;
    let ranges = |runs: metaflow_actors::ingester::Runs| {
        runs.iter().map(|(first, last)| SeqRange { first, last }).collect()
    };
    let rejected = rejected.into_iter().map(|(seq, reason)| Rejection { seq, reason }).collect();
    IngestAck { received: ranges(received), committed: ranges(committed), rejected, credit_bytes }
}
