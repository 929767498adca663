//! What this process uses, from /proc/self.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// One look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Hundredths of one CPU since the look before.
    pub cpu_percent: u32,
    pub memory_bytes: u64,
    /// Free space on the disk of the spool; none when it cannot be asked.
    pub disk_free_bytes: Option<u64>,
}

/// Looks, and remembers the CPU time of the look before.
#[derive(Debug)]
pub struct UsageMeter {
    ticks_per_second: u64,
    page_bytes: u64,
    last: Option<(Instant, u64)>,
}

impl Default for UsageMeter {
    fn default() -> Self {
        Self {
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            page_bytes: rustix::param::page_size() as u64,
            last: None,
        }
    }
}

impl UsageMeter {
    pub fn look(&mut self, disk: &Path) -> Usage {
        let now = Instant::now();
        let ticks = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_ticks(&stat));
        let pages = fs::read_to_string("/proc/self/statm").ok().and_then(|statm| resident_pages(&statm));
        let cpu_percent = match (ticks, self.last) {
            (Some(ticks), Some((then, before))) => {
                percent(ticks.saturating_sub(before), self.ticks_per_second, now.duration_since(then))
            }
            _ => 0,
        };
        self.last = ticks.map(|ticks| (now, ticks));
        Usage {
            cpu_percent,
            memory_bytes: pages.unwrap_or(0) * self.page_bytes,
            disk_free_bytes: free_bytes(disk),
        }
    }
}

/// Space that this user may still write.
pub fn free_bytes(directory: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(directory).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

fn percent(ticks: u64, ticks_per_second: u64, elapsed: Duration) -> u32 {
    let elapsed_ms = elapsed.as_millis().max(1);
    let used = u128::from(ticks) * 100_000 / u128::from(ticks_per_second.max(1));
    u32::try_from(used / elapsed_ms).unwrap_or(u32::MAX)
}

/// User and system time: fields 14 and 15, counted behind the name, which may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_past_a_hostile_name() {
        let stat = "7 (a) R 1) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 99 1000 200";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a"), None);
        assert_eq!(resident_pages("500 42 10 1 0 1 0"), Some(42));
        assert_eq!(percent(50, 100, Duration::from_secs(1)), 50);
        assert_eq!(percent(50, 100, Duration::ZERO), 50_000);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let mut meter = UsageMeter::default();
        let directory = std::env::temp_dir();
        meter.look(&directory);
        let begin = Instant::now();
        // Work until it shows, however busy the machine is with others.
        let usage = loop {
            let usage = meter.look(&directory);
            if usage.cpu_percent > 0 || begin.elapsed() > Duration::from_secs(20) {
                break usage;
            }
        };
        assert!(usage.memory_bytes > 100_000 && usage.cpu_percent > 0, "{usage:?}");
        assert!(usage.disk_free_bytes.is_some());
    }
}
