//! What very many agents cost: real nodes with a store of their own, real TCP and gRPC streams over loopback addresses, heartbeats, then
//! kill -9 of one node.
//!
//! `./dev bench agents` runs three nodes and 100,000 agents; `./dev bench agents --sessions 10000 --nodes 3` less. A process may open so
//! many files (`ulimit -Hn`): agents are split among processes, and where the limit is below what a node needs, there are more nodes. Both
//! are said. Agents are `metaflow_cluster_tests::herd`: what they decide is the agent's own code, what they keep in memory is not.
// bench: agents.txt

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use metaflow_cluster_tests::{
    cluster::Cluster,
    herd::{
        Config, Count,
        crew::{self, Crew},
    },
    process::{Node, binary},
    server::StoreServer,
    wait_for,
};
use tokio::process::Command;

/// Kernel clock ticks a second (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;
/// What placement promises of the most loaded node against the mean.
const SPREAD_MAX: f64 = 1.05;
const KNOWN: &str = "--sessions, --nodes, --heartbeat-ms, --starts (a second), --batches, --push, --encryption (true or false)";
const HEARTBEATS_A_MILLISECOND: u32 = 20;
const REST: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(240);
/// Sessions that are compared in plain text and encrypted.
const ENCRYPTED: u32 = 3_000;
const LOOK: Duration = Duration::from_millis(20);

struct Options {
    sessions: u32,
    nodes: u16,
    heartbeat: Duration,
    starts_a_second: u32,
    batches: bool,
    push: bool,
    encryption: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("work", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return crew::work(rest).await;
    }
    let mut options = options(&arguments)?;
    let mut text = String::new();
    make_room(&mut options, &mut text)?;
    run(&options, &mut text).await?;
    if options.encryption {
        encryption(&mut text).await?;
    }
    #[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
    {
        print!("{text}");
    }
    Ok(())
}

fn options(arguments: &[String]) -> Result<Options> {
    let mut options = Options {
        sessions: 100_000,
        nodes: 3,
        heartbeat: Duration::ZERO,
        starts_a_second: 2_000,
        batches: true,
        push: true,
        encryption: true,
    };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { bail!("{} needs a value", pair[0]) };
        match name.as_str() {
            "--sessions" => options.sessions = value.parse().context("--sessions")?,
            "--nodes" => options.nodes = value.parse().context("--nodes")?,
            "--heartbeat-ms" => {
                options.heartbeat = Duration::from_millis(value.parse().context("--heartbeat-ms")?)
            }
            "--starts" => options.starts_a_second = value.parse().context("--starts")?,
            "--batches" => options.batches = value.parse().context("--batches")?,
            "--push" => options.push = value.parse().context("--push")?,
            "--encryption" => options.encryption = value.parse().context("--encryption")?,
            _ => bail!("{name} is not known: {KNOWN}"),
        }
    }
    if options.heartbeat.is_zero() {
        // A second, as agents do, unless that is more than two cores can do for both sides.
        options.heartbeat =
            Duration::from_millis(u64::from(options.sessions / HEARTBEATS_A_MILLISECOND).max(1_000));
    }
    ensure!(options.nodes >= 2 && options.sessions > 0, "it takes two nodes and a session");
    Ok(options)
}

/// More nodes where files are too few for a node to take its share when another one is lost.
fn make_room(options: &mut Options, text: &mut String) -> Result<()> {
    let room = f64::from(crew::connections_max());
    let wanted = options.nodes;
    let share = |nodes: u16| f64::from(options.sessions) / f64::from(nodes - 1) * SPREAD_MAX;
    while share(options.nodes) > room && options.nodes < 100 {
        options.nodes += 1;
    }
    let Options { sessions, nodes, heartbeat, .. } = options;
    writeln!(text, "{sessions} agents, {nodes} nodes, a heartbeat every {heartbeat:?}")?;
    if *nodes != wanted {
        writeln!(
            text,
            "{nodes} nodes instead of {wanted}: a process may open {room} files for agents here (ulimit -Hn; LimitNOFILE in a unit)"
        )?;
    }
    Ok(())
}

