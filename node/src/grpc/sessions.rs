//! Which agents are connected to this node now, and how many came and went since somebody looked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Agents that are named when several came or went; the rest is a number.
const NAMED_MAX: usize = 5;

/// Control streams of agents; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    agents: HashMap<u32, Session>,
    moves: Moves,
}

/// An agent's connection.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) since: Instant,
    /// What the agent said; mostly nothing.
    pub(crate) region: Box<str>,
    /// Streams: an agent that comes anew may have left one behind.
    streams: u32,
}

/// Who came and who went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    pub(crate) came: Named,
    pub(crate) went: Named,
}

/// Agents: how many, and a few of them by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) count: u64,
    pub(crate) named: Vec<u32>,
}

impl Named {
    fn add(&mut self, agent_id: u32) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(agent_id);
        }
    }
}

impl Sessions {
    /// Notes a stream of an agent until the answer is dropped.
    pub(super) fn enter(&self, agent_id: u32, region: &str) -> Entered {
        let mut open = self.lock();
        let session = open.agents.entry(agent_id).or_insert_with(|| Session {
            since: Instant::now(),
            region: region.into(),
            streams: 0,
        });
        session.streams += 1;
        if session.streams == 1 {
            open.moves.came.add(agent_id);
        }
        Entered { sessions: self.clone(), agent_id }
    }

    /// Agents that are connected.
    pub(crate) fn count(&self) -> u64 {
        self.lock().agents.len() as u64
    }

    /// How an agent is connected; none when it is not.
    pub(crate) fn of(&self, agent_id: u32) -> Option<Session> {
        self.lock().agents.get(&agent_id).cloned()
    }

    /// Who came and went since this was asked last.
    pub(crate) fn take_moves(&self) -> Moves {
        std::mem::take(&mut self.lock().moves)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream of an agent.
#[derive(Debug)]
pub(super) struct Entered {
    sessions: Sessions,
    agent_id: u32,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut open = self.sessions.lock();
        let Some(session) = open.agents.get_mut(&self.agent_id) else { return };
        session.streams -= 1;
        if session.streams == 0 {
            open.agents.remove(&self.agent_id);
            open.moves.went.add(self.agent_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_there_until_its_last_stream_ends() {
        let sessions = Sessions::default();
        let one = sessions.enter(7, "eu");
        let two = sessions.enter(7, "");
        assert_eq!(sessions.of(7).map(|session| session.region), Some("eu".into()));
        drop(one);
        assert!(sessions.of(7).is_some());
        assert_eq!(sessions.take_moves().came, Named { count: 1, named: vec![7] });
        drop(two);
        assert!(sessions.of(7).is_none());
        let many: Vec<_> = (0..20).map(|agent| sessions.enter(agent, "")).collect();
        let moves = sessions.take_moves();
        assert_eq!((moves.went.count, moves.came.count, moves.came.named.len()), (1, 20, NAMED_MAX));
        drop(many);
        assert_eq!(sessions.take_moves().went.count, 20);
    }
}
