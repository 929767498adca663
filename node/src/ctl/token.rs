//! `metaflow ctl token`: tokens of the HTTP interface.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Failure, alone};
use crate::tokens::{self, Scope};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
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

pub(super) fn run(verb: Verb) -> Result<(), Failure> {
    let Verb::Create { name, scope, file } = verb;
    alone(tokens::create(&file, &name, &scope).map(|token| token + "\n"))
}
