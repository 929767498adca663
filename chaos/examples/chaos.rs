//! `chaos [--seeds N] [--seed S] [--stores shared|embedded] [--nodes N] [--agents N] [--seconds N] [--longest N]`: runs of random faults,
//! one after the other; prints each schedule, what was seen, and how to see it again.

use std::process::ExitCode;

use metaflow_chaos::{
    plan::{Size, Stores, plan},
    run::run,
};

const USAGE: &str = "usage: chaos [--seeds N] [--seed S] [--stores shared|embedded] [--nodes 2-9] [--agents N] [--seconds N: of faults] [--longest N: seconds of one]";

struct Options {
    seeds: u64,
    first: Option<u64>,
    stores: Vec<Stores>,
    size: Size,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)) {
        Ok(options) => run_all(&options),
        Err(wrong) => {
            eprintln!("chaos: {wrong}\n{USAGE}");
            ExitCode::from(1)
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        seeds: 10,
        first: None,
        stores: vec![Stores::Shared, Stores::Embedded],
        size: Size { faults_ms: 30_000, fault_ms_max: 10_000, ..Size::SMALL },
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} lacks its value"))?;
        if name == "--stores" {
            options.stores = match value.as_str() {
                "shared" => vec![Stores::Shared],
                "embedded" => vec![Stores::Embedded],
                _ => return Err(format!("--stores {value}: shared or embedded")),
            };
            continue;
        }
        let number: u64 = value.parse().map_err(|_| format!("{name} {value}: not a number"))?;
        match name.as_str() {
            "--seeds" => options.seeds = number,
            "--seed" => options.first = Some(number),
            "--nodes" if (2..=9).contains(&number) => options.size.nodes = number as usize,
            "--agents" => options.size.agents = number as u32,
            "--seconds" => options.size.faults_ms = number * 1_000,
            "--longest" if number > 0 => options.size.fault_ms_max = number * 1_000,
            _ => return Err(format!("{name} {value} is not understood")),
        }
    }
    Ok(options)
}

fn run_all(options: &Options) -> ExitCode {
    let seeds = options.first.map_or(0..options.seeds, |first| first..first + 1);
    let (mut runs, mut failed) = (0, 0);
    for seed in seeds {
        for stores in &options.stores {
            let plan = plan(seed, *stores, options.size);
            eprint!("{plan}");
            runs += 1;
            match run(&plan) {
                Ok(report) => eprintln!("{report}"),
                Err(error) => {
                    failed += 1;
                    let stores = format!("{stores:?}").to_lowercase();
                    eprintln!(
                        "seed {seed} FAILED: {error:#}\nsee it again: chaos --seed {seed} --stores {stores}, with the same options\n"
                    );
                }
            }
        }
    }
    eprintln!("{runs} runs, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}
