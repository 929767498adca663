//! `simulate [--seeds N] [--seed S] [--trace]`: runs seeds of the simulation on all cores, prints what failed and how to see it again.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use metaflow_cluster_tests::simulation::{self, Options};

const USAGE: &str = "usage: simulate [--seeds N] [--seed S] [--trace]";

fn main() -> ExitCode {
    let (mut seeds, mut first, mut options) = (500, None, Options::default());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (argument.as_str(), argument == "--seeds" || argument == "--seed") {
            ("--trace", _) => options.trace = true,
            (name, true) => match number() {
                Some(value) if name == "--seeds" => seeds = value,
                Some(value) => first = Some(value),
                None => return wrong(&argument),
            },
            _ => return wrong(&argument),
        }
    }
    let range = first.map_or(0..seeds, |seed| seed..seed + 1);
    run(range, options)
}

fn wrong(argument: &str) -> ExitCode {
    eprintln!("simulate: {argument} is not understood or lacks its number\n{USAGE}");
    ExitCode::from(1)
}

fn run(seeds: std::ops::Range<u64>, options: Options) -> ExitCode {
    let begin = Instant::now();
    let (next, batches, steps) = (AtomicU64::new(seeds.start), AtomicU64::new(0), AtomicU64::new(0));
    let failed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    match simulation::run(seed, options) {
                        Ok(report) => {
                            batches.fetch_add(report.batches, Ordering::Relaxed);
                            steps.fetch_add(report.steps, Ordering::Relaxed);
                        }
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            eprintln!("{failure}\nsee it again: ./dev simulate --seed {seed} --trace\n");
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    eprintln!(
        "{} seeds in {:.1} s: {} steps, {} batches, {failed} seeds failed",
        seeds.end - seeds.start,
        begin.elapsed().as_secs_f64(),
        steps.into_inner(),
        batches.into_inner()
    );
    ExitCode::from(u8::from(failed > 0))
}
