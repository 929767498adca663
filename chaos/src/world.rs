//! The cluster of a run: real nodes, each in a network namespace and on a small disk of its own, their stores, and what is done to them.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use metaflow_cluster_tests::{
    process::{Node, tail},
    proxy::Proxy,
    server::StoreServer,
};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::{
    disk::SmallDisk,
    network::Network,
    plan::{AGENT_PLACES, Fault, Plan, Stores},
};

/// What a node's process may use.
const MEMORY: u64 = 192 << 20;
/// The disk of a node's log and names: its log files are allocated before they are written.
const DISK: u64 = 96 << 20;
/// Nodes and engines share few cores here, and wait for them longer than on machines of their own: with the default they would be
/// thought dead without a fault.
const PHI: &str = "12.0";
const STORE_PORT: u16 = 8123;
const GOSSIP_PORT: u16 = 20037;
/// Where a second node with the number of another is.
const TWIN: &str = "twin";

/// Where everything is: the network, and runtimes whose sockets are in it.
pub struct Places {
    pub network: Network,
    /// Nothing is ever cut here: checks are made from it.
    pub watch: Runtime,
    pub agents: Vec<Runtime>,
    pub store: Runtime,
}

pub fn node_place(node: usize) -> String {
    format!("node{node}")
}

fn agents_place(agents: usize) -> String {
    format!("agents{agents}")
}

impl Places {
    pub fn make(nodes: usize) -> Result<Self> {
        let mut places = vec!["watch".to_owned(), "store".to_owned(), TWIN.to_owned()];
        places.extend((0..AGENT_PLACES).map(agents_place));
        places.extend((0..nodes).map(node_place));
        let network = Network::make(&places)?;
        let agents = (0..AGENT_PLACES).map(|agents| network.runtime(&agents_place(agents)));
        Ok(Self {
            watch: network.runtime("watch")?,
            agents: agents.collect::<Result<_>>()?,
            store: network.runtime("store")?,
            network,
        })
    }

    /// The address of a node, which it keeps.
    pub fn node(&self, node: usize) -> Ipv4Addr {
        self.network.address(&node_place(node))
    }
}

/// One store server for all, and what is between it and the nodes.
struct Shared {
    server: StoreServer,
    proxy: Proxy,
}

pub struct World<'a> {
    plan: &'a Plan,
    places: &'a Places,
    folder: PathBuf,
    pub nodes: Vec<Node>,
    /// Nodes with the number of another, each with its disk. The last may run.
    twins: Vec<(Node, SmallDisk)>,
    disks: Vec<SmallDisk>,
    shared: Option<Shared>,
    /// Ways that are cut, each with the step that did it.
    cuts: Vec<(usize, Vec<(String, String)>)>,
    full: Vec<bool>,
    /// Nodes whose disk was full at some moment since they started.
    was_full: Vec<bool>,
    /// Nodes that ended by themselves, and were started again.
    pub restarts: Vec<String>,
}

impl<'a> World<'a> {
    /// Starts the store and the nodes; they are ready when this returns.
    pub async fn start(plan: &'a Plan, places: &'a Places, folder: &Path) -> Result<Self> {
        let mut world = Self {
            plan,
            places,
            folder: folder.to_owned(),
            nodes: vec![],
            twins: vec![],
            disks: vec![],
            shared: None,
            cuts: vec![],
            full: vec![false; plan.nodes],
            was_full: vec![false; plan.nodes],
            restarts: vec![],
        };
        if plan.stores == Stores::Shared {
            world.shared = Some(world.start_store().await?);
        }
        for node in 0..plan.nodes {
            world.configure(node)?;
            world.nodes[node].spawn()?;
        }
        world.ready().await?;
        Ok(world)
    }

    async fn start_store(&self) -> Result<Shared> {
        let address = format!("{}:{STORE_PORT}", self.places.network.address("store"));
        let folder = self.folder.join("store");
        let mut server =
            StoreServer::configure_in(&folder, self.places.network.place("store"), address.clone())?;
        let target = server.address();
        let proxy = self
            .places
            .store
            .spawn(async move { Proxy::start_on(&address, &target, "l7_flow_log").await })
            .await??;
        server.start().await?;
        Ok(Shared { server, proxy })
    }

