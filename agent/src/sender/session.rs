//! What an agent decides on one connection: which batch goes next, what acknowledgements change, when the connection is over, and
//! when it leaves for the node that it belongs to. Pure but for the spool's files: time and random numbers are handed in.

use std::{
    io,
    time::{Duration, Instant},
};

use metaflow_wire::{Batch, IngestAck};

use super::{Config, Servers, window::Window};
use crate::spool::Spool;

/// An agent that leaves for another node waits so long for what it sent to be stored: what is under way at two nodes could be stored by
/// both. Longer than a slow store takes.
const STORED_WITHIN: Duration = Duration::from_secs(30);

/// Why a connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("node said nothing for {0:?}")]
    Silent(Duration),
    #[error("node did not receive a batch within {0:?}")]
    Stuck(Duration),
}

#[derive(Debug)]
pub struct Session {
    window: Window,
    heard: Instant,
    /// When it leaves for the node that it belongs to.
    leaves_at: Option<Instant>,
}

impl Session {
    /// A connection that has just been welcomed.
    pub fn new(now: Instant) -> Self {
        Self { window: Window::new(), heard: now, leaves_at: None }
    }

    /// The node gave a sign of life.
    pub fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    pub fn leaves_at(&self) -> Option<Instant> {
        self.leaves_at
    }

    /// Sets the moment at which the agent leaves for another node, if it belongs there.
    pub fn plan_move(&mut self, servers: &Servers, now: Instant, config: &Config, random: u64) {
        let spread = u64::try_from(config.move_within.as_micros()).unwrap_or(u64::MAX).max(1);
        self.leaves_at = servers.belongs_elsewhere(now).then(|| now + Duration::from_micros(random % spread));
    }

    /// Whether the agent goes now: it is time, and all that was sent here is stored, or that takes too long.
    pub fn goes(&self, spool: &Spool, now: Instant) -> bool {
        let Some(since) = self.leaves_at.filter(|moment| *moment <= now) else { return false };
        let is_open = |cursor| spool.next_after(None).is_some_and(|(seq, _)| seq <= cursor);
        !self.window.cursor.is_some_and(is_open) || now.saturating_duration_since(since) >= STORED_WITHIN
    }

    /// Whether the connection may go on.
    pub fn check(&self, now: Instant, config: &Config) -> Result<(), Broken> {
        let silence = now.saturating_duration_since(self.heard);
        if silence > config.silence_max {
            return Err(Broken::Silent(silence));
        }
        if self.window.is_stuck(now, config.receive_timeout) {
            return Err(Broken::Stuck(config.receive_timeout));
        }
        Ok(())
    }

    /// The next batch to be sent; none when the spool or the credit has no more, or the agent is about to leave.
    pub fn next_batch(&mut self, spool: &mut Spool, now: Instant) -> io::Result<Option<Batch>> {
        if self.leaves_at.is_some_and(|moment| moment <= now) {
            return Ok(None);
        }
        loop {
            let Some((seq, bytes)) = spool.next_after(self.window.cursor) else { return Ok(None) };
            if !self.window.allows(bytes as u64) {
                return Ok(None);
            }
            // One that is damaged on the disk is gone from the spool now.
            let Some(batch) = spool.read(seq)? else { continue };
            self.window.send(seq, bytes as u64, now);
            return Ok(Some(batch));
        }
    }

    pub fn take_ack(&mut self, ack: IngestAck, spool: &mut Spool, now: Instant) {
        self.heard = now;
        let IngestAck { received, committed, rejected, credit_bytes } = ack;
        for range in received {
            self.window.receive(range.first, range.last);
            spool.receive(range.first, range.last);
        }
        for range in committed {
            self.window.receive(range.first, range.last);
            spool.commit(range.first, range.last);
        }
        for rejection in rejected {
            tracing::warn!(seq = rejection.seq, reason = rejection.reason, "node refused a batch");
            self.window.receive(rejection.seq, rejection.seq);
            spool.reject(rejection.seq, &rejection.reason);
        }
        self.window.set_credit(credit_bytes);
    }
}
