//! What operators may change about groups, as documents to write. Refused with what is wrong and what can be done.

use metaflow_agent_config::{Config, Problem, Remote};
use serde::{Deserialize, Serialize};

use super::{
    GROUPS_MAX, Groups, ROOT,
    model::{AGENT_KEY, Assigned, GROUP_KEY, Group, Matches, Rollout, Share, VERSIONS_MAX, Version},
};
use crate::documents::{self, Write};

/// Agents that one change assigns.
const AGENTS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 64;
const NOTE_BYTES_MAX: usize = 256;
const RULES_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Makes a group, or gives it another parent and other rules.
    Group {
        name: String,
        parent: String,
        matches: Matches,
    },
    DeleteGroup {
        name: String,
    },
    /// Agents by machine id; without a group the rules decide again.
    Assign {
        agents: Vec<String>,
        group: Option<String>,
    },
    /// A new version of what a group sets; for a share of its agents, or for all.
    Set {
        group: String,
        settings: String,
        share: Option<Share>,
        note: String,
    },
    /// The version of the rollout counts for all; or the rollout goes on to a larger share.
    Promote {
        group: String,
        share: Option<Share>,
    },
    /// Ends the rollout; without one, the version before, or the named one, counts again.
    Rollback {
        group: String,
        to: Option<u64>,
    },
    /// The kill switch.
    Switch {
        on: bool,
        scope: Scope,
    },
    /// Trouble: the agents of the rollout go back.
    Stop {
        group: String,
        version: u64,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    All,
    Group(String),
    /// By machine id.
    Agent(String),
}

/// What a change comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    /// For people, one line each.
    pub says: Vec<String>,
    /// The group whose agents are to follow, to wait for.
    pub group: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    Unknown(String),
    #[error("{0}")]
    Unsafe(String),
    #[error(transparent)]
    Settings(#[from] Problem),
    #[error(transparent)]
    Documents(#[from] documents::Error),
}

fn wrong<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Wrong(text.into()))
}

/// What to write for a change at `now` (seconds since 1970).
pub fn plan(groups: &Groups, change: &Change, now: u32) -> Result<Plan, Refusal> {
    match change {
        Change::Group { name, parent, matches } => group(groups, name, parent, matches),
        Change::DeleteGroup { name } => delete(groups, name),
        Change::Assign { agents, group } => assign(groups, agents, group.as_deref()),
        Change::Set { group, settings, share, note } => set(groups, group, settings, *share, note, now),
        Change::Promote { group, share } => promote(groups, group, *share, now),
        Change::Rollback { group, to } => rollback(groups, group, *to),
        Change::Switch { on, scope } => switch(groups, *on, scope),
        Change::Stop { group, version, reason } => stop(groups, group, *version, reason),
    }
}

fn find(groups: &Groups, name: &str) -> Result<Group, Refusal> {
    groups.group(name).map(|group| Group::clone(group)).ok_or_else(|| {
        let known: Vec<&str> = groups.iter().map(|(name, _)| name.as_str()).take(20).collect();
        Refusal::Unknown(format!("there is no group {name:?}; there are: {}", known.join(", ")))
    })
}

/// One group as a document.
fn write(name: &str, group: &Group) -> Result<Plan, Refusal> {
    let body = serde_json::to_string(group).map_err(|error| Refusal::Wrong(error.to_string()))?;
    let writes = vec![(format!("{GROUP_KEY}{name}"), Some(body))];
    Ok(Plan { writes, group: Some(name.to_owned()), ..Plan::default() })
}

impl Plan {
    fn saying(mut self, says: impl IntoIterator<Item = String>) -> Self {
        self.says.extend(says);
        self
    }
}

fn group(groups: &Groups, name: &str, parent: &str, matches: &Matches) -> Result<Plan, Refusal> {
    let is_name = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(allowed)
    };
    if !is_name(name) {
        return wrong(format!(
            "{name:?} is no name of a group: letters, digits, -, _ and ., {NAME_BYTES_MAX} at most"
        ));
    }
    if name == ROOT && (!matches.is_empty() || !(parent.is_empty() || parent == ROOT)) {
        return wrong(format!(
            "{ROOT} is above all groups and takes whom no other takes: no parent, no rules"
        ));
    }
    let parent = if parent == ROOT { "" } else { parent };
    if !parent.is_empty() {
        find(groups, parent)?;
        if groups.is_within(parent, name) {
            return wrong(format!("{parent} is below {name}, so it cannot be its parent"));
        }
        if groups.path(parent).len() + 1 >= super::DEPTH_MAX {
            return wrong(format!("{name} would be deeper than {} groups", super::DEPTH_MAX));
        }
    }
    let rules = matches.hostname.len() + matches.region.len() + matches.zone.len() + matches.labels.len();
    if rules > RULES_MAX {
        return wrong(format!("more than {RULES_MAX} rules; make several groups below one"));
    }
    let known = groups.group(name).map(|group| Group::clone(group));
    if known.is_none() && groups.iter().count() >= GROUPS_MAX {
        return wrong(format!("there are {GROUPS_MAX} groups, which is the limit"));
    }
    let says = format!(
        "{} group {name} below {}",
        if known.is_some() { "change" } else { "make" },
        if parent.is_empty() { ROOT } else { parent }
    );
    let group = Group { parent: parent.to_owned(), matches: matches.clone(), ..known.unwrap_or_default() };
    Ok(write(name, &group)?.saying([says]))
}

