//! `metaflow ctl agent`: the agents of the cluster, and what they run with.

mod change;
mod groups;

use clap::Subcommand;
use serde::Deserialize;

use super::{
    Client, Failure,
    arguments::{Shown, View},
    output::{Column, Format, Object, column, list, one},
};

const COLUMNS: [Column; 20] = [
    column("AGENT", "agent_id"),
    column("HOST", "host"),
    column("STATUS", "status"),
    column("GROUP", "group"),
    column("CONFIG", "config"),
    column("STATE", "config_state"),
    column("NODE", "node_id"),
    column("REGION", "region"),
    column("VERSION", "version"),
    column("SEEN", "silent_seconds").seconds(),
    column("CPU", "cpu_percent"),
    column("MEMORY", "memory_bytes").bytes(),
    column("SPOOL", "spool_bytes").bytes(),
    column("LOST ROWS", "lost_rows"),
    column("LAST ERROR", "last_error"),
    column("ZONE", "zone").wide(),
    column("CONFIG ERROR", "config_error").wide(),
    column("CONNECTIONS", "connections").wide(),
    column("KERNEL", "kernel").wide(),
    column("MACHINE", "machine_id").wide(),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// One line an agent, of the whole cluster. Exit code 3 when a node did not answer.
    List {
        /// Of this group and those below it.
        #[arg(long)]
        group: Option<String>,
        #[arg(long)]
        region: Option<String>,
        /// ok, shedding, stopped, disabled, silent; or applied, waiting, restart, refused.
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        view: View,
    },
    /// Everything about one agent.
    Show {
        /// Its id, machine id or host.
        agent: String,
        #[command(flatten)]
        view: View,
    },
    /// What groups of agents are to run with.
    Config {
        #[command(subcommand)]
        verb: change::ConfigVerb,
    },
    /// Groups of agents: a tree below `default`.
    Group {
        #[command(subcommand)]
        verb: change::GroupVerb,
    },
    /// Put agents into a group, whatever its rules say.
    Assign(change::Assign),
    /// The kill switch: agents capture nothing, and still send what is spooled.
    Disable(change::Switch),
    /// Agents capture again.
    Enable(change::Switch),
}

/// What a node gathered, and who did not answer it.
#[derive(Debug, Deserialize)]
struct Answer {
    agents: Vec<Object>,
    missing: Vec<Missing>,
}

#[derive(Debug, Deserialize)]
struct Missing {
    node_id: u16,
    address: String,
    reason: String,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { group, region, status, view } => {
            let filters = [("group", group), ("region", region), ("status", status)];
            let path = path("/v1/cluster/agents", &filters)?;
            view.run(async |format| agents(client, &path, format).await).await
        }
        Verb::Show { agent, view } => view.run(async |format| show(client, &agent, format).await).await,
        Verb::Config { verb } => change::config(client, verb).await,
        Verb::Group { verb } => change::group(client, verb).await,
        Verb::Assign(order) => change::assign(client, order).await,
        Verb::Disable(order) => change::switch(client, order, false).await,
        Verb::Enable(order) => change::switch(client, order, true).await,
    }
}

async fn agents(client: &Client, path: &str, format: Format) -> Result<Shown, Failure> {
    let Answer { agents, missing } = client.get(path).await?;
    let text = if agents.is_empty() && matches!(format, Format::Table | Format::Wide) {
        "no agents\n".to_owned()
    } else {
        list(&agents, &COLUMNS, format)?
    };
    Ok(Shown { text, trouble: trouble(&missing) })
}

async fn show(client: &Client, agent: &str, format: Format) -> Result<Shown, Failure> {
    let Answer { agents, missing } = find(client, agent).await?;
    let mut text = String::new();
    for agent in &agents {
        text.push_str(&one(agent, format)?);
    }
    Ok(Shown { text, trouble: trouble(&missing) })
}

async fn find(client: &Client, agent: &str) -> Result<Answer, Failure> {
    client.get(&format!("/v1/cluster/agents/{}", encoded(agent)?)).await
}

/// The machine id of the one agent that is meant.
async fn machine_id(client: &Client, agent: &str) -> Result<String, Failure> {
    let agents = find(client, agent).await?.agents;
    let ids: Vec<&str> = agents.iter().filter_map(|agent| agent.get("machine_id")?.as_str()).collect();
    match ids.as_slice() {
        [id] => Ok((*id).to_owned()),
        ids => Err(Failure::Usage(format!(
            "{} agents are called {agent:?}; use the machine id: {}",
            ids.len(),
            ids.join(", ")
        ))),
    }
}

fn trouble(missing: &[Missing]) -> Option<String> {
    let nodes: Vec<String> = missing
        .iter()
        .map(|Missing { node_id, address, reason }| {
            format!("node {node_id} ({address}) did not answer: {reason}")
        })
        .collect();
    (!nodes.is_empty()).then(|| format!("not complete: {}", nodes.join("; ")))
}

/// A path with the parameters that are given.
pub(super) fn path(path: &str, parameters: &[(&str, Option<String>)]) -> Result<String, Failure> {
    let mut text = path.to_owned();
    for (name, value) in parameters {
        if let Some(value) = value {
            let separator = if text.contains('?') { '&' } else { '?' };
            text.push_str(&format!("{separator}{name}={}", encoded(value)?));
        }
    }
    Ok(text)
}

/// Percent-encoding of whatever has a meaning in a URL.
fn encoded(text: &str) -> Result<String, Failure> {
    if text.is_empty() {
        return Err(Failure::Usage("an empty name is none".to_owned()));
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~:".contains(byte);
    Ok(text
        .bytes()
        .map(|byte| if is_plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_and_absent_filters_left_out() {
        let filters =
            [("group", Some("a b&c".to_owned())), ("region", None), ("status", Some("ok".to_owned()))];
        assert_eq!(path("/p", &filters).unwrap(), "/p?group=a%20b%26c&status=ok");
        assert_eq!(encoded("é/..").unwrap(), "%C3%A9%2F..");
        assert!(encoded("").is_err());
    }

    #[test]
    fn a_node_that_did_not_answer_is_named() {
        let missing = [Missing { node_id: 2, address: "a:1".to_owned(), reason: "no answer".to_owned() }];
        assert_eq!(trouble(&missing).unwrap(), "not complete: node 2 (a:1) did not answer: no answer");
        assert_eq!(trouble(&[]), None);
    }
}
