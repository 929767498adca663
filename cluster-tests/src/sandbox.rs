//! A whole cluster in one process: real nodes over real gRPC, gossip and HTTP on loopback, one store server, and faults on the lines between
//! them, drawn from a seed. What happens when is not repeated by a seed, what is done to the cluster is.
//!
//! Checked: I5, I6 and I11, every batch of the agents' ledgers is stored once and nothing else is; I1, I2 and I3, names agree among nodes
//! and with the store, and ids of rows resolve; I7, nodes say alike where agents belong; I8, within 10 s after the faults all agents are served; I10, none moves
//! before them. Leaves out: the death of processes and their stops (`metaflow-chaos`).

mod checks;
mod faults;
pub mod lines;
mod member;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metaflow_node::Route;
use metaflow_tls::{Client, ClientFiles, HTTP_2, Identity};
use tokio::{net::UdpSocket, process::Command, task::JoinSet};

use crate::{
    cluster,
    herd::{self, Herd},
    ledger::LedgerAgent,
    process::{binary, free_port},
    server::StoreServer,
    simulation::Random,
    wait_for,
};
use lines::{Lines, Place};
use member::Member;

const PATIENCE: Duration = Duration::from_secs(60);
/// Agents that keep a ledger, and agents that only want to be served.
const AGENTS: usize = 3;
const HERD: u32 = 24;
const BATCHES: u32 = 64;
const ROWS_A_BATCH: u32 = 7;
/// I8.
const SERVED_WITHIN: Duration = Duration::from_secs(10);
/// I9: what a node may use, as its configuration has it; the least that is allowed.
const BUDGET_MIB: u64 = 160;
/// I10.
const QUIET: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub nodes: u16,
    /// Faults happen for so long.
    pub faults: Duration,
    /// Agents and nodes prove to each other who they are.
    pub mutual_tls: bool,
}

/// What was there to be checked.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    pub faults: u32,
    pub batches: usize,
    pub streams_broken: u32,
    pub names: u64,
    /// The most that the process ever used.
    pub memory_mib: u64,
}

struct Sandbox {
    lines: Arc<Lines>,
    members: Vec<Member>,
    store: StoreServer,
    /// Where agents find the nodes: by agent, then by node.
    ways: Vec<Vec<SocketAddr>>,
    tls: Option<PathBuf>,
}

/// Runs one seed below a folder.
pub async fn run(seed: u64, options: Options, folder: &Path) -> Result<Report> {
    let mut sandbox = Sandbox::start(options, folder).await?;
    let herd = Herd::start(sandbox.herd()?);
    wait_for("all agents to be served", PATIENCE, async || sandbox.check_served(&herd)).await?;
    sandbox.check_quiet(&herd).await?;

    let ledgers = sandbox.send(seed)?;
    let faults = sandbox.harm(&mut Random::new(seed), options.faults).await?;
    for member in &mut sandbox.members {
        member.start()?;
    }
    sandbox.lines.mend_all();
    sandbox.ready().await?;
    wait_for("I8: all agents to be served", SERVED_WITHIN, async || sandbox.check_at_home(&herd)).await?;
    let mut agents = Vec::new();
    for ledger in ledgers.join_all().await {
        agents.push(ledger.context("I5")?);
    }
    let names = sandbox.check_end(&agents).await?;
    let memory_mib = sandbox.check_memory().await?;
    drop(herd);
    sandbox.members.iter().for_each(Member::terminate);
    for member in &mut sandbox.members {
        member.ended().await.with_context(|| format!("node {}", member.node_id))?;
    }
    let streams_broken = agents.iter().map(|agent| agent.breaks).sum();
    let batches = agents.iter().map(|agent| agent.committed.len()).sum();
    Ok(Report { faults, batches, streams_broken, names, memory_mib })
}

impl Sandbox {
    async fn start(options: Options, folder: &Path) -> Result<Self> {
        let mut store = StoreServer::configure(&folder.join("store"))?;
        store.start().await?;
        let nodes = usize::from(options.nodes);
        let tls = options.mutual_tls.then(|| folder.join("tls"));
        if let Some(tls) = &tls {
            certificates(tls, nodes).await?;
        }
        let lines = Lines::new();
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (mut gossip, mut advertised) = (Vec::new(), Vec::new());
        for _ in 0..nodes {
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            advertised.push(socket.local_addr()?);
            gossip.push((socket, local(free_port())));
        }
        let grpc: Vec<SocketAddr> = (0..nodes).map(|_| local(free_port())).collect();
        let mut members = Vec::new();
        for at in 0..nodes {
            let mut routes = Vec::new();
            for to in (0..nodes).filter(|to| *to != at) {
                routes.push((grpc[to], lines.connect(at, to, grpc[to]).await?));
            }
            let to_store = lines.connect(at, store_place(nodes), store.address().parse()?).await?;
            let text = Configuration {
                at,
                folder: &folder.join(format!("node-{at}")),
                grpc: grpc[at],
                http: local(free_port()),
                gossip: (gossip[at].1, advertised[at]),
                seeds: &advertised,
                store: &store.node_configuration_through(&format!("http://{to_store}")),
                tls: tls.as_deref(),
            };
            members.push(text.member(route(routes))?);
        }
        lines.gossip(gossip);
        let mut ways = Vec::new();
        for agent in 0..AGENTS {
            let mut way = Vec::new();
            for (to, address) in grpc.iter().enumerate() {
                way.push(lines.connect(nodes + agent, to, *address).await?);
            }
            ways.push(way);
        }
        let mut sandbox = Self { lines, members, store, ways, tls };
        for member in &mut sandbox.members {
            member.start()?;
        }
        sandbox.ready().await?;
        Ok(sandbox)
    }

