//! Nodes and agents as processes.

use std::{
    ffi::OsStr,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::wait_for;

/// A start includes the engine's and the replay of the log.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A binary of this workspace: beside the running test's folder.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let path = test.ancestors().nth(2).expect("tests live in target/PROFILE/deps").join(name);
    assert!(path.is_file(), "{} is missing: build the workspace's binaries first", path.display());
    path
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Where a process runs: beside the test, or elsewhere on this machine.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where others reach it.
    pub host: String,
    /// The command that goes there and becomes what follows.
    pub enter: Vec<String>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl Default for Place {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), enter: vec![], environment: vec![] }
    }
}

impl Place {
    /// A program that will run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.enter.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A node in a folder of its own.
pub struct Node {
    folder: PathBuf,
    place: Place,
    http_port: u16,
    grpc_port: u16,
    child: Option<Child>,
    http: reqwest::Client,
    /// None: that of this workspace.
    program: Option<PathBuf>,
}

impl Node {
    /// Starts a node on new ports and waits until it is ready.
    pub async fn start(folder: &Path) -> Result<Self> {
        Self::start_with(folder, "").await
    }

    /// The same with more lines of configuration.
    pub async fn start_with(folder: &Path, configuration: &str) -> Result<Self> {
        let mut node = Self::configure(folder, configuration)?;
        node.restart().await?;
        Ok(node)
    }

    /// A node that is not started yet.
    pub fn configure(folder: &Path, configuration: &str) -> Result<Self> {
        Self::configure_member(folder, 1, configuration)
    }

    /// One of several, by its `node_id`.
    pub fn configure_member(folder: &Path, node_id: u16, configuration: &str) -> Result<Self> {
        Self::configure_in(folder, node_id, Place::default(), configuration)
    }

    /// One that runs somewhere else, where plain text is allowed.
    pub fn configure_in(folder: &Path, node_id: u16, place: Place, configuration: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (http_port, grpc_port) = (free_port(), free_port());
        let (host, insecure) = (&place.host, !place.enter.is_empty());
        let text = format!(
            "node_id = {node_id}\ndata_dir = \"{}\"\ninsecure = {insecure}\n[http]\nlisten = \"{host}:{http_port}\"\n[grpc]\nlisten = \"{host}:{grpc_port}\"\n{configuration}\n",
            folder.join("data").display()
        );
        std::fs::write(folder.join("node.toml"), text)?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build()?;
        Ok(Self { folder: folder.to_owned(), place, http_port, grpc_port, child: None, http, program: None })
    }

    /// Runs another program from the next start on: that of another release.
    pub fn run_program(&mut self, program: PathBuf) {
        self.program = Some(program);
    }

    /// Starts the process (again) on the same folder and ports, and waits until it is ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the node runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let program = self.program.clone().unwrap_or_else(|| binary("metaflow"));
        let child = self
            .place
            .command(program)
            .args(["node", "--config"])
            .arg(self.folder.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until a spawned node is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let url = format!("{}/health/ready", self.http_url());
        let (http, log, child) = (self.http.clone(), self.log(), &mut self.child);
        wait_for("the node to be ready", START_DEADLINE, async || {
            if let Some(status) = child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                anyhow::bail!("it ended with {status}");
            }
            let answer = http.get(&url).send().await?;
            ensure!(answer.status().is_success(), "{}", answer.status());
            Ok(())
        })
        .await
        .with_context(|| format!("the node's log ends with:\n{}", tail(&log)))
    }

