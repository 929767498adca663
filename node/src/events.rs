//! What happened in this node lately: a bounded list in memory, for `metaflow ctl events` and the debug bundle.
//!
//! An event is a change of state that an operator would ask about ("when did n2 die, who was refused, when was the store away"). It is for
//! people; what must be counted is a metric, what must be kept is a log line. Leaves out noticing: whoever knows of a change records it,
//! and `node/witness` notices what nobody else does.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use crate::clock;

/// Events that are kept: hours of a quiet cluster, minutes of a very bad one.
const EVENTS_MAX: usize = 2_048;
/// Longest subject and text; what is longer is cut.
const TEXT_CHARS_MAX: usize = 400;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The node itself: started, stopping.
    Node,
    /// Another node: joined, died, changed its state.
    Member,
    /// Work being handed over.
    Drain,
    /// Somebody was not let in, or something was not taken.
    Refusal,
    Store,
    Wal,
    /// Agents came or went.
    Agent,
    /// Configuration of agents.
    Config,
    /// Names and their ids.
    Dictionary,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Node,
        Self::Member,
        Self::Drain,
        Self::Refusal,
        Self::Store,
        Self::Wal,
        Self::Agent,
        Self::Config,
        Self::Dictionary,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Member => "member",
            Self::Drain => "drain",
            Self::Refusal => "refusal",
            Self::Store => "store",
            Self::Wal => "wal",
            Self::Agent => "agent",
            Self::Config => "config",
            Self::Dictionary => "dictionary",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    /// Rises by one with each event of the process, from 1.
    pub(crate) number: u64,
    /// Milliseconds since 1970.
    pub(crate) time_ms: u64,
    pub(crate) kind: Kind,
    /// Whom or what it happened to: a node, an agent, a table.
    pub(crate) subject: String,
    pub(crate) text: String,
}

/// The node's events; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events {
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    last: u64,
}

impl Events {
    /// Notes what happened. Never blocks for long, and forgets the oldest when there are many.
    pub(crate) fn record(&self, kind: Kind, subject: impl Into<String>, text: impl Into<String>) {
        self.record_at(clock::milliseconds(), kind, subject.into(), text.into());
    }

    fn record_at(&self, time_ms: u64, kind: Kind, subject: String, text: String) {
        let (subject, text) = (cut(subject), cut(text));
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let event = Event { number: ring.last, time_ms, kind, subject, text };
        if ring.events.len() >= EVENTS_MAX {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
    }

    /// The latest events with a higher number than `after`, the oldest first, `events_max` at most; and the number of the last event that
    /// there was, of whatever kind, to ask from next time.
    pub(crate) fn after(&self, after: u64, kind: Option<Kind>, events_max: usize) -> (Vec<Event>, u64) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        // A number from before a restart: everything is new.
        let after = if after > ring.last { 0 } else { after };
        let wanted = |event: &&Event| event.number > after && kind.is_none_or(|kind| event.kind == kind);
        let mut events: Vec<Event> =
            ring.events.iter().rev().filter(wanted).take(events_max).cloned().collect();
        events.reverse();
        (events, ring.last)
    }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_events_are_kept_and_found_by_number_and_kind() {
        let events = Events::default();
        for number in 1..=EVENTS_MAX as u64 + 10 {
            let kind = if number.is_multiple_of(2) { Kind::Store } else { Kind::Member };
            events.record_at(number, kind, format!("n{number}"), "x".to_owned());
        }
        let last = EVENTS_MAX as u64 + 10;
        let (all, next) = events.after(0, None, usize::MAX);
        assert_eq!((all.len(), all[0].number, next), (EVENTS_MAX, 11, last));
        let (some, _) = events.after(last - 4, Some(Kind::Store), 10);
        assert_eq!(some.iter().map(|event| event.number).collect::<Vec<_>>(), [last - 2, last]);
        let (few, _) = events.after(0, None, 3);
        assert_eq!(few.iter().map(|event| event.number).collect::<Vec<_>>(), [last - 2, last - 1, last]);
        assert_eq!(events.after(last, None, 10), (vec![], last));
        assert_eq!(events.after(last + 5, None, 1).0.len(), 1, "a number of an earlier life");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let events = Events::default();
        events.record(Kind::Agent, "é".repeat(1000), "short");
        let (all, _) = events.after(0, None, 1);
        assert_eq!(all[0].subject.chars().count(), TEXT_CHARS_MAX + 3);
        assert_eq!(all[0].text, "short");
    }

    #[test]
    fn every_kind_is_found_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.name()));
        }
        assert_eq!(Kind::from_name("x"), None);
    }
}
