//! `metaflow ctl agent`: the agents that a node knows.

use clap::Subcommand;

use super::{
    Client, Failure,
    arguments::View,
    output::{Column, Format, Object, column, list},
};

const COLUMNS: [Column; 12] = [
    column("AGENT", "agent_id"),
    column("HOST", "host"),
    column("VERSION", "version"),
    column("SILENT", "silent_seconds").seconds(),
    column("SPOOL", "spool_bytes").bytes(),
    column("MEMORY", "memory_bytes").bytes(),
    column("CPU %", "cpu_percent"),
    column("LOST ROWS", "lost_rows"),
    column("PROCESSES", "processes").wide(),
    column("LISTENERS", "listeners").wide(),
    column("KERNEL", "kernel").wide(),
    column("MACHINE", "machine_id").wide(),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// One line an agent.
    List {
        #[command(flatten)]
        view: View,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { view } => view.run(async |format| agents(client, format).await).await,
    }
}

async fn agents(client: &Client, format: Format) -> Result<String, Failure> {
    let agents: Vec<Object> = client.get("/v1/agents").await?;
    if agents.is_empty() && matches!(format, Format::Table | Format::Wide) {
        return Ok("no agents\n".to_owned());
    }
    list(&agents, &COLUMNS, format)
}