async fn run(options: &Options, text: &mut String) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let grpc = format!("connections_max = {}\n", options.sessions + 1_000);
    let mut cluster = Cluster::start(folder.path(), options.nodes, &grpc).await?;
    let servers = cluster.servers();
    let nodes: Vec<u32> = cluster.nodes.iter().filter_map(pid).collect();
    // What a node has of memory before any agent, when its start is over.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = sum(&nodes, resident)?;
    let mut config = Config::new(options.sessions, servers.clone());
    config.starts_a_second = options.starts_a_second;
    config.batches = options.batches;
    config.sender.heartbeat = options.heartbeat;
    config.sender.silence_max = options.heartbeat * 2;
    let crew = Crew::start(&config, crew::connections_max(), None, &["work"])?;
    let begin = Instant::now();
    until(&crew, "all agents to be served", |count| count.total() == options.sessions).await?;
    let all_after = begin.elapsed();
    until(&crew, "agents to be where they belong", |count| {
        count.total() == options.sessions && count.spread(&servers) <= SPREAD_MAX + 0.005
    })
    .await?;
    // Those that were told to move have moved.
    tokio::time::sleep(config.sender.move_within + Duration::from_secs(1)).await;
    let sessions = f64::from(options.sessions);
    let settled = crew.count();
    writeln!(
        text,
        "all served {:.1} s after the first came ({} a second); max/mean {:.3} (bound {SPREAD_MAX}); {} broken connections so far",
        all_after.as_secs_f64(),
        options.starts_a_second,
        settled.spread(&servers),
        settled.breaks,
    )?;
    rest(&crew, &nodes, text).await?;
    let node_bytes = sum(&nodes, resident)?.saturating_sub(before) as f64 / sessions;
    let agent_bytes = sum(&crew.pids(), resident)? as f64 / sessions;
    writeln!(
        text,
        "memory a session: {:.1} KB in the node (mark 10), {:.1} KB in the process that plays agents; kernel: {}",
        node_bytes / 1e3,
        agent_bytes / 1e3,
        kernel(sessions)?,
    )?;
    if options.push {
        push(&cluster.nodes[0], folder.path(), &crew, options, text).await?;
    }
    fail_over(&mut cluster, &crew, &servers, options, text).await
}

/// One change of what all agents run with, told to one node.
async fn push(node: &Node, folder: &Path, crew: &Crew, options: &Options, text: &mut String) -> Result<()> {
    let file = folder.join("agents.toml");
    std::fs::write(&file, "[guard]\ncpu_percent_max = 50\n")?;
    let begin = Instant::now();
    ctl(&["--url", &node.http_url(), "agent", "config", "set", "default", "-f"], &[&file]).await?;
    let told = begin.elapsed();
    let all = |count: &Count| count.versions.values().any(|agents| *agents == options.sessions);
    until(crew, "all agents to have the configuration", all).await?;
    writeln!(
        text,
        "a configuration change: {:.1} s from the command at one node to the last agent of all (mark 10); the command took {:.1} s",
        begin.elapsed().as_secs_f64(),
        told.as_secs_f64(),
    )?;
    Ok(())
}

