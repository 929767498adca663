//! Whether a rollout goes well: agents of the new version against the rest of their group. Pure.

use std::collections::HashMap;

/// So many looks in a row must show trouble: one bad moment is no reason.
const LOOKS: u32 = 2;
/// Difference of shares, in percent of the agents, from which on it is the new version's fault and not chance.
const SHARE_PERCENT: f64 = 10.0;
/// A new version may lose this much more than the rest before that is trouble: rows a second and agent, and as a multiple.
const LOST_ROWS: f64 = 10.0;
const LOST_TIMES: f64 = 2.0;
/// An agent that is not heard for so long is gone; heartbeats come every second.
const SILENT_SECONDS: u64 = 10;

/// One agent at one look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    pub agent_id: u32,
    /// It belongs to the rollout; else it runs what counted before.
    pub is_new: bool,
    /// It took the version that it is to run with.
    pub is_there: bool,
    /// It said that it does not take it.
    pub refused: Option<String>,
    pub is_shedding: bool,
    /// Rows lost since its start.
    pub lost_rows: u64,
    /// Connections that it made so far, as its node counts them.
    pub connections: u64,
    pub silent_seconds: u64,
}

/// What a look says of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    GoOn,
    /// Why it has to stop.
    Stop(String),
}

/// Remembers what agents had lost when their rollout began.
#[derive(Debug, Default)]
pub struct Judge {
    /// By agent: losses and connections at the first look.
    first: HashMap<u32, (u64, u64)>,
    began: Option<u64>,
    troubles: u32,
}

/// Averages over some agents.
#[derive(Debug, Default)]
struct Health {
    agents: f64,
    silent: f64,
    shedding: f64,
    reconnected: f64,
    lost_rows: f64,
}

impl Judge {
    /// One look at all agents of a group, at `now` (seconds since anything).
    pub fn look(&mut self, now: u64, samples: &[Sample]) -> Verdict {
        let seconds = now.saturating_sub(*self.began.get_or_insert(now)).max(1) as f64;
        let trouble = self.trouble(samples, seconds);
        self.troubles = if trouble.is_some() { self.troubles + 1 } else { 0 };
        match trouble {
            Some(reason) if self.troubles >= LOOKS => Verdict::Stop(reason),
            _ => Verdict::GoOn,
        }
    }

    fn trouble(&mut self, samples: &[Sample], seconds: f64) -> Option<String> {
        // Only who runs a version says something about it; who went silent was there at an earlier look.
        let mut health = [Health::default(), Health::default()];
        let (mut refusals, mut asked) = (0_u32, 0_u32);
        let mut refused = None;
        for sample in samples {
            if sample.is_new {
                asked += 1;
                refusals += u32::from(sample.refused.is_some());
                refused = refused.or(sample.refused.as_ref());
            }
            if sample.is_there {
                let first = (sample.lost_rows, sample.connections);
                let (lost, connections) = *self.first.entry(sample.agent_id).or_insert(first);
                health[usize::from(sample.is_new)].add(sample, lost, connections, seconds);
            }
        }
        if let Some(reason) = refused
            && f64::from(refusals) * 100.0 >= SHARE_PERCENT * f64::from(asked)
        {
            return Some(format!("{refusals} of {asked} agents refuse it: {reason}"));
        }
        let [rest, new] = health;
        if new.agents == 0.0 {
            return None;
        }
        let shares = [
            ("are silent", new.silent, rest.silent),
            ("shed load", new.shedding, rest.shedding),
            ("lost their connection", new.reconnected, rest.reconnected),
        ];
        for (what, of_new, of_rest) in shares {
            let (with, without) = (of_new / new.agents * 100.0, of_rest / rest.agents.max(1.0) * 100.0);
            if with - without >= SHARE_PERCENT {
                return Some(format!(
                    "{with:.0} % of its {} agents {what}, {without:.0} % of the others",
                    new.agents
                ));
            }
        }
        let (with, without) = (new.lost_rows / new.agents, rest.lost_rows / rest.agents.max(1.0));
        (with >= LOST_ROWS && with >= without * LOST_TIMES)
            .then(|| format!("its agents lose {with:.0} rows a second each, the others {without:.0}"))
    }
}

