//! `metaflow`: the node and its administration, one program.

use std::process::ExitCode;

use clap::Parser as _;
use metaflow_node::cli::{self, Cli};

fn main() -> ExitCode {
    // clap ends the process by itself on `--help`, `--version` and wrong usage; a wrong usage is 1 here, as for every verb.
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 1 } else { 0 };
            // Nothing is left to tell when the terminal is gone.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    cli::run(cli)
}
