//! The guard: the agent never hurts its host.
//!
//! Measures what this process uses and decides, purely, how much it looks at. Over a ceiling it sheds one step after another, and comes
//! back step by step when it is well below for a while: requests of new flows go first, then most flows, then the capture as a whole.
//! The level is read by the capture thread. Leaves out: who measures when (`main`).

mod usage;

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

pub use usage::{Usage, UsageMeter, free_bytes};

/// How much is shed; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Normal = 0,
    /// New flows are not searched for requests, and new processes are noticed later.
    NoRequests = 1,
    /// A sample of flows is looked at.
    Sample = 2,
    /// Nothing is captured.
    Stop = 3,
}

impl Level {
    const ALL: [Self; 4] = [Self::Normal, Self::NoRequests, Self::Sample, Self::Stop];

    fn up(self) -> Self {
        Self::ALL[(self as usize + 1).min(3)]
    }

    fn down(self) -> Self {
        Self::ALL[(self as usize).saturating_sub(1)]
    }
}

/// The level that threads share.
#[derive(Debug, Default)]
pub struct Shedding(AtomicU8);

impl Shedding {
    pub fn level(&self) -> Level {
        Level::ALL[usize::from(self.0.load(Ordering::Relaxed)).min(3)]
    }

    pub fn set(&self, level: Level) {
        self.0.store(level as u8, Ordering::Relaxed);
    }
}

/// What the agent may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// The kill switch: `false` stops the capture at once.
    pub enabled: bool,
    /// Hundredths of one CPU.
    pub cpu_percent: u32,
    pub memory_bytes: u64,
    pub disk_free_bytes: u64,
}

/// So many looks in a row above a ceiling make the next step: one busy second is no reason.
const LOOKS_UP: u32 = 3;
/// So many looks well below make a step back.
const LOOKS_DOWN: u32 = 10;
/// Well below: this share of the ceiling, in percent. The gap keeps the level from swinging.
const RETURN_PERCENT: u64 = 70;
/// How often the guard looks.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Decides the level from one look to the next. Pure.
#[derive(Debug)]
pub struct Guard {
    level: Level,
    above: u32,
    below: u32,
}

impl Default for Guard {
    fn default() -> Self {
        Self { level: Level::Normal, above: 0, below: 0 }
    }
}

impl Guard {
    pub fn look(&mut self, usage: &Usage, ceilings: &Ceilings) -> Level {
        let Usage { cpu_percent, memory_bytes, disk_free_bytes } = *usage;
        let pairs = [
            (u64::from(cpu_percent), u64::from(ceilings.cpu_percent)),
            (memory_bytes, ceilings.memory_bytes),
        ];
        let is_above = pairs.iter().any(|(used, ceiling)| used > ceiling);
        let is_below = pairs.iter().all(|(used, ceiling)| used * 100 <= ceiling * RETURN_PERCENT);
        self.above = if is_above { self.above + 1 } else { 0 };
        self.below = if is_below { self.below + 1 } else { 0 };
        // Far above in memory is an emergency: the next look may be too late.
        let is_emergency = memory_bytes > ceilings.memory_bytes.saturating_mul(2);
        if self.above >= LOOKS_UP || is_emergency {
            self.above = 0;
            self.level = self.level.up();
        } else if self.below >= LOOKS_DOWN {
            self.below = 0;
            self.level = self.level.down();
        }
        // Without disk space new rows would only push out older ones.
        let has_disk = disk_free_bytes.is_none_or(|free| free >= ceilings.disk_free_bytes);
        if ceilings.enabled && has_disk { self.level } else { Level::Stop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Ceilings =
        Ceilings { enabled: true, cpu_percent: 50, memory_bytes: 1_000, disk_free_bytes: 100 };

    fn usage(cpu_percent: u32, memory_bytes: u64) -> Usage {
        Usage { cpu_percent, memory_bytes, disk_free_bytes: Some(1_000) }
    }

    fn looks(guard: &mut Guard, usage: Usage, count: usize) -> Vec<u8> {
        (0..count).map(|_| guard.look(&usage, &CEILINGS) as u8).collect()
    }

    #[test]
    fn steps_up_only_when_it_lasts_and_down_only_when_well_below() {
        let mut guard = Guard::default();
        assert_eq!(looks(&mut guard, usage(80, 0), 2), [0, 0]);
        assert_eq!(looks(&mut guard, usage(40, 0), 1), [0], "a busy moment is over");
        assert_eq!(looks(&mut guard, usage(80, 0), 9), [0, 0, 1, 1, 1, 2, 2, 2, 3]);
        assert_eq!(looks(&mut guard, usage(45, 0), 30), [3; 30], "below, but not well below");
        assert_eq!(looks(&mut guard, usage(30, 0), 10)[8..], [3, 2]);
    }

    #[test]
    fn memory_far_above_steps_at_every_look() {
        assert_eq!(looks(&mut Guard::default(), usage(0, 2_001), 3), [1, 2, 3]);
    }

    #[test]
    fn the_switch_and_a_full_disk_stop_at_once_and_release_at_once() {
        let mut guard = Guard::default();
        let off = Ceilings { enabled: false, ..CEILINGS };
        assert_eq!(guard.look(&usage(0, 0), &off), Level::Stop);
        assert_eq!(guard.look(&usage(0, 0), &CEILINGS), Level::Normal);
        let full = Usage { disk_free_bytes: Some(99), ..usage(0, 0) };
        assert_eq!(guard.look(&full, &CEILINGS), Level::Stop);
        let unknown = Usage { disk_free_bytes: None, ..usage(0, 0) };
        assert_eq!(guard.look(&unknown, &CEILINGS), Level::Normal);
    }
}