    fn configure(&mut self, node: usize) -> Result<()> {
        let folder = self.folder.join(node_place(node));
        self.disks.push(SmallDisk::mount(&folder.join("data/state"), DISK)?);
        let mut place = self.places.network.place(&node_place(node));
        self.set_clock(node, 0)?;
        place.environment = clock_environment(&self.clock(node))?;
        let configuration = self.configuration(node, self.places.node(node));
        self.nodes.push(Node::configure_in(&folder, u16::try_from(node + 1)?, place, &configuration)?);
        Ok(())
    }

    /// What a node is told, but for its number.
    fn configuration(&self, node: usize, address: Ipv4Addr) -> String {
        let store = self
            .shared
            .as_ref()
            .map_or_else(String::new, |shared| shared.server.node_configuration_through(shared.proxy.url()));
        let seeds: Vec<String> = (0..self.plan.nodes)
            .map(|seed| format!("\"{}:{GOSSIP_PORT}\"", self.places.node(seed)))
            .collect();
        format!(
            "{store}\n[memory]\nbudget = \"{}MiB\"\n[cluster]\nlisten = \"{address}:{GOSSIP_PORT}\"\nphi_threshold = {PHI}\nzone = \"z{node}\"\nseeds = [{}]\n",
            MEMORY >> 20,
            seeds.join(", ")
        )
    }

    fn start_twin(&mut self, node: usize) -> Result<()> {
        let folder = self.folder.join(format!("{TWIN}{}", self.twins.len()));
        let disk = SmallDisk::mount(&folder.join("data/state"), DISK)?;
        let configuration = self.configuration(node, self.places.network.address(TWIN));
        let place = self.places.network.place(TWIN);
        let mut twin = Node::configure_in(&folder, u16::try_from(node + 1)?, place, &configuration)?;
        twin.spawn()?;
        self.twins.push((twin, disk));
        Ok(())
    }

    /// Waits until the nodes with the numbers of others have ended, which store what they have taken before.
    pub async fn twins_gone(&mut self) -> Result<()> {
        for (twin, _) in self.twins.iter_mut().filter(|(twin, _)| twin.pid().is_some()) {
            twin.ended().await.context("a node with the number of another")?;
        }
        Ok(())
    }

    fn clock(&self, node: usize) -> PathBuf {
        self.folder.join(format!("clock{node}"))
    }

