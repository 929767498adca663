//! `metaflow ctl`: asks a running node over its HTTP interface and prints the answer.
//!
//! A group of verbs is a file: its clap enumeration or arguments, and a `run` that does them. What groups share: `arguments` (options),
//! `output` (how objects are printed), `client` (how a node is asked).

mod agent;
mod arguments;
mod balance;
mod cert;
mod client;
mod debug;
mod dict;
mod doctor;
mod events;
mod ingest;
mod member;
pub(crate) mod observe;
mod output;
mod pages;
mod profile;
mod query;
mod shard;
mod status;
mod table;
mod token;
mod top;
mod trace;
mod wal;

use std::io::{self, Write as _};

use clap::{Args, Subcommand};

use crate::cli::{DEGRADED, UNREACHABLE, UNSAFE, USAGE};

use client::{Access, Answer, Client};

/// What to ask whom.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Whether the node is well, on one screen.
    Status(status::Arguments),
    /// The nodes of the cluster.
    Member {
        #[command(subcommand)]
        verb: member::Verb,
    },
    /// The agents of the cluster, and what they run with.
    Agent {
        #[command(subcommand)]
        verb: agent::Verb,
    },
    /// Where agents belong and why.
    Shard {
        #[command(subcommand)]
        verb: shard::Verb,
    },
    /// How evenly the work is spread, and what would move if a node left or came.
    Balance(balance::Arguments),
    /// Names and their ids.
    Dict {
        #[command(subcommand)]
        verb: dict::Verb,
    },
    /// What waits for the store.
    Wal {
        #[command(subcommand)]
        verb: wal::Verb,
    },
    /// Batches of rows on their way.
    Ingest {
        #[command(subcommand)]
        verb: ingest::Verb,
    },
    /// Checks every node, its machine and its store, and says what to do.
    Doctor(doctor::Arguments),
    /// What happened in the cluster lately.
    Events(events::Arguments),
    /// For who is to find out what is wrong.
    Debug {
        #[command(subcommand)]
        verb: debug::Verb,
    },
    /// Run one SQL statement.
    Query(query::Arguments),
    /// A trace as a tree: what each span took, and why it stands where it does.
    Trace(trace::Arguments),
    /// Where processes spend their time, by function.
    Profile(profile::Arguments),
    /// The services that answer requests now: rate, errors, delays, callers.
    Top(top::Arguments),
    /// Certificates for encrypted connections; asks no node.
    Cert {
        #[command(subcommand)]
        verb: cert::Verb,
    },
    /// Tokens of the HTTP interface; asks no node.
    Token {
        #[command(subcommand)]
        verb: token::Verb,
    },
}

/// Does what was asked for.
pub(crate) async fn run(Arguments { access, verb }: Arguments) -> Result<(), Failure> {
    let client = || Client::new(&access);
    match verb {
        Verb::Status(arguments) => status::run(&client()?, arguments).await,
        Verb::Member { verb } => member::run(&client()?, verb).await,
        Verb::Agent { verb } => agent::run(&client()?, verb).await,
        Verb::Shard { verb } => shard::run(&client()?, verb).await,
        Verb::Balance(arguments) => balance::run(&client()?, arguments).await,
        Verb::Dict { verb } => dict::run(&client()?, verb).await,
        Verb::Wal { verb } => wal::run(&client()?, verb).await,
        Verb::Ingest { verb } => ingest::run(&client()?, verb).await,
        Verb::Doctor(arguments) => doctor::run(&client()?, arguments).await,
        Verb::Events(arguments) => events::run(&client()?, arguments).await,
        Verb::Debug { verb } => debug::run(&client()?, verb).await,
        Verb::Query(arguments) => query::run(&client()?, arguments).await,
        Verb::Trace(arguments) => trace::run(&client()?, arguments).await,
        Verb::Profile(arguments) => profile::run(&client()?, arguments).await,
        Verb::Top(arguments) => top::run(&client()?, arguments).await,
        Verb::Cert { verb } => cert::run(verb),
        Verb::Token { verb } => token::run(verb),
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Degraded(String),
    #[error("{0}")]
    Unsafe(String),
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unreachable(_) => UNREACHABLE,
            Self::Degraded(_) => DEGRADED,
            Self::Unsafe(_) => UNSAFE,
        }
    }
}

/// What needs no node: it makes a text to print.
fn alone(made: anyhow::Result<String>) -> Result<(), Failure> {
    print(&made.map_err(|error| Failure::Usage(format!("{error:#}")))?)
}

/// Writes to standard output; a reader that went away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Usage(format!("failed to write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
