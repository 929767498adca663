//! Groups of agents: what each agent runs with.
//!
//! Groups form a tree below [`ROOT`]; what a group sets counts for its children, and a child wins key by key. An agent belongs to the group
//! that it was assigned to, else to the deepest whose rule it meets, else to the root. A group keeps its last versions, one of which
//! counts; while a rollout runs, a second one counts for a share of its agents. Switched off, a group captures nothing, whatever it sets.
//!
//! Groups are documents (see [`crate::documents`]), so all nodes see the same ones, sooner or later. Everything here is pure. What
//! documents say together may make no sense (a parent that is gone, a circle): then a group hangs on the root.

mod change;
mod model;
mod registry;
mod rollout;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use metaflow_agent_config::Remote;
use metaflow_wire as wire;

pub use change::{Change, Plan, Refusal, Scope, plan};
pub use model::{Assigned, Group, Matches, ROOT, Rollout, Share, Version, Who};
pub use registry::Registry;
pub use rollout::{Judge, Sample, Verdict};

use crate::{documents::Kept, placement::text_hash};

/// Deepest tree: more says that something is wrong.
pub const DEPTH_MAX: usize = 16;
pub const GROUPS_MAX: usize = 1_000;

/// What an agent is to run with.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub group: Arc<str>,
    pub config: Arc<wire::Config>,
    /// What sets most of it, e.g. `web@4`; empty when no group sets anything.
    pub version: String,
    /// Groups of whose rollouts it is part.
    pub trials: Vec<(Arc<str>, u64)>,
    /// The kill switch, or the settings, say so.
    pub is_off: bool,
}

/// All groups, as of one moment.
#[derive(Debug, Default)]
pub struct Groups {
    groups: BTreeMap<String, Arc<Group>>,
    /// From the root to the group itself.
    chains: HashMap<String, Chain>,
    /// Deepest first, then by name: the order in which rules are tried.
    order: Vec<String>,
    assigned: HashMap<String, Assigned>,
    /// What was put together before; few combinations are in use at a time.
    made: Mutex<HashMap<Recipe, Arc<wire::Config>>>,
}

type Chain = Arc<[Link]>;
/// A group, which of its links' trials count, and whether it is off.
type Recipe = (Arc<str>, u64, bool);

/// One group of a chain.
#[derive(Debug)]
struct Link {
    name: Arc<str>,
    is_off: bool,
    counts: Option<(u64, Remote)>,
    trial: Option<(u64, Share, Remote)>,
}

impl Groups {
    /// What the documents say.
    pub fn of(kept: &Kept) -> Self {
        let mut groups = BTreeMap::from([(ROOT.to_owned(), Arc::<Group>::default())]);
        let mut assigned = HashMap::new();
        for document in kept.values() {
            let Some(body) = &document.body else { continue };
            if let Some(name) = document.key.strip_prefix(model::GROUP_KEY)
                && let Some(group) = model::read::<Group>(&document.key, body)
            {
                groups.insert(name.to_owned(), Arc::new(group));
            } else if let Some(machine_id) = document.key.strip_prefix(model::AGENT_KEY)
                && let Some(agent) = model::read::<Assigned>(&document.key, body)
            {
                assigned.insert(machine_id.to_owned(), agent);
            }
        }
        let chains: HashMap<String, Chain> =
            groups.keys().map(|name| (name.clone(), chain(&groups, name))).collect();
        let mut order: Vec<String> = groups.keys().filter(|name| *name != ROOT).cloned().collect();
        order.sort_by_key(|name| std::cmp::Reverse(chains[name].len()));
        Self { groups, chains, order, assigned, made: Mutex::default() }
    }

    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Arc<Group>)> {
        self.groups.iter()
    }

    pub fn assigned(&self, machine_id: &str) -> Option<&Assigned> {
        self.assigned.get(machine_id)
    }

    /// Whether `name` is `ancestor` or below it.
    pub fn is_within(&self, name: &str, ancestor: &str) -> bool {
        self.chains.get(name).is_some_and(|chain| chain.iter().any(|link| &*link.name == ancestor))
    }

    /// The names from the root to a group.
    pub fn path(&self, name: &str) -> Vec<&str> {
        self.chains.get(name).map_or_else(Vec::new, |chain| chain.iter().map(|link| &*link.name).collect())
    }

    /// What counts in a group when no trial does.
    pub fn settings(&self, name: &str) -> Remote {
        self.chains.get(name).map_or_else(Remote::default, |chain| put_together(chain, 0))
    }

    /// The group of an agent.
    pub fn group_of(&self, who: &Who) -> &str {
        let assigned = self.assigned.get(&who.machine_id).and_then(|agent| agent.group.as_deref());
        if let Some((name, _)) = assigned.and_then(|name| self.groups.get_key_value(name)) {
            return name;
        }
        let meets = |name: &&String| self.groups.get(*name).is_some_and(|group| group.matches.meets(who));
        self.order.iter().find(meets).map_or(ROOT, String::as_str)
    }

    /// What an agent is to run with.
    pub fn wanted(&self, who: &Who) -> Wanted {
        let name = self.group_of(who);
        let Some(chain) = self.chains.get(name) else { return Wanted::nothing() };
        let mut trials = Vec::new();
        let mut mask = 0_u64;
        let mut version = String::new();
        for (at, link) in chain.iter().enumerate() {
            let trial = link.trial.as_ref().filter(|(_, share, _)| share.has(&link.name, &who.machine_id));
            if let Some((number, _, _)) = trial {
                mask |= 1 << at;
                trials.push((Arc::clone(&link.name), *number));
            }
            let number = trial.map(|trial| trial.0).or_else(|| link.counts.as_ref().map(|counts| counts.0));
            if let Some(number) = number {
                version = format!("{}@{number}", link.name);
            }
        }
        let is_off = chain.iter().any(|link| link.is_off)
            || self.assigned.get(&who.machine_id).is_some_and(|agent| agent.is_off);
        let group = chain.last().map_or_else(|| ROOT.into(), |link| Arc::clone(&link.name));
        let recipe = (Arc::clone(&group), mask, is_off);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let config = made.entry(recipe).or_insert_with(|| Arc::new(configuration(chain, mask, is_off)));
        let is_off = Remote::is_off(&config.toml);
        Wanted { group, config: Arc::clone(config), version, trials, is_off }
    }
}

