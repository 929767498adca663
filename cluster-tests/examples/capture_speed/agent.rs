//! The agent as a process, and what the kernel counts of its programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use metaflow_agent::probes::{self, ProgramCost};
use metaflow_cluster_tests::{
    process::{binary, signal, tail},
    wait_for,
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::{Child, Command};

/// Kernel clock ticks a second (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;
/// The search for libraries in the programs that run already is over then.
const SETTLE: Duration = Duration::from_millis(1_500);
/// From a request to its row at the node: half a second in the ring, the batch and the spool, and some more.
pub(crate) const TAIL: Duration = Duration::from_millis(1_500);
const PATIENCE: Duration = Duration::from_secs(120);
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// What the agent looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Packets,
    Processes,
    Both,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Packets, Self::Processes, Self::Both];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Processes => "processes (eBPF)",
            Self::Both => "both",
        }
    }

    fn configuration(self) -> &'static str {
        match self {
            Self::Packets => "[ebpf]\nenabled = \"off\"\n",
            // An interface that is not there is waited for.
            Self::Processes => {
                "[capture]\ninterfaces = [\"metaflow-none\"]\n[ebpf]\nenabled = \"required\"\n"
            }
            Self::Both => "[ebpf]\nenabled = \"required\"\n",
        }
    }
}

pub(crate) struct Agent {
    child: Child,
    folder: PathBuf,
}

impl Agent {
    /// Starts it and waits until it looks. Where another agent on this machine looks into processes, it waits until that one has ended.
    pub(crate) async fn start(folder: &Path, server: &str, mode: Mode) -> Result<Self> {
        let folder = folder.join("agent");
        let mut agent = Self { child: Self::spawn(&folder, server, mode)?, folder };
        wait_for("the agent to look", PATIENCE, async || {
            let log = fs::read_to_string(agent.folder.join("agent.log"))?;
            if agent.child.try_wait()?.is_some() {
                agent.child = Self::spawn(&agent.folder, server, mode)?;
            }
            ensure!(log.contains("capturing"), "{log}");
            Ok::<(), anyhow::Error>(())
        })
        .await?;
        tokio::time::sleep(SETTLE).await;
        Ok(agent)
    }

    fn spawn(folder: &Path, server: &str, mode: Mode) -> Result<Child> {
        fs::remove_dir_all(folder).ok();
        fs::create_dir_all(folder)?;
        let configuration = format!(
            "servers = [\"{server}\"]\ndata_dir = \"{}\"\n{}[guard]\ncpu_percent_max = 1000\n",
            folder.join("data").display(),
            mode.configuration()
        );
        let path = folder.join("agent.toml");
        fs::write(&path, configuration)?;
        let log = fs::File::create(folder.join("agent.log"))?;
        let child = Command::new(binary("metaflow-agent"))
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    }

    pub(crate) fn cpu_us(&self) -> Result<f64> {
        cpu_us(self.child.id().context("the agent has ended")?)
    }

    pub(crate) fn peak_bytes(&self) -> Result<f64> {
        let pid = self.child.id().context("the agent has ended")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kib * 1024.0)
    }

    /// Stops it; gives the requests that became rows, and what was lost.
    pub(crate) async fn end(mut self) -> Result<(f64, String)> {
        signal(&self.child, Signal::TERM)?;
        let ended =
            tokio::time::timeout(PATIENCE, self.child.wait()).await.context("the agent does not end")??;
        ensure!(ended.success(), "the agent ended with {ended}:\n{}", tail(&self.folder.join("agent.log")));
        let status: Value = serde_json::from_str(&fs::read_to_string(self.folder.join("data/status.json"))?)?;
        let mut lost: Vec<String> = status["losses"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        if status["shedding"] != 0 {
            lost.push("the agent looked at less".to_owned());
        }
        Ok((status["sessions"].as_f64().unwrap_or(0.0), lost.join(", ")))
    }
}

/// User and system time of a process, in microseconds.
pub(crate) fn cpu_us(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("no process name")?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || -> Result<f64> { Ok(fields.next().context("no CPU time")?.parse()?) };
    Ok((ticks()? + ticks()?) / TICKS * 1e6)
}

/// The kernel counts runs of eBPF programs until this ends.
pub(crate) struct Statistics {
    before: Vec<ProgramCost>,
    setting: String,
}

impl Statistics {
    pub(crate) fn begin() -> Result<Self> {
        let setting = fs::read_to_string(STATISTICS)?;
        fs::write(STATISTICS, "1")?;
        Ok(Self { before: probes::program_costs(), setting })
    }

    /// What each program cost since the beginning.
    pub(crate) fn end(self) -> Result<Vec<ProgramCost>> {
        let after = probes::program_costs();
        fs::write(STATISTICS, self.setting.trim())?;
        Ok(after
            .into_iter()
            .map(|cost| match self.before.iter().find(|before| before.name == cost.name) {
                Some(before) => ProgramCost {
                    runs: cost.runs - before.runs,
                    nanoseconds: cost.nanoseconds - before.nanoseconds,
                    ..cost
                },
                None => cost,
            })
            .collect())
    }
}