fn delete(groups: &Groups, name: &str) -> Result<Plan, Refusal> {
    find(groups, name)?;
    if name == ROOT {
        return wrong(format!("{ROOT} is always there"));
    }
    let children: Vec<&str> =
        groups.iter().filter(|(_, group)| group.parent() == name).map(|(name, _)| name.as_str()).collect();
    if !children.is_empty() {
        let text =
            format!("{name} has groups below it ({}); give them another parent first", children.join(", "));
        return Err(Refusal::Unsafe(text));
    }
    let writes = vec![(format!("{GROUP_KEY}{name}"), None)];
    Ok(Plan { writes, ..Plan::default() }.saying([format!("delete group {name}")]))
}

fn assign(groups: &Groups, agents: &[String], group: Option<&str>) -> Result<Plan, Refusal> {
    if agents.is_empty() || agents.len() > AGENTS_MAX {
        return wrong(format!("name 1 to {AGENTS_MAX} agents"));
    }
    if let Some(name) = group {
        find(groups, name)?;
    }
    let mut plan = Plan { group: group.map(str::to_owned), ..Plan::default() };
    for machine_id in agents {
        let known = groups.assigned(machine_id).cloned().unwrap_or_default();
        plan.writes.push(agent(machine_id, &Assigned { group: group.map(str::to_owned), ..known })?);
        plan.says
            .push(format!("assign {machine_id} to {}", group.unwrap_or("the group whose rules it meets")));
    }
    Ok(plan)
}

fn agent(machine_id: &str, assigned: &Assigned) -> Result<Write, Refusal> {
    let body = serde_json::to_string(assigned).map_err(|error| Refusal::Wrong(error.to_string()))?;
    Ok((format!("{AGENT_KEY}{machine_id}"), (!assigned.is_nothing()).then_some(body)))
}

fn set(
    groups: &Groups,
    name: &str,
    settings: &str,
    share: Option<Share>,
    note: &str,
    now: u32,
) -> Result<Plan, Refusal> {
    let mut group = find(groups, name)?;
    let remote = Remote::parse(settings)?;
    if note.len() > NOTE_BYTES_MAX {
        return wrong(format!("the note is longer than {NOTE_BYTES_MAX} bytes"));
    }
    holds_together(groups, name, &remote)?;
    let known = group.version(group.current).map(|version| version.settings.clone()).unwrap_or_default();
    let number = group.versions.iter().map(|version| version.number).max().unwrap_or(0) + 1;
    group.versions.push(Version { number, settings: settings.to_owned(), at: now, note: note.to_owned() });
    let mut says = vec![format!("{name}@{number} for {}", share.unwrap_or(Share::ALL))];
    says.extend(differences(&known, &remote));
    if let Some(share) = share.filter(|share| *share < Share::ALL) {
        group.rollout = Some(Rollout { version: number, share, at: now, stopped: None });
    } else {
        group.current = number;
        group.rollout = None;
    }
    forget_old(&mut group);
    Ok(write(name, &group)?.saying(says))
}

/// What counts and what is tried stays, and as many of the latest as there is room for.
fn forget_old(group: &mut Group) {
    let tried = group.rollout.as_ref().map(|rollout| rollout.version);
    while group.versions.len() > VERSIONS_MAX {
        let is_needed = |version: &Version| version.number == group.current || Some(version.number) == tried;
        let Some(oldest) = group.versions.iter().position(|version| !is_needed(version)) else { return };
        group.versions.remove(oldest);
    }
}

/// Settings that are sound alone may contradict those above or below them.
fn holds_together(groups: &Groups, name: &str, own: &Remote) -> Result<(), Refusal> {
    for (below, _) in groups.iter().filter(|(below, _)| groups.is_within(below, name)) {
        let path = groups.path(below);
        let whole = path.iter().fold(Remote::default(), |whole, link| {
            if *link == name { whole.with(own) } else { whole.with(&own_settings(groups, link)) }
        });
        whole.over(&Config::default()).map_err(|error| Refusal::Wrong(format!("group {below}: {error}")))?;
    }
    Ok(())
}