async fn ctl(arguments: &[&str], files: &[&Path]) -> Result<()> {
    let output = Command::new(binary("metaflow")).arg("ctl").args(arguments).args(files).output().await?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "metaflow ctl {arguments:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// The same sessions at one node, in plain text and encrypted, which must be few: handshakes are not what is measured.
async fn encryption(text: &mut String) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = folder.path().join("tls");
    ctl(&["cert", "bootstrap", "--node", "n1,127.0.0.1", "--agents", "--directory"], &[&certificates])
        .await?;
    let encrypted = format!(
        "[tls]\ncertificate = {0:?}\nkey = {1:?}\nclient_authority = {2:?}\n",
        certificates.join("n1.crt"),
        certificates.join("n1.key"),
        certificates.join("ca.crt")
    );
    let mut store = StoreServer::configure(&folder.path().join("store"))?;
    store.start().await?;
    let mut figures = Vec::new();
    for (name, tls, configuration) in [("plain", None, ""), ("tls", Some(&*certificates), &*encrypted)] {
        let configuration = format!("{}{configuration}", store.node_configuration());
        let mut node = Node::configure(&folder.path().join(name), &configuration)?;
        node.spawn()?;
        wait_for("the node to be ready", PATIENCE, async || {
            let log = std::fs::read_to_string(node.log())?;
            ensure!(log.contains("the node is ready"), "{log}");
            Ok(())
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let pid = pid(&node).context("the node ended")?;
        let before = resident(pid)?;
        let mut config = Config::new(ENCRYPTED, vec![node.grpc_address()]);
        config.starts_a_second = 500;
        let crew = Crew::start(&config, ENCRYPTED, tls, &["work"])?;
        until(&crew, "all agents to be served", |count| count.total() == ENCRYPTED).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        figures.push((resident(pid)? - before) as f64 / f64::from(ENCRYPTED) / 1e3);
        drop(crew);
        node.kill().await?;
    }
    writeln!(
        text,
        "memory a session of {ENCRYPTED} at one node: {:.1} KB in plain text, {:.1} KB with TLS",
        figures[0], figures[1]
    )?;
    Ok(())
}

/// CPU and heartbeats while nothing happens.
async fn rest(crew: &Crew, nodes: &[u32], text: &mut String) -> Result<()> {
    let begin = Instant::now();
    let (count, cpu_nodes, cpu_agents) = (crew.count(), sum(nodes, cpu)?, sum(&crew.pids(), cpu)?);
    tokio::time::sleep(REST).await;
    let seconds = begin.elapsed().as_secs_f64();
    let now = crew.count();
    let of_nodes = (sum(nodes, cpu)? - cpu_nodes) as f64 / TICKS;
    let of_agents = (sum(&crew.pids(), cpu)? - cpu_agents) as f64 / TICKS;
    let heartbeats = (now.replies - count.replies) as f64;
    writeln!(
        text,
        "at rest: {:.0} heartbeats a second, answered; {:.2} cores in all nodes (mark 2), {:.1} us a heartbeat; {:.2} cores in agents; {} broken connections, {} by silence",
        heartbeats / seconds,
        of_nodes / seconds,
        of_nodes / heartbeats * 1e6,
        of_agents / seconds,
        now.breaks - count.breaks,
        now.silences - count.silences,
    )?;
    Ok(())
}

/// kill -9 of the first node.
async fn fail_over(
    cluster: &mut Cluster,
    crew: &Crew,
    servers: &[String],
    options: &Options,
    text: &mut String,
) -> Result<()> {
    let victim = servers.first().context("no nodes")?.clone();
    let orphans = crew.count().served.get(&victim).copied().unwrap_or(0);
    ensure!(orphans > 0, "the first node serves nobody");
    cluster.nodes[0].kill().await?;
    let begin = Instant::now();
    let mut marks = vec![(0.5, None), (0.99, None), (1.0, None)];
    while marks.iter().any(|(_, at)| at.is_none()) {
        let count = crew.count();
        let waiting = count.lost + count.served.get(&victim).copied().unwrap_or(0);
        let again = 1.0 - f64::from(waiting.min(orphans)) / f64::from(orphans);
        for (share, at) in &mut marks {
            if again >= *share && at.is_none() {
                *at = Some(begin.elapsed().as_secs_f64());
            }
        }
        ensure!(begin.elapsed() < PATIENCE, "only {again} of the agents are served again: {count:?}");
        tokio::time::sleep(LOOK).await;
    }
    let times: Vec<String> = marks
        .iter()
        .map(|(share, at)| format!("{:.0} % {:.1} s", share * 100.0, at.unwrap_or(0.0)))
        .collect();
    let left = &servers[1..];
    let at_once = crew.count().spread(left);
    let moving = Instant::now();
    until(crew, "agents to be where they belong", |count| {
        count.total() == options.sessions && count.spread(left) <= SPREAD_MAX + 0.005
    })
    .await?;
    writeln!(
        text,
        "kill -9 of a node with {orphans} agents; served again by others: {} (marks: 99 % 6 s, 100 % 10 s); max/mean then {at_once:.3}, {:.3} after {:.1} s more (bound {SPREAD_MAX})",
        times.join(", "),
        crew.count().spread(left),
        moving.elapsed().as_secs_f64(),
    )?;
    Ok(())
}

async fn until(crew: &Crew, what: &str, is_so: impl Fn(&Count) -> bool) -> Result<()> {
    let begin = Instant::now();
    loop {
        let count = crew.count();
        if is_so(&count) {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}: {count:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn pid(node: &Node) -> Option<u32> {
    node.pid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok())
}

fn sum(pids: &[u32], figure: impl Fn(u32) -> Result<u64>) -> Result<u64> {
    pids.iter().map(|pid| figure(*pid)).sum()
}

/// User and system time of a process, in ticks.
fn cpu(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("no process name")?.1;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Memory of a process that is its own, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let own = |line: &str| line.starts_with("Private_Dirty:") || line.starts_with("Private_Clean:");
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|figure| figure.parse::<u64>().ok());
    rollup
        .lines()
        .filter(|line| own(line))
        .map(|line| kib(line).context("no figure"))
        .sum::<Result<u64>>()
        .map(|kib| kib * 1024)
}

/// What the kernel keeps of buffers for both ends of a session.
fn kernel(sessions: f64) -> Result<String> {
    let text = std::fs::read_to_string("/proc/net/sockstat")?;
    let line = text.lines().find(|line| line.starts_with("TCP:")).context("no TCP line")?;
    let pages: f64 = line.rsplit(' ').next().context("no figure")?.parse()?;
    Ok(format!("{:.1} KB of buffers for both ends", pages * 4096.0 / sessions / 1e3))
}
