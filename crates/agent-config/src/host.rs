//! `[profile]` and `[events]`: what is seen of processes beside their requests.

use std::time::Duration;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// Where processes spend their time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// Which functions compute, of all processes and the kernel.
    pub on_cpu: bool,
    /// Which functions wait, and for how long.
    pub off_cpu: bool,
    /// Samples a second and CPU.
    pub frequency: u32,
    /// Waits that are looked at in a second, of all; a sample of them where there are more.
    pub off_cpu_budget: u32,
    /// How much time a row sums up.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Processes of these names alone; empty: all.
    pub only_processes: Vec<String>,
    /// Processes of these names are not looked at.
    pub excluded_processes: Vec<String>,
}

/// What happens to processes and files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// Starts, programs, deadly signals, lack of memory and ends of processes.
    pub processes: bool,
    /// Slow reads and writes of files.
    pub files: bool,
    /// What is slow.
    #[serde(with = "humantime_serde")]
    pub file_latency_min: Duration,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            on_cpu: true,
            off_cpu: false,
            // Not a divisor of what timers run at: work that comes with a timer would be seen always or never.
            frequency: 99,
            off_cpu_budget: 1_000,
            interval: Duration::from_secs(5),
            only_processes: Vec::new(),
            excluded_processes: Vec::new(),
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self { processes: true, files: false, file_latency_min: Duration::from_millis(10) }
    }
}

impl Profile {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=1_000).contains(&self.frequency), "profile.frequency is not between 1 and 1000");
        ensure!(
            (1..=100_000).contains(&self.off_cpu_budget),
            "profile.off_cpu_budget is not between 1 and 100000"
        );
        ensure!(
            (1..=60).contains(&self.interval.as_secs()),
            "profile.interval is not between one second and one minute"
        );
        Ok(())
    }
}

impl Events {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.file_latency_min <= Duration::from_secs(60),
            "events.file_latency_min is longer than a minute"
        );
        Ok(())
    }
}