impl Wanted {
    fn nothing() -> Self {
        Self {
            group: ROOT.into(),
            config: Arc::default(),
            version: String::new(),
            trials: vec![],
            is_off: false,
        }
    }
}

impl Link {
    fn of(name: &str, group: &Group) -> Self {
        let remote = |number| {
            let text = &group.version(number)?.settings;
            // Checked when it was set; a node of another release may know keys that this one does not.
            match Remote::parse(text) {
                Ok(remote) => Some(remote),
                Err(error) => {
                    tracing::warn!(group = name, version = number, %error, "a group's settings do not count on this node");
                    None
                }
            }
        };
        let trial = group.rollout.as_ref().filter(|rollout| rollout.stopped.is_none());
        Self {
            name: name.into(),
            is_off: group.is_off,
            counts: remote(group.current).map(|remote| (group.current, remote)),
            trial: trial.and_then(|rollout| Some((rollout.version, rollout.share, remote(rollout.version)?))),
        }
    }
}

/// From the root to a group; one whose ancestors are gone or form a circle hangs on the root.
fn chain(groups: &BTreeMap<String, Arc<Group>>, name: &str) -> Chain {
    let mut names = vec![name];
    while let Some(last) = names.last().filter(|last| **last != ROOT) {
        let parent = groups.get(*last).map_or(ROOT, |group| group.parent());
        if !groups.contains_key(parent) || names.contains(&parent) || names.len() >= DEPTH_MAX {
            names.truncate(1);
            names.push(ROOT);
            break;
        }
        names.push(parent);
    }
    let link = |name: &&str| groups.get(*name).map(|group| Link::of(name, group));
    names.iter().rev().filter_map(link).collect()
}

fn put_together(chain: &Chain, mask: u64) -> Remote {
    chain.iter().enumerate().fold(Remote::default(), |remote, (at, link)| {
        let trial = link.trial.as_ref().filter(|_| mask & (1 << at) != 0).map(|trial| &trial.2);
        match trial.or_else(|| link.counts.as_ref().map(|counts| &counts.1)) {
            Some(own) => remote.with(own),
            None => remote,
        }
    })
}

/// Groups that set nothing are version 0, which is what agents begin with.
fn configuration(chain: &Chain, mask: u64, is_off: bool) -> wire::Config {
    let mut remote = put_together(chain, mask);
    if is_off {
        remote = remote.with(&Remote::off());
    }
    if remote.is_empty() {
        return wire::Config::default();
    }
    let toml = remote.to_toml();
    wire::Config { version: digest(&toml), toml }
}

/// Heartbeats repeat it, so it is short: 48 bits.
fn digest(toml: &str) -> u64 {
    (text_hash(0, toml) >> 16).max(1)
}
