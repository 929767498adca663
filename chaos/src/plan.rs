//! What goes wrong in a run, and when: a pure function of its seed.

use std::fmt;

use crate::Schedule;

/// Where rows end up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// An engine a node.
    Embedded,
    /// One server for all.
    Shared,
}

/// How large and how long.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub nodes: usize,
    pub agents: u32,
    /// From the first fault to the end of the last.
    pub faults_ms: u64,
    /// A fault lasts no longer than this.
    pub fault_ms_max: u64,
}

impl Size {
    /// What the tests have time for.
    pub const SMALL: Self = Self { nodes: 3, agents: 6, faults_ms: 12_000, fault_ms_max: 5_000 };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, and a start after it.
    Kill { node: usize },
    /// SIGSTOP, and SIGCONT after it.
    Stop { node: usize },
    /// Nobody reaches the node, and it reaches nobody.
    Isolate { node: usize },
    /// These nodes, and the agents of one network, are on their own.
    Split { nodes: Vec<usize> },
    /// What one node sends does not arrive at another.
    OneWay { from: usize, to: usize },
    /// The agents of one network do not reach a node.
    AgentsCut { agents: usize, node: usize },
    /// The node and the store server do not reach each other.
    StoreCut { node: usize },
    /// The engine of a node, or the store server, gets SIGSTOP.
    StoreStop { node: usize },
    /// The same, kill -9.
    StoreKill { node: usize },
    /// The next inserts are done, and their answers are cut off.
    AnswersCut { inserts: u32 },
    /// No byte is left on the disk of a node's log and names.
    DiskFull { node: usize },
    /// The wall clock of a node is another one.
    Clock { node: usize, seconds: i64 },
    /// A second node is started with the number of this one, and a disk and a place of its own; it is told to end after it.
    Twin { node: usize },
}

