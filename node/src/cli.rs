//! The command line: verbs, their options, and what exit codes mean.
//!
//! 0: done. 1: wrong usage or configuration. 2: the node cannot be reached. 3: it answered, but degraded or unfinished.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    allocator, clock, config, ctl, engine, node,
    tokens::{self, Scope},
};

/// Wrong usage, wrong configuration, or the work failed.
pub(crate) const USAGE: u8 = 1;
/// The node did not answer.
pub(crate) const UNREACHABLE: u8 = 2;
/// The node answered, but what was asked for is not there or not whole.
pub(crate) const DEGRADED: u8 = 3;

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
    Ctl(CtlArguments),
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

#[derive(Debug, Args)]
struct CtlArguments {
    #[command(flatten)]
    access: ctl::Access,
    #[command(subcommand)]
    verb: CtlVerb,
}

#[derive(Debug, Subcommand)]
enum CtlVerb {
    /// Run one SQL statement.
    Query {
        sql: String,
        /// Database: flow_metrics, flow_log or flow_tag; without it the table's name decides.
        #[arg(long)]
        db: Option<String>,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// The services that answer requests now: rate, errors, delays, callers.
    Top {
        /// Print the table once, as text. Exit code 3 when no named service had requests.
        #[arg(long)]
        once: bool,
        /// Time between two refreshes.
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
        interval: Duration,
        /// Seconds that the figures cover.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=3600))]
        seconds: u32,
    },
    /// The agents that this node knows.
    Agent {
        #[command(subcommand)]
        verb: AgentVerb,
    },
    /// The nodes of the cluster.
    Member {
        #[command(subcommand)]
        verb: MemberVerb,
    },
    /// Whether the node is well, on one screen.
    Status,
    /// Certificates for encrypted connections; asks no node.
    Cert {
        #[command(subcommand)]
        verb: CertVerb,
    },
    /// Tokens of the HTTP interface; asks no node.
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
}

#[derive(Debug, Subcommand)]
enum CertVerb {
    /// Make a small private authority, and certificates of it for nodes and agents.
    Bootstrap(ctl::Bootstrap),
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token, print it once, and add its digest to a tokens file.
    Create {
        /// Whose it is.
        #[arg(long)]
        name: String,
        /// What it is good for; may be given several times. Admin is good for everything.
        #[arg(long, value_enum, required = true)]
        scope: Vec<Scope>,
        /// The node's http.tokens_file.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum MemberVerb {
    /// One line a node, as the asked node sees them.
    List {
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
enum AgentVerb {
    /// One line an agent.
    List {
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Csv,
}

/// Runs the verb to its end.
pub fn run(cli: Cli) -> ExitCode {
    match cli.verb {
        Verb::Node(arguments) => ExitCode::from(run_node(arguments)),
        Verb::Ctl(CtlArguments { access, verb }) => ExitCode::from(run_ctl(&access, verb)),
        Verb::StoreEngine(arguments) => {
            ExitCode::from(engine::run(arguments).unwrap_or_else(|error| fail(&error)))
        }
    }
}

fn fail(error: &anyhow::Error) -> u8 {
    eprintln!("metaflow: {error:#}");
    USAGE
}

fn run_node(arguments: NodeArguments) -> u8 {
    allocator::use_one_arena();
    let config = match config::load(arguments.config.as_deref(), arguments.data_dir) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    crate::logging::init(&config.log);
    match runtime().and_then(|runtime| runtime.block_on(node::run(config))) {
        Ok(()) => 0,
        Err(error) => fail(&error),
    }
}

fn run_ctl(access: &ctl::Access, verb: CtlVerb) -> u8 {
    let work = async {
        let client = || ctl::Client::new(access);
        match verb {
            CtlVerb::Query { sql, db, output } => ctl::query(&client()?, &sql, db.as_deref(), output).await,
            CtlVerb::Top { once, interval, seconds } => ctl::top(&client()?, once, interval, seconds).await,
            CtlVerb::Agent { verb: AgentVerb::List { output } } => ctl::agents(&client()?, output).await,
            CtlVerb::Member { verb: MemberVerb::List { output } } => ctl::members(&client()?, output).await,
            CtlVerb::Status => ctl::status(&client()?).await,
            CtlVerb::Cert { verb: CertVerb::Bootstrap(order) } => {
                alone(ctl::bootstrap(&order, clock::seconds()))
            }
            CtlVerb::Token { verb: TokenVerb::Create { name, scope, file } } => {
                alone(tokens::create(&file, &name, &scope).map(|token| token + "\n"))
            }
        }
    };
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

/// What needs no node: it makes a text to print.
fn alone(made: anyhow::Result<String>) -> Result<(), ctl::Failure> {
    ctl::print(&made.map_err(|error| ctl::Failure::Usage(format!("{error:#}")))?)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context as _;
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("failed to start the runtime")
}
