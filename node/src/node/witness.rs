//! Notices what happens to this node and its cluster and nobody else would record: it looks once a second and tells what has changed.
//!
//! What comes and goes within a second is not seen; counters keep it. Refusals are told some seconds apart, so that whoever knocks all
//! day does not push everything else out of the list.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::Parts;
use crate::{
    events::Kind,
    grpc::{Moves, Named},
    membership::View,
};

const TICK: Duration = Duration::from_secs(1);
/// Between two tellings of refusals for one reason.
const REFUSALS_APART: Duration = Duration::from_secs(10);

/// What there is to see at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Glance {
    /// Name and state of each other node, by its id.
    pub(super) members: BTreeMap<u16, (String, &'static str)>,
    /// Node ids that two running nodes use.
    pub(super) duplicates: Vec<u16>,
    /// None while nothing was started that would know.
    pub(super) store_answers: Option<bool>,
    pub(super) wal: WalState,
    pub(super) moves: Moves,
    /// How often something was refused, by reason, since the start.
    pub(super) refused: BTreeMap<&'static str, u64>,
    /// Kinds of names of whose ids half are used up.
    pub(super) half_used: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum WalState {
    #[default]
    Open,
    Full,
    Failing,
}

/// Something that changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Noticed {
    pub(super) kind: Kind,
    pub(super) subject: String,
    pub(super) text: String,
}

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Witness {
    last: Glance,
    /// When refusals were told, and how many there had been.
    told: HashMap<&'static str, (Instant, u64)>,
}

impl Witness {
    /// What has changed since the last look.
    pub(super) fn step(&mut self, now: Instant, glance: Glance) -> Vec<Noticed> {
        let mut noticed = Vec::new();
        let mut add = |kind, subject: &str, text: String| {
            noticed.push(Noticed { kind, subject: subject.to_owned(), text });
        };
        members(&self.last, &glance, &mut add);
        match (self.last.store_answers, glance.store_answers) {
            (Some(true), Some(false)) => add(Kind::Store, "store", "does not answer".to_owned()),
            (Some(false), Some(true)) => add(Kind::Store, "store", "answers again".to_owned()),
            (None, Some(false)) => add(Kind::Store, "store", "does not answer yet".to_owned()),
            (None, Some(true)) => add(Kind::Store, "store", "answers".to_owned()),
            _ => {}
        }
        if self.last.wal != glance.wal {
            let text = match glance.wal {
                WalState::Open => "takes batches again",
                WalState::Full => "is full: agents keep their rows until the store has caught up",
                WalState::Failing => "cannot be written: nothing is taken from agents (is the disk full?)",
            };
            add(Kind::Wal, "write-ahead log", text.to_owned());
        }
        for (named, what) in [(&glance.moves.came, "connected"), (&glance.moves.went, "disconnected")] {
            if named.count > 0 {
                add(Kind::Agent, &subject(named), what.to_owned());
            }
        }
        for kind in glance.half_used.iter().filter(|kind| !self.last.half_used.contains(*kind)) {
            add(Kind::Dictionary, kind, "half of this node's ids of this kind are used up".to_owned());
        }
        for (reason, count) in &glance.refused {
            let before = self.told.get(reason).copied();
            let (since, known) = before.map_or((None, 0), |(at, count)| (Some(at), count));
            let is_quiet = since.is_none_or(|at| now.saturating_duration_since(at) >= REFUSALS_APART);
            if *count > known && is_quiet {
                add(Kind::Refusal, reason, format!("{} refused", count - known));
                self.told.insert(reason, (now, *count));
            }
        }
        self.last = glance;
        noticed
    }
}