    /// Waits until every node sees all nodes ready.
    async fn ready(&self) -> Result<()> {
        for member in &self.members {
            wait_for("a node to see all others ready", PATIENCE, async || {
                let members = self.ctl(member, &["member", "list", "-o", "json"]).await?;
                let ready = members.as_array().into_iter().flatten();
                let ready = ready.filter(|member| member["state"] == "ready").count();
                ensure!(ready == self.members.len(), "node {}: {members}", member.node_id);
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(())
    }

    fn herd(&self) -> Result<herd::Config> {
        let servers = self.members.iter().map(|member| member.grpc.to_string()).collect();
        let mut config = herd::Config::new(HERD, servers);
        config.sender.tls = self.agent_tls()?;
        Ok(config)
    }

    fn agent_tls(&self) -> Result<Option<Client>> {
        let Some(folder) = &self.tls else { return Ok(None) };
        let file = |name: &str| folder.join(name);
        let identity = Some(Identity { certificate: file("agent.crt"), key: file("agent.key") });
        Ok(Some(Client::load(ClientFiles { authority: file("ca.crt"), identity }, HTTP_2)?))
    }

    /// Agents that send until all is committed, each to the next node when one fails it.
    fn send(&self, seed: u64) -> Result<JoinSet<Result<LedgerAgent>>> {
        let mut sending = JoinSet::new();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let second = std::time::UNIX_EPOCH.elapsed()?.as_secs();
        for (number, way) in self.ways.iter().enumerate() {
            let machine = format!("ledger-{number}");
            let mut agent = LedgerAgent::new(&machine, 2, BATCHES, ROWS_A_BATCH, second);
            agent.tls = self.agent_tls()?;
            agent.answer_within = Duration::from_secs(3);
            agent.open_max = 12;
            let (way, tries) = (way.clone(), AtomicUsize::new(number + seed as usize));
            let next =
                move || format!("{scheme}://{}", way[tries.fetch_add(1, Ordering::Relaxed) % way.len()]);
            sending.spawn(async move {
                agent.run(next, 2 * PATIENCE).await?;
                Ok(agent)
            });
        }
        Ok(sending)
    }

    /// Asks a node as an operator does; the answer is JSON.
    async fn ctl(&self, member: &Member, arguments: &[&str]) -> Result<serde_json::Value> {
        let (output, answer) = self.ask(member, arguments).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} of node {}: {said} {answer:?}", member.node_id);
        answer.with_context(|| format!("{arguments:?}: {said}"))
    }

    /// The same where something may be wrong.
    async fn ask(
        &self,
        member: &Member,
        arguments: &[&str],
    ) -> Result<(Output, serde_json::Result<serde_json::Value>)> {
        let mut command = Command::new(binary("metaflow"));
        match &self.tls {
            Some(folder) => {
                command.env("METAFLOW_URL", format!("https://{}", member.http));
                command.env("METAFLOW_CA", folder.join("ca.crt"));
            }
            None => {
                command.env("METAFLOW_URL", format!("http://{}", member.http));
            }
        }
        let output =
            command.arg("ctl").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let answer = serde_json::from_slice(&output.stdout);
        Ok((output, answer))
    }
}

fn store_place(nodes: usize) -> Place {
    nodes + AGENTS
}

fn route(routes: Vec<(SocketAddr, SocketAddr)>) -> Route {
    Arc::new(move |address| routes.iter().find(|(to, _)| *to == address).map_or(address, |(_, way)| *way))
}

async fn certificates(folder: &Path, nodes: usize) -> Result<()> {
    let mut command = Command::new(binary("metaflow"));
    command.args(["ctl", "cert", "bootstrap", "--agents", "--directory"]).arg(folder);
    for node in 1..=nodes {
        command.args(["--node", &format!("n{node}")]);
    }
    let output = command.output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What is in a node's file.
struct Configuration<'a> {
    at: usize,
    folder: &'a Path,
    grpc: SocketAddr,
    http: SocketAddr,
    /// Where it listens, and where others find it.
    gossip: (SocketAddr, SocketAddr),
    seeds: &'a [SocketAddr],
    store: &'a str,
    tls: Option<&'a Path>,
}

impl Configuration<'_> {
    fn member(&self, route: Route) -> Result<Member> {
        let Self { at, folder, grpc, http, gossip: (listen, advertise), seeds, store, tls } = self;
        std::fs::create_dir_all(folder)?;
        let node_id = u16::try_from(at + 1)?;
        let seeds: Vec<_> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        let secret = folder.join("secret");
        std::fs::write(&secret, cluster::SECRET)?;
        let mut encryption = String::new();
        if let Some(tls) = tls {
            let file = |name: &str| tls.join(name);
            encryption = format!(
                "[tls]\ncertificate = {:?}\nkey = {:?}\nclient_authority = {:?}\n",
                file(&format!("n{node_id}.crt")),
                file(&format!("n{node_id}.key")),
                file("ca.crt")
            );
        }
        let text = format!(
            "node_id = {node_id}\ndata_dir = {:?}\nstop_within = \"10s\"\nmemory.budget = \"{BUDGET_MIB}MiB\"\n[http]\nlisten = \"{http}\"\n[grpc]\nlisten = \"{grpc}\"\n{store}\n\
             [cluster]\nlisten = \"{listen}\"\nadvertise = \"{advertise}\"\nseeds = [{}]\nsecret_file = {secret:?}\n{encryption}",
            folder.join("data"),
            seeds.join(", ")
        );
        let file = folder.join("node.toml");
        std::fs::write(&file, text)?;
        Ok(Member::new(node_id, file, *grpc, *http, route))
    }
}