    /// kill -9, and reaps it.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the node does not run")?;
        child.kill().await.context("failed to kill the node")
    }

    /// SIGTERM; the exit code must be 0.
    pub async fn terminate(&mut self) -> Result<()> {
        signal(self.child.as_ref().context("the node does not run")?, Signal::TERM)?;
        self.ended().await
    }

    /// How it has ended by itself, if it has: then it can be started again.
    pub fn take_end(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let ended = child.try_wait()?;
        if ended.is_some() {
            self.child = None;
        }
        Ok(ended)
    }

    /// Sends the node's own process a signal.
    pub fn signal(&self, name: Signal) -> Result<()> {
        signal(self.child.as_ref().context("the node does not run")?, name)
    }

    /// Waits until it has ended by itself; the exit code must be 0.
    pub async fn ended(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the node does not run")?;
        let status =
            tokio::time::timeout(START_DEADLINE, child.wait()).await.context("the node did not end")??;
        ensure!(status.success(), "the node ended with {status}:\n{}", tail(&self.log()));
        Ok(())
    }

    /// Sends a signal to the engine's process.
    pub fn signal_engine(&self, signal: Signal) -> Result<()> {
        let pid = self.engine().context("the node has no engine process")?;
        kill_process(pid, signal).context("failed to signal the engine")
    }

    /// The engine is the node's child that runs `store-engine`.
    pub fn engine(&self) -> Option<Pid> {
        let node = self.pid()?.as_raw_nonzero().get();
        let children = std::fs::read_to_string(format!("/proc/{node}/task/{node}/children")).ok();
        let of_any_thread = std::fs::read_dir(format!("/proc/{node}/task"))
            .ok()?
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let pids: Vec<i32> = children
            .into_iter()
            .chain(of_any_thread)
            .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
            .collect();
        pids.into_iter()
            .find(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.windows(12).any(|part| part == b"store-engine"))
            })
            .and_then(Pid::from_raw)
    }

    pub fn pid(&self) -> Option<Pid> {
        self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
    }

    /// The most memory that the node's own process ever had resident, in bytes.
    pub fn peak_bytes(&self) -> Result<u64> {
        let pid = self.pid().context("the node does not run")?.as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kib * 1024)
    }

    /// Where agents connect, as `host:port`.
    pub fn grpc_address(&self) -> String {
        format!("{}:{}", self.place.host, self.grpc_port)
    }

    /// Where agents connect, as URL.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc_address())
    }

    pub fn http_url(&self) -> String {
        format!("http://{}:{}", self.place.host, self.http_port)
    }

    /// Status and body of an SQL answer.
    pub async fn ask(&self, database: &str, sql: &str) -> Result<(u16, Value)> {
        let url = format!("{}/v1/query/", self.http_url());
        let answer = self.http.post(url).form(&[("db", database), ("sql", sql)]).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Rows of an SQL answer.
    pub async fn sql(&self, database: &str, sql: &str) -> Result<Vec<Vec<Value>>> {
        let (status, body) = self.ask(database, sql).await?;
        ensure!(status == 200, "{sql}: {status}: {body}");
        let values = body["result"]["values"].as_array().with_context(|| format!("no values in {body}"))?;
        Ok(values.iter().map(|row| row.as_array().cloned().unwrap_or_default()).collect())
    }

    /// The first cell of an SQL answer as a number.
    pub async fn number(&self, database: &str, sql: &str) -> Result<f64> {
        let rows = self.sql(database, sql).await?;
        number(rows.first().and_then(|row| row.first())).with_context(|| format!("{sql}: {rows:?}"))
    }

    /// Text of `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self.http.get(format!("{}/metrics", self.http_url())).send().await?.text().await?)
    }

    /// One figure of `/metrics`, named with its labels; 0 where it is not there yet.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.metrics().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        Ok(value.unwrap_or(0.0))
    }

    /// Status and text of `/health/ready`.
    pub async fn health(&self) -> Result<(u16, String)> {
        let answer = self.http.get(format!("{}/health/ready", self.http_url())).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("node.log")
    }
}

/// A cell as a number: integers of 64 bits may come as text.
pub fn number(cell: Option<&Value>) -> Option<f64> {
    match cell? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// An agent that replays captures.
pub struct Replay<'a> {
    pub folder: &'a Path,
    pub server: String,
    pub machine_id: &'a str,
    pub captures: Vec<PathBuf>,
    pub more_arguments: Vec<String>,
}

impl Replay<'_> {
    /// Starts the agent; it ends by itself when everything is committed.
    pub fn spawn(&self) -> Result<Child> {
        std::fs::create_dir_all(self.folder)?;
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let child = Command::new(binary("metaflow-agent"))
            .args(["--server", &self.server, "--machine-id", self.machine_id, "--data-dir"])
            .arg(self.folder.join("data"))
            .arg("replay")
            .args(&self.captures)
            .args(&self.more_arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    }

    /// Runs the agent to its end; it must say that all is committed.
    pub async fn run(&self, deadline: Duration) -> Result<()> {
        let mut child = self.spawn()?;
        let status =
            tokio::time::timeout(deadline, child.wait()).await.context("the agent did not end")??;
        ensure!(status.success(), "the agent ended with {status}:\n{}", tail(&self.log()));
        Ok(())
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }
}

/// Sends a signal to a process that the test started.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).context("it has ended")?;
    kill_process(pid, signal).context("failed to send the signal")
}

/// The last lines of a log, for messages.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
