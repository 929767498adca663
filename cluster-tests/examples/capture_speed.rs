//! What the agent costs the programs that it looks at: real servers, each driven by its own client, with and without the agent.
//!
//! Rounds are interleaved (without, with, without, with, ...) and compared in pairs; what is printed is the median of the pairs, so a machine
//! that is busy with something else at times matters less. CPU time is that of the server's and the agent's processes. The agent sends to a
//! node that takes everything and stores nothing (`capture_speed/sink.rs`), so no engine takes the CPU that is measured.
//!
//! `./dev bench capture` takes about ten minutes; `./dev bench capture --only nginx-200 --rounds 3 --seconds 2` less. Needs root, BPF, and of
//! Debian's packages nginx-light, wrk, redis-server, redis-tools, mariadb-server, sysbench; what is missing is left out and named.
// bench: capture.txt

#[path = "capture_speed/agent.rs"]
mod agent;
#[path = "capture_speed/servers.rs"]
mod servers;
#[path = "capture_speed/sink.rs"]
mod sink;

use std::{
    fmt::Write as _,
    fs::File,
    io::Read as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use metaflow_agent::probes::ProgramCost;
use rustix::time::{ClockId, clock_gettime};

use self::agent::{Agent, Mode};
use self::servers::{LOADS, Load, Server};

const KNOWN: &str = "--rounds, --seconds, --only (a part of a load's name)";
/// System calls in one measurement of calls that have nothing to do with sockets.
const CALLS: u32 = 300_000;

struct Options {
    rounds: usize,
    seconds: u32,
    only: String,
}

/// One run of a load.
#[derive(Debug, Clone, Copy)]
struct Run {
    requests_a_second: f64,
    requests: f64,
    server_cpu_us: f64,
}

/// One run with the agent, and the one without right before.
struct Pair {
    without: Run,
    with: Run,
    agent_cpu_us: f64,
    agent_peak_mb: f64,
    rows: f64,
    lost: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    ensure!(rustix::process::geteuid().is_root(), "the agent needs root here: run it as root");
    let folder = tempfile::tempdir()?;
    let sink = sink::start().await?;
    let mut text = String::new();
    writeln!(
        text,
        "medians of {} pairs of {} s; server and agent: CPU a request\n",
        options.rounds, options.seconds
    )?;
    writeln!(
        text,
        "| load | agent sees | requests/s without | with | server, us | with, us | agent, us | times seen | agent, MB | lost rows |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|")?;
    let mut costs = None;
    for load in LOADS.iter().filter(|load| load.name.contains(&options.only)) {
        let server = match Server::start(load, folder.path()).await {
            Ok(server) => server,
            Err(error) => {
                writeln!(text, "| {} | left out: {error:#} |", load.name)?;
                continue;
            }
        };
        measure(load, &server, &sink, folder.path(), &options, &mut text).await?;
        if costs.is_none() {
            costs = Some((load.name, count_events(load, &server, &sink, folder.path(), &options).await?));
        }
    }
    if let Some((name, (costs, requests))) = costs {
        write_costs(name, &costs, requests, &mut text)?;
    }
    unrelated(&sink, folder.path(), &options, &mut text).await?;
    #[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
    {
        print!("{text}");
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options { rounds: 5, seconds: 3, only: String::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value ({KNOWN})"))?;
        match name.as_str() {
            "--rounds" => options.rounds = value.parse().context("--rounds takes a number")?,
            "--seconds" => options.seconds = value.parse().context("--seconds takes a number")?,
            "--only" => options.only = value,
            _ => bail!("{name} is not known: {KNOWN}"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds begin at 1");
    Ok(options)
}

/// All modes of one load, round by round.
async fn measure(
    load: &Load,
    server: &Server,
    sink: &str,
    folder: &Path,
    options: &Options,
    text: &mut String,
) -> Result<()> {
    let mut pairs: Vec<Vec<Pair>> = Mode::ALL.iter().map(|_| Vec::new()).collect();
    run(load, server, 1).await?;
    for _ in 0..options.rounds {
        for (mode, pairs) in Mode::ALL.iter().zip(&mut pairs) {
            let without = run(load, server, options.seconds).await?;
            let agent = Agent::start(folder, sink, *mode).await?;
            let before = agent.cpu_us()?;
            let with = run(load, server, options.seconds).await?;
            // What was captured last is sealed and sent a moment later.
            tokio::time::sleep(agent::TAIL).await;
            let agent_cpu_us = agent.cpu_us()? - before;
            let agent_peak_mb = agent.peak_bytes()? / 1e6;
            let (rows, lost) = agent.end().await?;
            pairs.push(Pair { without, with, agent_cpu_us, agent_peak_mb, rows, lost });
        }
    }
    for (mode, pairs) in Mode::ALL.iter().zip(&pairs) {
        row(load.name, *mode, pairs, text)?;
    }
    Ok(())
}

async fn run(load: &Load, server: &Server, seconds: u32) -> Result<Run> {
    let before = server.cpu_us()?;
    let (requests, took) =
        server.drive(load, seconds).await.with_context(|| format!("{} failed", load.name))?;
    let server_cpu_us = server.cpu_us()? - before;
    Ok(Run { requests_a_second: requests / took, requests, server_cpu_us })
}

fn row(name: &str, mode: Mode, pairs: &[Pair], text: &mut String) -> Result<()> {
    let of = |figure: &dyn Fn(&Pair) -> f64| median(pairs.iter().map(figure).collect());
    let change = of(&|pair| pair.with.requests_a_second / pair.without.requests_a_second - 1.0);
    writeln!(
        text,
        "| {name} | {} | {:.0} | {:+.1} % | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {} |",
        mode.name(),
        of(&|pair| pair.without.requests_a_second),
        change * 100.0,
        of(&|pair| pair.without.server_cpu_us / pair.without.requests),
        of(&|pair| pair.with.server_cpu_us / pair.with.requests),
        of(&|pair| pair.agent_cpu_us / pair.with.requests),
        of(&|pair| pair.rows / pair.with.requests),
        of(&|pair| pair.agent_peak_mb),
        pairs.iter().map(|pair| pair.lost.as_str()).find(|lost| !lost.is_empty()).unwrap_or("none"),
    )?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What the kernel counts of the programs during one more run; counting costs a little, so it is a run of its own.
async fn count_events(
    load: &Load,
    server: &Server,
    sink: &str,
    folder: &Path,
    options: &Options,
) -> Result<(Vec<ProgramCost>, f64)> {
    let agent = Agent::start(folder, sink, Mode::Both).await?;
    let statistics = agent::Statistics::begin()?;
    let run = run(load, server, options.seconds).await?;
    let costs = statistics.end()?;
    agent.end().await?;
    Ok((costs, run.requests))
}

fn write_costs(name: &str, costs: &[ProgramCost], requests: f64, text: &mut String) -> Result<()> {
    writeln!(text, "\neBPF programs under {name}, as the kernel counts them\n")?;
    writeln!(text, "| program | runs a request | ns a run |\n|---|---|---|")?;
    for ProgramCost { name, runs, nanoseconds } in costs.iter().filter(|cost| cost.runs > 0) {
        writeln!(
            text,
            "| {name} | {:.2} | {:.0} |",
            *runs as f64 / requests,
            *nanoseconds as f64 / *runs as f64
        )?;
    }
    Ok(())
}

/// System calls that have nothing to do with sockets.
async fn unrelated(sink: &str, folder: &Path, options: &Options, text: &mut String) -> Result<()> {
    let mut figures: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..options.rounds {
        for with in [false, true] {
            let agent = if with { Some(Agent::start(folder, sink, Mode::Both).await?) } else { None };
            let [getppid, read] = tokio::task::spawn_blocking(calls).await??;
            figures[0][usize::from(with)].push(getppid);
            figures[1][usize::from(with)].push(read);
            if let Some(agent) = agent {
                agent.end().await?;
            }
        }
    }
    writeln!(text, "\n| system call | ns without | with the agent |\n|---|---|---|")?;
    for (name, [without, with]) in ["getppid", "read of /dev/zero, 1 byte"].iter().zip(figures) {
        // The least is what the call takes when nothing else gets between.
        let least = |values: Vec<f64>| values.into_iter().fold(f64::INFINITY, f64::min);
        writeln!(text, "| {name} | {:.1} | {:.1} |", least(without), least(with))?;
    }
    Ok(())
}

/// Nanoseconds of CPU for each call, the best of ten tries.
fn calls() -> Result<[f64; 2]> {
    let mut zero = File::open("/dev/zero")?;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..10 {
        let time = time_of(|| {
            std::hint::black_box(rustix::process::getppid());
            Ok(())
        })?;
        best[0] = best[0].min(time);
        let time = time_of(|| zero.read_exact(&mut [0]).map_err(Into::into))?;
        best[1] = best[1].min(time);
    }
    Ok(best)
}

fn time_of(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let before = now();
    for _ in 0..CALLS {
        call()?;
    }
    Ok((now() - before) / f64::from(CALLS))
}

/// Runs a client to its end; gives its output and how long it took.
async fn client(command: &mut tokio::process::Command) -> Result<(String, f64)> {
    let started = Instant::now();
    let output = tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .context("the client does not end")?
        .context("the client cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok((text, started.elapsed().as_secs_f64()))
}
