//! A herd that is spread over processes, because a process may open so many files and no more. Each says every moment what it counts.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metaflow_tls::{Client, ClientFiles, HTTP_2, Identity};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::MissedTickBehavior,
};

use super::{Config, Count, Herd};

/// How often a process says what it counts.
const SAYS_EVERY: Duration = Duration::from_millis(50);
/// Files of a process that are no connections of agents.
const OTHER_FILES: u64 = 300;

/// Processes that each run a part of a herd.
pub struct Crew {
    counts: Arc<Mutex<BTreeMap<u32, Count>>>,
    children: Vec<Child>,
}

/// Raises the limit of open files as far as this process may, and says how many connections that leaves room for.
pub fn connections_max() -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    u32::try_from(files.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES)).unwrap_or(u32::MAX)
}

impl Crew {
    /// Runs this program again for parts of at most `agents_max`; `arguments` make it call [`work`] with what follows them. `tls` is the
    /// folder that `metaflow ctl cert bootstrap --agents` made, for encrypted connections.
    pub fn start(config: &Config, agents_max: u32, tls: Option<&Path>, arguments: &[&str]) -> Result<Self> {
        let counts = Arc::<Mutex<BTreeMap<u32, Count>>>::default();
        let parts = config.agents.div_ceil(agents_max.max(1)).max(1);
        let mut children = Vec::new();
        let mut first = config.first;
        for part in 0..parts {
            let agents = config.agents / parts + u32::from(part < config.agents % parts);
            let mut child = Command::new(std::env::current_exe()?)
                .args(arguments)
                .arg(first.to_string())
                .arg(agents.to_string())
                .arg((config.starts_a_second / parts).max(1).to_string())
                .arg(config.batches.to_string())
                .arg(config.sender.heartbeat.as_millis().to_string())
                .arg(config.sender.silence_max.as_millis().to_string())
                .arg(tls.unwrap_or_else(|| Path::new("")))
                .args(&config.sender.servers)
                // It ends when this closes.
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .context("failed to start a process of agents")?;
            let output = child.stdout.take().context("a process of agents has no output")?;
            let known = Arc::clone(&counts);
            tokio::spawn(async move {
                let mut lines = BufReader::new(output).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Ok(count) = serde_json::from_str(&line) {
                        lock(&known).insert(part, count);
                    }
                }
            });
            children.push(child);
            first += agents;
        }
        Ok(Self { counts, children })
    }

    /// The sum of what all said last.
    pub fn count(&self) -> Count {
        let mut sum = Count::default();
        lock(&self.counts).values().for_each(|count| sum.add(count));
        sum
    }

    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }
}

fn lock(counts: &Mutex<BTreeMap<u32, Count>>) -> MutexGuard<'_, BTreeMap<u32, Count>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The life of one process: runs its part until the standard input closes. `arguments` are what [`Crew::start`] gave.
pub async fn work(arguments: &[String]) -> Result<()> {
    let [first, agents, starts, batches, heartbeat, silence, tls, servers @ ..] = arguments else {
        anyhow::bail!("a process of agents needs eight arguments")
    };
    let mut config = Config::new(agents.parse()?, servers.to_vec());
    config.first = first.parse()?;
    config.starts_a_second = starts.parse()?;
    config.batches = batches.parse()?;
    config.sender.heartbeat = Duration::from_millis(heartbeat.parse()?);
    config.sender.silence_max = Duration::from_millis(silence.parse()?);
    if !tls.is_empty() {
        let file = |name: &str| Path::new(tls).join(name);
        let identity = Identity { certificate: file("agent.crt"), key: file("agent.key") };
        let files = ClientFiles { authority: file("ca.crt"), identity: Some(identity) };
        config.sender.tls = Some(Client::load(files, HTTP_2)?);
    }
    let room = connections_max();
    ensure!(config.agents <= room, "a process may open files for {room} agents, not {}", config.agents);
    let herd = Herd::start(config);
    let mut tick = tokio::time::interval(SAYS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                #[expect(clippy::print_stdout, reason = "the other end of the pipe reads it")]
                {
                    println!("{}", serde_json::to_string(&herd.count())?);
                }
            }
            line = input.next_line() => if line?.is_none() { return Ok(()) },
        }
    }
}
