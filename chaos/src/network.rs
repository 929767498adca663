//! A network of its own: one network namespace a place, joined by a bridge that lies in a namespace, too, so that the machine's own network
//! sees nothing of it. Needs root, and the programs of iproute2, nftables and util-linux.
//!
//! A way between two places is cut in one direction by a rule of the receiver's, as a broken network does it: packets are gone, nobody is
//! told, and connections that were open stay so. All is taken away when it is dropped; what a killed run left, the next one removes,
//! together with the processes in it.

use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use metaflow_cluster_tests::process::Place;
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::runtime::{Builder, Runtime};

const PREFIX: &str = "metaflow-chaos";
const HUB: &str = "hub";
/// Addresses end with the number of the place, from 1 on.
const NETWORK: [u8; 3] = [10, 214, 0];
const PLACES_MAX: usize = 250;

static MADE: AtomicU32 = AtomicU32::new(0);

/// Stands until it is dropped.
#[derive(Debug)]
pub struct Network {
    /// What its namespaces' names begin with: the process that made it, and when that began.
    prefix: String,
    places: Vec<String>,
}

impl Network {
    /// Makes these places; each reaches each.
    pub fn make(places: &[String]) -> Result<Self> {
        ensure!(places.len() <= PLACES_MAX, "{} places are too many", places.len());
        remove_leftovers()?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        // From here on, what was made is removed whatever happens.
        let network = Self { prefix: format!("{PREFIX}-{}-{number}-", owner()?), places: places.to_vec() };
        let hub = network.name(HUB);
        run("ip", &["netns", "add", &hub])?;
        run("ip", &["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        run("ip", &["-n", &hub, "link", "set", "bridge", "up"])?;
        for (index, place) in places.iter().enumerate() {
            network.add(&hub, index, place)?;
        }
        Ok(network)
    }

    fn add(&self, hub: &str, index: usize, place: &str) -> Result<()> {
        let (name, port) = (self.name(place), format!("port{index}"));
        let address = format!("{}/24", self.address(place));
        run("ip", &["netns", "add", &name])?;
        run(
            "ip",
            &["-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name],
        )?;
        run("ip", &["-n", hub, "link", "set", &port, "master", "bridge", "up"])?;
        run("ip", &["-n", &name, "address", "add", &address, "dev", "eth0"])?;
        run("ip", &["-n", &name, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        self.nft(
            place,
            "add table inet chaos; \
             add set inet chaos cut { type ipv4_addr; }; \
             add chain inet chaos input { type filter hook input priority 0; }; \
             add rule inet chaos input ip saddr @cut drop",
        )
    }

    /// The address of a place.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn address(&self, place: &str) -> Ipv4Addr {
        let index = self.places.iter().position(|known| known == place).expect("the place was made");
        let [a, b, c] = NETWORK;
        Ipv4Addr::new(a, b, c, u8::try_from(index + 1).expect("places are few"))
    }

    /// How a process gets there.
    pub fn place(&self, place: &str) -> Place {
        Place {
            host: self.address(place).to_string(),
            enter: vec!["nsenter".to_owned(), format!("--net={}", self.path(place)), "--".to_owned()],
            environment: vec![],
        }
    }

    /// A runtime whose sockets are there.
    pub fn runtime(&self, place: &str) -> Result<Runtime> {
        let namespace = Arc::new(File::open(self.path(place))?);
        Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || enter(&namespace).expect("who made a namespace may enter it"))
            .build()
            .context("failed to start a runtime")
    }

    /// Moves this thread there, and what it starts.
    pub fn enter(&self, place: &str) -> Result<()> {
        enter(&File::open(self.path(place))?)
    }

    /// Drops exactly what these pairs say: what the first sends does not arrive at the second.
    pub fn cut(&self, ways: &[(String, String)]) -> Result<()> {
        for place in &self.places {
            let mut rules = "flush set inet chaos cut".to_owned();
            for (from, _) in ways.iter().filter(|(_, to)| to == place) {
                rules += &format!("; add element inet chaos cut {{ {} }}", self.address(from));
            }
            self.nft(place, &rules)?;
        }
        Ok(())
    }

    fn nft(&self, place: &str, rules: &str) -> Result<()> {
        run("nsenter", &[&format!("--net={}", self.path(place)), "--", "nft", rules])
    }

    fn name(&self, place: &str) -> String {
        format!("{}{place}", self.prefix)
    }

    fn path(&self, place: &str) -> String {
        format!("/run/netns/{}", self.name(place))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in self.places.iter().map(String::as_str).chain([HUB]) {
            if let Err(error) = remove(&self.name(place)) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn enter(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("failed to enter a network namespace (this needs root)")
}

/// Ends what runs in a namespace, and takes its name away.
fn remove(name: &str) -> Result<()> {
    let processes = run_for_text("ip", &["netns", "pids", name]).unwrap_or_default();
    let own = std::process::id();
    for process in processes.split_whitespace().filter_map(|text| text.parse::<i32>().ok()) {
        if let Some(pid) = Pid::from_raw(process).filter(|_| u32::try_from(process) != Ok(own)) {
            // It may have ended by itself.
            kill_process(pid, Signal::KILL).ok();
        }
    }
    match run("ip", &["netns", "delete", name]) {
        // Another run that starts now has removed it.
        Err(_) if !Path::new("/run/netns").join(name).exists() => Ok(()),
        removed => removed,
    }
}

/// Names this process in what it leaves on the machine if it is killed: its number, and when it began, which together are one for ever.
pub(crate) fn owner() -> Result<String> {
    let own = std::process::id();
    Ok(format!("{own}-{}", begun_at(own).context("this process has no beginning")?))
}

/// Whether the process that a text begins with is no more; none when it names none.
pub(crate) fn is_left(text: &str) -> Option<bool> {
    let mut parts = text.split('-').map(|part| part.parse::<u64>().ok());
    let (owner, begun) = (u32::try_from(parts.next()??).ok()?, parts.next()??);
    Some(begun_at(owner) != Some(begun))
}

/// Removes the networks of runs that are no more.
fn remove_leftovers() -> Result<()> {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(rest) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')) else { continue };
        if is_left(rest) == Some(true) {
            eprintln!("removing {name}, which a run that is no more has left");
            remove(&name)?;
        }
    }
    Ok(())
}

/// When a process began, in ticks since the machine did.
fn begun_at(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything, the state is the first field and this the twentieth.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    run_for_text(program, arguments).map(drop)
}

fn run_for_text(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| {
        format!("failed to run {program}: these tests need iproute2, nftables and util-linux (./dev setup)")
    })?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} (this needs root): {}", arguments.join(" "), error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    fn names(places: &[&str]) -> Vec<String> {
        places.iter().map(|place| (*place).to_owned()).collect()
    }

    #[test]
    fn a_way_is_cut_in_one_direction_and_all_is_gone_afterwards_as_root() -> Result<()> {
        let network = Network::make(&names(&["a", "b"]))?;
        let (a, b) = (network.runtime("a")?, network.runtime("b")?);
        let address = (network.address("b"), 7);
        let listener = b.block_on(b.spawn(TcpListener::bind(address)))??;
        let connect = || {
            a.block_on(a.spawn(async move {
                timeout(Duration::from_millis(300), TcpStream::connect(address))
                    .await
                    .is_ok_and(|done| done.is_ok())
            }))
        };
        ensure!(connect()?, "both reach each other at first");
        network.cut(&[("a".to_owned(), "b".to_owned())])?;
        ensure!(!connect()?, "what a sends does not arrive");
        network.cut(&[("b".to_owned(), "a".to_owned())])?;
        ensure!(!connect()?, "what b answers does not arrive");
        network.cut(&[])?;
        ensure!(connect()?, "it is healed");
        drop(listener);
        let path = network.path("a");
        drop(network);
        ensure!(!Path::new(&path).exists(), "{path} is still there");
        Ok(())
    }

    #[test]
    fn what_a_killed_run_left_is_removed_with_its_processes_as_root() -> Result<()> {
        // No process of this machine began before the machine.
        let left = format!("{PREFIX}-1-0-0-left");
        run("ip", &["netns", "add", &left])?;
        let mut sleeper = Command::new("ip").args(["netns", "exec", &left, "sleep", "600"]).spawn()?;
        let pid = sleeper.id().to_string();
        while !run_for_text("ip", &["netns", "pids", &left])?.split_whitespace().any(|found| found == pid) {
            std::thread::yield_now();
        }
        drop(Network::make(&[])?);
        ensure!(!sleeper.wait()?.success(), "its process was ended");
        ensure!(!Path::new("/run/netns").join(left).exists(), "its name is gone");
        Ok(())
    }
}