    /// Steps the wall clock of a node and its engine away from the machine's.
    fn set_clock(&self, node: usize, seconds: i64) -> Result<()> {
        // In one step, so that nobody reads half of it.
        let new = self.folder.join("clock.new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(std::fs::rename(new, self.clock(node))?)
    }

    /// Waits until all nodes are ready.
    pub async fn ready(&mut self) -> Result<()> {
        if let Some(Shared { server, .. }) = &self.shared {
            server.ready().await?;
        }
        for node in &mut self.nodes {
            node.ready().await?;
        }
        Ok(())
    }

    /// The fault of a step of the plan begins.
    pub async fn begin(&mut self, step: usize) -> Result<()> {
        match &self.plan.steps[step].fault {
            Fault::Kill { node } => {
                self.check_memory(*node)?;
                self.nodes[*node].kill().await
            }
            Fault::Stop { node } => self.nodes[*node].signal(Signal::STOP),
            Fault::StoreStop { node } => self.signal_store(*node, Signal::STOP),
            Fault::StoreKill { node } => match &mut self.shared {
                Some(Shared { server, .. }) => server.kill().await,
                None => self.signal_store(*node, Signal::KILL),
            },
            Fault::AnswersCut { inserts } => {
                self.shared.as_ref().context("there is no store server")?.proxy.cut_answers(*inserts);
                Ok(())
            }
            Fault::DiskFull { node } => {
                (self.full[*node], self.was_full[*node]) = (true, true);
                self.disks[*node].fill(0)
            }
            Fault::Clock { node, seconds } => self.set_clock(*node, *seconds),
            Fault::Twin { node } => {
                // The one before has had its time.
                self.twins_gone().await?;
                self.start_twin(*node)
            }
            fault => {
                let ways = ways(fault, self.plan.nodes);
                self.cuts.push((step, ways));
                self.cut()
            }
        }
    }

    /// It ends.
    pub async fn end(&mut self, step: usize) -> Result<()> {
        match &self.plan.steps[step].fault {
            Fault::Kill { node } => {
                self.was_full[*node] = self.full[*node];
                self.nodes[*node].spawn()
            }
            Fault::Stop { node } => self.nodes[*node].signal(Signal::CONT),
            Fault::StoreStop { node } => self.signal_store(*node, Signal::CONT),
            Fault::StoreKill { .. } => match &mut self.shared {
                Some(Shared { server, .. }) => server.spawn(),
                // Its node has started it again.
                None => Ok(()),
            },
            Fault::AnswersCut { .. } => {
                self.shared.as_ref().context("there is no store server")?.proxy.cut_answers(0);
                Ok(())
            }
            Fault::DiskFull { node } => {
                self.full[*node] = false;
                self.disks[*node].empty()
            }
            Fault::Clock { node, .. } => self.set_clock(*node, 0),
            Fault::Twin { .. } => {
                let (twin, _) = self.twins.last().context("no such node was started")?;
                twin.signal(Signal::TERM)
            }
            _ => {
                self.cuts.retain(|(by, _)| *by != step);
                self.cut()
            }
        }
    }

    fn cut(&self) -> Result<()> {
        let ways: Vec<_> = self.cuts.iter().flat_map(|(_, ways)| ways.iter().cloned()).collect();
        self.places.network.cut(&ways)
    }

    fn signal_store(&self, node: usize, signal: Signal) -> Result<()> {
        match &self.shared {
            Some(Shared { server, .. }) => server.signal(signal),
            // An engine that is about to be started again is gone already.
            None if self.nodes[node].engine().is_none() => Ok(()),
            None => self.nodes[node].signal_engine(signal),
        }
    }

    /// Starts again what ended by itself, as an operator's service manager does. Only a full disk is a reason to end.
    pub fn supervise(&mut self) -> Result<()> {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let Some(status) = node.take_end()? else { continue };
            let end = format!("node {index} ended with {status}:\n{}", tail(&node.log()));
            ensure!(self.was_full[index], "{end}");
            self.was_full[index] = self.full[index];
            self.restarts.push(end);
            node.spawn()?;
        }
        Ok(())
    }

    /// I9.
    pub fn check_memory(&self, node: usize) -> Result<()> {
        // One that is away has none.
        if self.nodes[node].pid().is_none() {
            return Ok(());
        }
        let peak = self.nodes[node].peak_bytes()?;
        ensure!(peak <= MEMORY, "I9: node {node} took {peak} bytes with a budget of {MEMORY}");
        Ok(())
    }
}

/// What a fault of the network cuts.
fn ways(fault: &Fault, nodes: usize) -> Vec<(String, String)> {
    let all =
        || (0..nodes).map(node_place).chain((0..AGENT_PLACES).map(agents_place)).chain(["store".to_owned()]);
    let both = |a: String, b: String| [(a.clone(), b.clone()), (b, a)];
    match fault {
        Fault::Isolate { node } => {
            let own = node_place(*node);
            all().filter(|other| *other != own).flat_map(|other| both(own.clone(), other)).collect()
        }
        Fault::Split { nodes: own } => {
            let mut own: Vec<String> = own.iter().map(|node| node_place(*node)).collect();
            own.push(agents_place(0));
            let others: Vec<String> =
                all().filter(|place| !own.contains(place) && place != "store").collect();
            own.iter()
                .flat_map(|own| others.iter().flat_map(|other| both(own.clone(), other.clone())))
                .collect()
        }
        Fault::OneWay { from, to } => vec![(node_place(*from), node_place(*to))],
        Fault::AgentsCut { agents, node } => both(agents_place(*agents), node_place(*node)).to_vec(),
        Fault::StoreCut { node } => both(node_place(*node), "store".to_owned()).to_vec(),
        _ => vec![],
    }
}

/// No kernel has a wall clock a process, so a library gives the node one (Debian's libfaketime, preloaded); its file says how far it is
/// from the machine's. Time that only goes forward, which timeouts are made of, stays as it is.
fn clock_environment(file: &Path) -> Result<Vec<(String, String)>> {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
    if !Path::new(&library).exists() {
        bail!("{library} is missing: install the package faketime (./dev setup)");
    }
    Ok([
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &file.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_DONT_RESET", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec())
}