fn members(last: &Glance, glance: &Glance, add: &mut impl FnMut(Kind, &str, String)) {
    for (id, (name, word)) in &glance.members {
        let text = match last.members.get(id) {
            None => format!("node {id} is there: {word}"),
            Some((_, before)) if before != word => format!("node {id} was {before} and is {word}"),
            Some(_) => continue,
        };
        add(Kind::Member, name, text);
    }
    for (id, (name, word)) in &last.members {
        if !glance.members.contains_key(id) {
            add(Kind::Member, name, format!("node {id}, which was {word}, is not shown any more"));
        }
    }
    for id in glance.duplicates.iter().filter(|id| !last.duplicates.contains(id)) {
        add(Kind::Member, &format!("node {id}"), "two running nodes use this id".to_owned());
    }
    for id in last.duplicates.iter().filter(|id| !glance.duplicates.contains(id)) {
        add(Kind::Member, &format!("node {id}"), "one running node uses this id again".to_owned());
    }
}

fn subject(named: &Named) -> String {
    let ids: Vec<String> = named.named.iter().map(u32::to_string).collect();
    let more = named.count - named.named.len() as u64;
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("agent {}{more}", ids.join(", "))
}

impl Glance {
    /// The part that the cluster's view shows.
    pub(super) fn of_view(view: &View) -> Self {
        let others = view.members.iter().filter(|member| member.node_id != view.own);
        Self {
            members: others
                .map(|member| (member.node_id, (member.facts.name.clone(), member.word())))
                .collect(),
            duplicates: view.duplicates.iter().map(|duplicate| duplicate.node_id).collect(),
            ..Self::default()
        }
    }
}

/// Runs until it is aborted.
pub(super) async fn watch(parts: Parts) {
    let mut witness = Witness::default();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let glance = parts.glance().await;
        for Noticed { kind, subject, text } in witness.step(Instant::now(), glance) {
            parts.events().record(kind, subject, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(noticed: Vec<Noticed>) -> Vec<String> {
        noticed
            .into_iter()
            .map(|Noticed { kind, subject, text }| format!("{} {subject}: {text}", kind.name()))
            .collect()
    }

    fn with_member(word: &'static str) -> Glance {
        Glance { members: [(2, ("n2".to_owned(), word))].into(), ..Glance::default() }
    }

    #[test]
    fn changes_are_told_once() {
        let mut witness = Witness::default();
        let now = Instant::now();
        let mut step = |glance: Glance| texts(witness.step(now, glance));
        assert!(step(Glance::default()).is_empty());
        assert_eq!(step(with_member("ready")), ["member n2: node 2 is there: ready"]);
        assert!(step(with_member("ready")).is_empty());
        assert_eq!(step(with_member("dead")), ["member n2: node 2 was ready and is dead"]);
        assert_eq!(
            step(Glance { duplicates: vec![2], store_answers: Some(false), ..with_member("dead") }),
            ["member node 2: two running nodes use this id", "store store: does not answer yet"]
        );
        let full = Glance { store_answers: Some(true), wal: WalState::Full, ..Glance::default() };
        let told = step(full.clone());
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(step(Glance { wal: WalState::Full, ..full }).is_empty());
        let open = Glance { store_answers: Some(false), half_used: vec!["pod"], ..Glance::default() };
        let told = step(open);
        assert_eq!(told[0], "store store: does not answer");
        assert_eq!(told[1], "wal write-ahead log: takes batches again");
        assert!(told[2].starts_with("dictionary pod: half"));
    }

    #[test]
    fn refusals_are_told_some_seconds_apart_and_none_is_left_out() {
        let mut witness = Witness::default();
        let start = Instant::now();
        let mut step = |seconds, count| {
            let glance = Glance { refused: [("no_token", count)].into(), ..Glance::default() };
            texts(witness.step(start + Duration::from_secs(seconds), glance))
        };
        assert_eq!(step(0, 3), ["refusal no_token: 3 refused"]);
        assert!(step(1, 5).is_empty() && step(9, 9).is_empty());
        assert_eq!(step(10, 9), ["refusal no_token: 6 refused"]);
        assert!(step(30, 9).is_empty());
    }

    #[test]
    fn many_agents_are_one_event() {
        let came = Named { count: 1000, named: vec![1, 2] };
        let glance = Glance { moves: Moves { came, ..Moves::default() }, ..Glance::default() };
        let told = texts(Witness::default().step(Instant::now(), glance));
        assert_eq!(told, ["agent agent 1, 2 and 998 more: connected"]);
    }
}