impl Health {
    fn add(&mut self, sample: &Sample, lost: u64, connections: u64, seconds: f64) {
        self.agents += 1.0;
        self.silent += f64::from(u8::from(sample.silent_seconds >= SILENT_SECONDS));
        self.shedding += f64::from(u8::from(sample.is_shedding));
        // One may be a move to another node, more are trouble.
        self.reconnected += f64::from(u8::from(sample.connections.saturating_sub(connections) >= 2));
        self.lost_rows += sample.lost_rows.saturating_sub(lost) as f64 / seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten agents of each; `change` makes the new ones what the case is about.
    fn samples(change: impl Fn(usize, &mut Sample)) -> Vec<Sample> {
        (0..20)
            .map(|at| {
                let is_new = at < 10;
                let agent_id = u32::try_from(at).unwrap();
                let mut sample = Sample { agent_id, is_new, is_there: true, ..Sample::default() };
                change(at, &mut sample);
                sample
            })
            .collect()
    }

    fn check(change: impl Fn(usize, &mut Sample), part: Option<&str>) {
        let mut judge = Judge::default();
        assert_eq!(judge.look(100, &samples(|_, _| {})), Verdict::GoOn);
        assert_eq!(judge.look(105, &samples(&change)), Verdict::GoOn, "one look is no reason");
        match (judge.look(110, &samples(&change)), part) {
            (Verdict::GoOn, None) => {}
            (Verdict::Stop(reason), Some(part)) => assert!(reason.contains(part), "{reason}"),
            (verdict, part) => panic!("{verdict:?}, expected {part:?}"),
        }
    }

    #[test]
    fn trouble_of_the_new_version_stops_it_and_trouble_of_all_does_not() {
        check(|_, _| {}, None);
        check(|at, sample| sample.is_shedding = at == 0, Some("10 % of its 10 agents shed load, 0 %"));
        check(|at, sample| sample.is_shedding = at % 2 == 0, None);
        check(
            |at, sample| sample.silent_seconds = if at < 3 { 30 } else { 1 },
            Some("30 % of its 10 agents are silent"),
        );
        check(|_, sample| sample.silent_seconds = 30, None);
        check(|at, sample| sample.connections = if at < 10 { 5 } else { 0 }, Some("lost their connection"));
        check(|_, sample| sample.connections = 1, None);
        check(
            |at, sample| sample.lost_rows = if at < 10 { 1_000 } else { 0 },
            Some("lose 100 rows a second"),
        );
        check(|_, sample| sample.lost_rows = 1_000, None);
        check(|at, sample| sample.lost_rows = if at < 10 { 40 } else { 0 }, None);
        check(
            |at, sample| {
                if at == 3 {
                    (sample.is_there, sample.refused) = (false, Some("guard.cpu: unknown".to_owned()));
                }
            },
            Some("1 of 10 agents refuse it: guard.cpu"),
        );
    }

    #[test]
    fn who_has_not_taken_it_yet_says_nothing_and_losses_from_before_do_not_count() {
        let mut judge = Judge::default();
        let waiting = samples(|at, sample| (sample.is_there, sample.is_shedding) = (at >= 10, at < 10));
        let lost = samples(|_, sample| sample.lost_rows = 1_000_000);
        for now in 0..5 {
            assert_eq!(judge.look(now, &waiting), Verdict::GoOn);
        }
        for now in 5..9 {
            let without_rest: Vec<Sample> = lost.iter().filter(|sample| sample.is_new).cloned().collect();
            assert_eq!(judge.look(now, &without_rest), Verdict::GoOn);
        }
    }

    #[test]
    fn trouble_that_passes_is_forgotten() {
        let mut judge = Judge::default();
        let bad = samples(|at, sample| sample.is_shedding = at < 10);
        for now in 0..6 {
            let look = if now % 2 == 0 { samples(|_, _| {}) } else { bad.clone() };
            assert_eq!(judge.look(now, &look), Verdict::GoOn);
        }
    }
}
