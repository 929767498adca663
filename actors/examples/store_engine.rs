//! The engine's process for this crate's tests: the same code that `metaflow store-engine` runs, without the rest of the program.

#[path = "../../node/src/engine.rs"]
mod engine;

use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
enum Verb {
    StoreEngine(engine::Arguments),
}

fn main() -> ExitCode {
    let Verb::StoreEngine(arguments) = Verb::parse();
    match engine::run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("store_engine: {error:#}");
            ExitCode::FAILURE
        }
    }
}