fn own_settings(groups: &Groups, name: &str) -> Remote {
    let group = groups.group(name);
    let text = group.and_then(|group| Some(group.version(group.current)?.settings.as_str()));
    text.and_then(|text| Remote::parse(text).ok()).unwrap_or_default()
}

/// Lines with `-` and `+`, key by key.
fn differences(before: &str, after: &Remote) -> Vec<String> {
    let before = Remote::parse(before).unwrap_or_default().lines();
    let after = after.lines();
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
    let mut lines: Vec<String> = gone.chain(new).collect();
    // The old and the new of a key stand together.
    lines.sort_by(|one, other| {
        one[2..].split(" = ").next().cmp(&other[2..].split(" = ").next()).then(other.cmp(one))
    });
    if lines.is_empty() {
        lines.push("no key changes".to_owned());
    }
    lines
}

fn settings_of(group: &Group, number: u64) -> Remote {
    let text = group.version(number).map(|version| version.settings.as_str());
    text.and_then(|text| Remote::parse(text).ok()).unwrap_or_default()
}

fn promote(groups: &Groups, name: &str, share: Option<Share>, now: u32) -> Result<Plan, Refusal> {
    let mut group = find(groups, name)?;
    let Some(rollout) = group.rollout.take() else {
        return wrong(format!("{name} has no rollout; version {} counts for all", group.current));
    };
    if let Some(reason) = &rollout.stopped {
        return Err(Refusal::Unsafe(format!(
            "the rollout of {name}@{} was stopped: {reason}; set a better version, or set this one again",
            rollout.version
        )));
    }
    let says = format!("{name}@{} for {}", rollout.version, share.unwrap_or(Share::ALL));
    if let Some(share) = share.filter(|share| *share < Share::ALL) {
        group.rollout = Some(Rollout { share, at: now, ..rollout });
    } else {
        group.current = rollout.version;
    }
    Ok(write(name, &group)?.saying([says]))
}

fn rollback(groups: &Groups, name: &str, to: Option<u64>) -> Result<Plan, Refusal> {
    let mut group = find(groups, name)?;
    let before = settings_of(&group, group.current).to_toml();
    let numbers: Vec<u64> = group.versions.iter().map(|version| version.number).collect();
    let mut says = Vec::new();
    match (group.rollout.take(), to) {
        (Some(rollout), None) => {
            let (tried, counts) = (rollout.version, group.current);
            says.push(format!("end the rollout of {name}@{tried}; version {counts} counts for all"));
        }
        (_, Some(0)) => {
            group.current = 0;
            says.push(format!("{name} sets nothing"));
        }
        (_, Some(number)) if numbers.contains(&number) => group.current = number,
        (_, Some(number)) => {
            return wrong(format!("{name} has no version {number}; it remembers {numbers:?}"));
        }
        (None, None) => {
            let earlier = numbers.iter().copied().filter(|number| *number < group.current).max();
            let Some(number) = earlier else {
                return wrong(format!(
                    "{name} remembers no version before {}; --to 0 sets nothing",
                    group.current
                ));
            };
            group.current = number;
        }
    }
    if says.is_empty() {
        says.push(format!("{name}@{} for 100%", group.current));
    }
    says.extend(differences(&before, &settings_of(&group, group.current)));
    Ok(write(name, &group)?.saying(says))
}

fn switch(groups: &Groups, on: bool, scope: &Scope) -> Result<Plan, Refusal> {
    let word = if on { "enable" } else { "disable" };
    match scope {
        Scope::Agent(machine_id) => {
            let known = groups.assigned(machine_id).cloned().unwrap_or_default();
            let writes = vec![agent(machine_id, &Assigned { is_off: !on, ..known })?];
            Ok(Plan { writes, ..Plan::default() }.saying([format!("{word} the agent {machine_id}")]))
        }
        Scope::All | Scope::Group(_) => {
            let name = if let Scope::Group(name) = scope { name } else { ROOT };
            let mut group = find(groups, name)?;
            group.is_off = !on;
            let mut plan = write(name, &group)?.saying([format!("{word} the agents of {name}")]);
            let still = groups
                .path(name)
                .into_iter()
                .find(|above| *above != name && groups.group(above).is_some_and(|group| group.is_off));
            if let Some(above) = still.filter(|_| on) {
                plan.says.push(format!("they stay off as long as the group {above} is disabled"));
            }
            Ok(plan)
        }
    }
}

fn stop(groups: &Groups, name: &str, version: u64, reason: &str) -> Result<Plan, Refusal> {
    let mut group = find(groups, name)?;
    match &mut group.rollout {
        Some(rollout) if rollout.version == version => rollout.stopped = Some(reason.to_owned()),
        _ => return wrong(format!("version {version} of {name} is not rolled out any more")),
    }
    Ok(write(name, &group)?.saying([format!("stop the rollout of {name}@{version}: {reason}")]))
}