impl Fault {
    /// One word, for figures by kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::Stop { .. } => "stop",
            Self::Isolate { .. } => "isolate",
            Self::Split { .. } => "split",
            Self::OneWay { .. } => "one way",
            Self::AgentsCut { .. } => "agents cut",
            Self::StoreCut { .. } => "store cut",
            Self::StoreStop { .. } => "store stopped",
            Self::StoreKill { .. } => "store killed",
            Self::AnswersCut { .. } => "answers cut",
            Self::DiskFull { .. } => "disk full",
            Self::Clock { .. } => "clock",
            Self::Twin { .. } => "twin",
        }
    }

    /// What it needs for itself while it lasts: two faults of one process would undo each other.
    fn needs(&self, stores: Stores) -> Option<Need> {
        Some(match self {
            Self::Kill { node } | Self::Stop { node } => Need::Process(*node),
            // An engine ends with its node.
            Self::StoreStop { node } | Self::StoreKill { node } => match stores {
                Stores::Embedded => Need::Process(*node),
                Stores::Shared => Need::Store,
            },
            Self::DiskFull { node } => Need::Disk(*node),
            Self::Clock { node, .. } => Need::Clock(*node),
            Self::Twin { .. } => Need::Twin,
            Self::Isolate { .. }
            | Self::Split { .. }
            | Self::OneWay { .. }
            | Self::AgentsCut { .. }
            | Self::StoreCut { .. }
            | Self::AnswersCut { .. } => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Process(usize),
    Store,
    Disk(usize),
    Clock(usize),
    Twin,
}

/// A fault with its time, counted from the first moment of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub begins_ms: u64,
    pub ends_ms: u64,
    pub fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub stores: Stores,
    pub nodes: usize,
    pub agents: u32,
    /// In the order of their beginnings.
    pub steps: Vec<Step>,
}

/// Networks that agents are in.
pub const AGENT_PLACES: usize = 2;

/// The schedule of a seed.
pub fn plan(seed: u64, stores: Stores, size: Size) -> Plan {
    let mut random = Schedule::of(seed);
    let mut steps: Vec<Step> = Vec::new();
    let mut begins_ms = 0;
    loop {
        begins_ms += random.between(100..2_500);
        let ends_ms = begins_ms + random.between(500..size.fault_ms_max);
        if ends_ms > size.faults_ms {
            return Plan { seed, stores, nodes: size.nodes, agents: size.agents, steps };
        }
        let fault = draw(&mut random, stores, size.nodes);
        let need = fault.needs(stores);
        let is_free = need.is_none()
            || steps.iter().all(|other| other.ends_ms + 500 < begins_ms || other.fault.needs(stores) != need);
        if is_free {
            steps.push(Step { begins_ms, ends_ms, fault });
        }
    }
}

fn draw(random: &mut Schedule, stores: Stores, nodes: usize) -> Fault {
    let node = random.index(nodes);
    let other = (node + 1 + random.index(nodes - 1)) % nodes;
    match (random.between(0..15), stores) {
        (0 | 1, _) => Fault::Kill { node },
        (2 | 3, _) => Fault::Stop { node },
        (4, _) => Fault::Isolate { node },
        (5, _) => Fault::Split { nodes: if nodes > 3 { vec![node, other] } else { vec![node] } },
        (6 | 7, _) => Fault::OneWay { from: node, to: other },
        (8, _) => Fault::AgentsCut { agents: random.index(AGENT_PLACES), node },
        (9, _) => Fault::DiskFull { node },
        (10, _) => {
            let seconds = i64::try_from(random.between(5..7_200)).unwrap_or(0);
            Fault::Clock { node, seconds: if random.between(0..2) == 0 { -seconds } else { seconds } }
        }
        (11, _) => Fault::StoreStop { node },
        (12, _) => Fault::StoreKill { node },
        // With a store of its own a twin's rows would be gone with it.
        (13, Stores::Shared) => Fault::Twin { node },
        (_, Stores::Shared) if random.between(0..3) == 0 => Fault::StoreCut { node },
        (_, Stores::Shared) => {
            Fault::AnswersCut { inserts: u32::try_from(random.between(1..6)).unwrap_or(1) }
        }
        // Who is stopped or cut off after it took a batch has it twice with another: what such stores are about.
        (13, Stores::Embedded) => Fault::Stop { node },
        (_, Stores::Embedded) => Fault::Isolate { node },
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, stores, nodes, agents, steps } = self;
        writeln!(f, "seed {seed}: {nodes} nodes, {agents} agents, stores: {stores:?}")?;
        for Step { begins_ms, ends_ms, fault } in steps {
            writeln!(f, "  {:6.1} s to {:5.1} s  {fault:?}", *begins_ms as f64 / 1e3, *ends_ms as f64 / 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_says_everything() {
        for stores in [Stores::Embedded, Stores::Shared] {
            assert_eq!(plan(7, stores, Size::SMALL), plan(7, stores, Size::SMALL));
            assert_ne!(plan(7, stores, Size::SMALL).steps, plan(8, stores, Size::SMALL).steps);
        }
    }

    #[test]
    fn every_fault_comes_and_no_process_has_two_at_a_time() {
        for stores in [Stores::Embedded, Stores::Shared] {
            let mut kinds = BTreeSet::new();
            for seed in 0..500 {
                let Plan { steps, .. } = plan(seed, stores, Size::SMALL);
                for (index, step) in steps.iter().enumerate() {
                    kinds.insert(step.fault.kind());
                    assert!(step.begins_ms < step.ends_ms && step.ends_ms <= Size::SMALL.faults_ms);
                    let clashes = |other: &&Step| {
                        other.fault.needs(stores) == step.fault.needs(stores)
                            && other.ends_ms >= step.begins_ms
                    };
                    let clash = steps[..index].iter().find(clashes);
                    assert!(clash.is_none() || step.fault.needs(stores).is_none(), "{step:?} and {clash:?}");
                }
            }
            let count = if stores == Stores::Shared { 13 } else { 10 };
            assert_eq!(kinds.len(), count, "{kinds:?}");
        }
    }
}
