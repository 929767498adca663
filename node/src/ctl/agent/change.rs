//! Changes to groups of agents: settings, rollouts, rules, the kill switch.

use std::{collections::BTreeMap, io::Read as _, path::PathBuf};

use axum::http::Method;
use clap::{Args, Subcommand};
use metaflow_actors::groups::{Change, Matches, ROOT, Scope, Share};
use serde::{Deserialize, Serialize};

use super::{Missing, groups, machine_id, trouble};
use crate::ctl::{
    Client, Failure,
    arguments::{DryRun, Progress, View, Wait},
    print,
};

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum ConfigVerb {
    /// A new version of what a group sets, for all of its agents or for a share of them.
    Set {
        group: String,
        /// Settings as in agent.toml (`-` reads standard input): only those that the group is to set.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// For this share of its agents first; it stops by itself when they report trouble.
        #[arg(long, value_name = "PERCENT")]
        rollout: Option<Share>,
        /// Why, for who reads the history.
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
        #[command(flatten)]
        dry_run: DryRun,
        #[command(flatten)]
        wait: Wait,
    },
    /// The version that is rolled out counts for all, or for a larger share.
    Promote {
        group: String,
        #[arg(long, value_name = "PERCENT")]
        rollout: Option<Share>,
        #[command(flatten)]
        dry_run: DryRun,
        #[command(flatten)]
        wait: Wait,
    },
    /// Ends a rollout; without one, the version before counts again.
    Rollback {
        group: String,
        /// The version that is to count; 0 sets nothing.
        #[arg(long, value_name = "VERSION")]
        to: Option<u64>,
        #[command(flatten)]
        dry_run: DryRun,
        #[command(flatten)]
        wait: Wait,
    },
    /// What a group sets, its last versions, and how its agents stand.
    Show {
        group: String,
        #[command(flatten)]
        view: View,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum GroupVerb {
    /// One line a group.
    List {
        #[command(flatten)]
        view: View,
    },
    /// Make a group, or give it another parent and other rules. An agent that meets all of them belongs to it.
    Set {
        name: String,
        #[arg(long, default_value = ROOT)]
        parent: String,
        /// Pattern of host names, e.g. `web-*`; may be given several times.
        #[arg(long, value_name = "PATTERN")]
        hostname: Vec<String>,
        #[arg(long)]
        region: Vec<String>,
        #[arg(long)]
        zone: Vec<String>,
        /// A label of agent.toml; all of them must be there.
        #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
        label: Vec<(String, String)>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Its agents belong to the groups whose rules they meet then.
    Delete {
        name: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Assign {
    /// Ids, machine ids or hosts.
    #[arg(required = true)]
    agent: Vec<String>,
    #[arg(long, required_unless_present = "by_rules")]
    group: Option<String>,
    /// Take the assignment away: the rules of the groups decide.
    #[arg(long, conflicts_with = "group")]
    by_rules: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct Switch {
    #[command(flatten)]
    whom: Whom,
    #[command(flatten)]
    dry_run: DryRun,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// The agents of this group and of those below it.
    #[arg(long)]
    group: Option<String>,
    /// By id, machine id or host.
    #[arg(long)]
    agent: Option<String>,
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Question<'a> {
    change: &'a Change,
    dry_run: bool,
}

#[derive(Debug, Deserialize)]
struct Changed {
    says: Vec<String>,
    agents: usize,
    missing: Vec<Missing>,
}

pub(super) async fn config(client: &Client, verb: ConfigVerb) -> Result<(), Failure> {
    let (group, change, dry_run, wait) = match verb {
        ConfigVerb::Show { group, view } => {
            return view.run(async |format| groups::one(client, &group, format).await).await;
        }
        ConfigVerb::Set { group, file, rollout, note, dry_run, wait } => {
            let change = Change::Set { group: group.clone(), settings: read(&file)?, share: rollout, note };
            (group, change, dry_run, wait)
        }
        ConfigVerb::Promote { group, rollout, dry_run, wait } => {
            (group.clone(), Change::Promote { group, share: rollout }, dry_run, wait)
        }
        ConfigVerb::Rollback { group, to, dry_run, wait } => {
            (group.clone(), Change::Rollback { group, to }, dry_run, wait)
        }
    };
    perform(client, &change, &dry_run).await?;
    follow(client, &group, &dry_run, &wait).await
}

pub(super) async fn group(client: &Client, verb: GroupVerb) -> Result<(), Failure> {
    match verb {
        GroupVerb::List { view } => view.run(async |format| groups::all(client, format).await).await,
        GroupVerb::Set { name, parent, hostname, region, zone, label, dry_run } => {
            let labels: BTreeMap<String, String> = label.into_iter().collect();
            let change = Change::Group { name, parent, matches: Matches { hostname, region, zone, labels } };
            perform(client, &change, &dry_run).await
        }
        GroupVerb::Delete { name, dry_run } => perform(client, &Change::DeleteGroup { name }, &dry_run).await,
    }
}

pub(super) async fn assign(client: &Client, order: Assign) -> Result<(), Failure> {
    let Assign { agent, group, by_rules: _, dry_run } = order;
    let mut agents = Vec::new();
    for agent in &agent {
        agents.push(machine_id(client, agent).await?);
    }
    perform(client, &Change::Assign { agents, group }, &dry_run).await
}

pub(super) async fn switch(client: &Client, order: Switch, on: bool) -> Result<(), Failure> {
    let Switch { whom: Whom { group, agent, all: _ }, dry_run, wait } = order;
    let scope = match (&group, &agent) {
        (Some(group), _) => Scope::Group(group.clone()),
        (_, Some(agent)) => Scope::Agent(machine_id(client, agent).await?),
        _ => Scope::All,
    };
    perform(client, &Change::Switch { on, scope }, &dry_run).await?;
    match &agent {
        Some(_) if dry_run.dry_run => Ok(()),
        Some(agent) => {
            wait.until("the switch", async || {
                let agents = super::find(client, agent).await?.agents;
                let has_it = |agent: &super::Object| {
                    agent.get("config_state").and_then(|state| state.as_str()) != Some("waiting")
                };
                Ok(if agents.iter().all(has_it) {
                    Progress::Done
                } else {
                    Progress::Unfinished(format!("{agent} has not heard of it"))
                })
            })
            .await
        }
        None => follow(client, group.as_deref().unwrap_or(ROOT), &dry_run, &wait).await,
    }
}

async fn follow(client: &Client, group: &str, dry_run: &DryRun, wait: &Wait) -> Result<(), Failure> {
    if dry_run.dry_run {
        return Ok(());
    }
    wait.until("the configuration", async || groups::stand(client, group).await?.progress()).await
}

/// Sends a change, and prints what it comes to. Nodes that have not heard of it are no failure: they will.
async fn perform(client: &Client, change: &Change, dry_run: &DryRun) -> Result<(), Failure> {
    let question = Question { change, dry_run: dry_run.dry_run };
    let Changed { says, agents, missing } =
        client.send(Method::POST, "/v1/agent-groups", Some(&question)).await?;
    let mut text = says.join("\n");
    let word = if dry_run.dry_run { "would get" } else { "get" };
    let noun = if agents == 1 { "agent" } else { "agents" };
    text.push_str(&format!("\n{agents} {noun} {word} another configuration\n"));
    if let Some(trouble) = trouble(&missing) {
        text.push_str(&format!("{trouble}; it hears of it later\n"));
    }
    print(&text)
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    read.map_err(|error| Failure::Usage(format!("failed to read {}: {error}", file.display())))?;
    Ok(text)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}
