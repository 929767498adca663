//! The command line: verbs, their options, and what exit codes mean.
//!
//! 0: done. 1: wrong usage or configuration. 2: the node cannot be reached. 3: it answered, but degraded or unfinished. 4: refused, since it
//! would not be safe.

mod manual;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::{Outside, allocator, config, ctl, engine, node};

/// Wrong usage, wrong configuration, or the work failed.
pub(crate) const USAGE: u8 = 1;
/// The node did not answer.
pub(crate) const UNREACHABLE: u8 = 2;
/// The node answered, but what was asked for is not there or not whole.
pub(crate) const DEGRADED: u8 = 3;
/// What was asked for would put data or service at risk.
pub(crate) const UNSAFE: u8 = 4;

/// Observability of everything that runs on your hosts.
#[derive(Debug, Parser)]
#[command(name = "metaflow", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node: take rows from agents, store them, answer queries.
    Node(NodeArguments),
    /// Ask a running node.
    Ctl(ctl::Arguments),
    /// Show requests as they come, from the whole cluster.
    Observe(ctl::observe::Arguments),
    /// Print what makes a shell complete this program's verbs and options.
    Completion(manual::Completion),
    /// Print the manual page, or write one page a verb.
    Man(manual::Man),
    /// The embedded engine's process; started and supervised by the node.
    #[command(hide = true)]
    StoreEngine(engine::Arguments),
}

#[derive(Debug, Args)]
struct NodeArguments {
    /// Configuration (TOML); without it every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the node keeps its state; wins over the configuration.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the verb to its end.
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.verb {
        Verb::Node(arguments) => run_node(arguments),
        Verb::Ctl(arguments) => return ExitCode::from(ask(ctl::run(arguments))),
        Verb::Observe(arguments) => return ExitCode::from(ask(ctl::observe::run(arguments))),
        Verb::Completion(arguments) => manual::completion(&arguments, Cli::command()),
        Verb::Man(arguments) => manual::man(&arguments, Cli::command()),
        Verb::StoreEngine(arguments) => {
            return ExitCode::from(engine::run(arguments).unwrap_or_else(|error| fail(&error)));
        }
    };
    ExitCode::from(result.map_or_else(|error| fail(&error), |()| 0))
}

fn fail(error: &anyhow::Error) -> u8 {
    eprintln!("metaflow: {error:#}");
    USAGE
}

fn run_node(arguments: NodeArguments) -> anyhow::Result<()> {
    allocator::use_one_arena();
    let config = config::load(arguments.config.as_deref(), arguments.data_dir)?;
    crate::logging::init(&config.log);
    runtime()?.block_on(node::run(config, Outside::default()))
}

fn ask(work: impl Future<Output = Result<(), ctl::Failure>>) -> u8 {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(work) {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("metaflow: {failure}");
            failure.code()
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("failed to start the runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verbs_and_options_fit_together() {
        Cli::command().debug_assert();
    }
}
