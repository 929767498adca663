//! Profiles: samples of stacks are folded and summed up, by process, for a few seconds at a time.
//!
//! A stack becomes one text: thread, then functions from the outermost to the innermost. A tick of the clock counts as the time between two
//! ticks; a wait counts as long as it lasts, and what lasts still counts up to the end of each period. Pure, but for names of functions, which
//! a [`Names`] finds (`symbols`). Bound: stacks of a period and waits at one time; what is beyond is counted.

mod elf;
mod kernel;
mod maps;
mod symbols;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustc_hash::FxHashMap;

pub use symbols::Symbols;

use crate::events::host::{Doing, Stack};

/// Distinct stacks of one period.
const STACKS_MAX: usize = 16_384;
/// Threads that wait at one time.
const WAITS_MAX: usize = 32_768;
/// How functions of the kernel begin that are there only because the agent looks: they run its programs.
const OWN_FRAMES: [&str; 4] =
    ["[k] bpf_prog_", "[k] bpf_trace_run", "[k] __bpf_trace_", "[k] bpf_trampoline_"];
/// The name of an address where nothing is mapped.
const UNKNOWN: &str = "[unknown]";
/// Bytes of one folded stack; the outermost functions are left out of longer ones.
pub const FOLDED_MAX: usize = 16 << 10;

/// Finds names of functions.
pub trait Names {
    /// Of a function of a process. `is_call`: the address is where a call returns to.
    fn user(&mut self, pid: u32, space: u64, address: u64, is_call: bool) -> Arc<str>;
    fn kernel(&mut self, address: u64, is_call: bool) -> Arc<str>;
}

/// Time that a process spent in one stack.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub pid: u32,
    /// Name of the process.
    pub process: Arc<str>,
    pub doing: Doing,
    pub folded: Arc<str>,
    /// Microseconds.
    pub value: u64,
    /// Begin and end of the period, microseconds since 1970.
    pub start: u64,
    pub end: u64,
}

/// A stack as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Raw {
    space: u64,
    thread_name: String,
    kernel: Vec<u64>,
    user: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    doing: Doing,
    folded: Arc<str>,
}

#[derive(Debug)]
struct Wait {
    since: u64,
    weight: f64,
    key: Key,
}

/// The sums of the period that runs.
#[derive(Debug)]
pub struct Profile {
    /// Nanoseconds between two ticks.
    tick: u64,
    folded: FxHashMap<Raw, Arc<str>>,
    /// Nanoseconds.
    sums: FxHashMap<Key, f64>,
    waits: FxHashMap<u32, Wait>,
    /// Samples that found no room.
    excess: u64,
}

impl Profile {
    /// `frequency` is that of the clock, in Hz.
    pub fn new(frequency: u32) -> Self {
        Self {
            tick: 1_000_000_000 / u64::from(frequency.max(1)),
            folded: FxHashMap::default(),
            sums: FxHashMap::default(),
            waits: FxHashMap::default(),
            excess: 0,
        }
    }

    pub fn stack(&mut self, stack: Stack, names: &mut dyn Names) {
        let Stack { time, doing, pid, thread, thread_name, space, weight, kernel, user } = stack;
        let raw = Raw { space, thread_name, kernel, user };
        let folded = match self.folded.get(&raw) {
            Some(folded) => Arc::clone(folded),
            None if self.folded.len() >= STACKS_MAX => {
                self.excess += 1;
                return;
            }
            None => {
                let folded: Arc<str> = fold(pid, &raw, names).into();
                self.folded.insert(raw, Arc::clone(&folded));
                folded
            }
        };
        let key = Key { pid, doing, folded };
        match doing {
            Doing::Computing => *self.sums.entry(key).or_default() += self.tick as f64,
            // Whoever waits anew went on in between, whether that was told or not.
            Doing::Waiting if self.waits.len() < WAITS_MAX || self.waits.contains_key(&thread) => {
                self.waits.insert(thread, Wait { since: time, weight, key });
            }
            Doing::Waiting => self.excess += 1,
        }
    }

    /// A thread goes on.
    pub fn wake(&mut self, thread: u32, time: u64) {
        if let Some(wait) = self.waits.remove(&thread) {
            let Wait { since, weight, key } = wait;
            *self.sums.entry(key).or_default() += time.saturating_sub(since) as f64 * weight;
        }
    }

    /// Records were lost: nobody knows who waits.
    pub fn forget_waits(&mut self) {
        self.waits.clear();
    }

    /// Samples that found no room since the last time.
    pub fn take_excess(&mut self) -> u64 {
        std::mem::take(&mut self.excess)
    }

    /// Ends the period at `now` (nanoseconds of the records' clock). `waits_still` says of a process and its thread whether it is there;
    /// `process` names a process.
    pub fn take(
        &mut self,
        now: u64,
        [start, end]: [u64; 2],
        waits_still: impl Fn(u32, u32) -> bool,
        mut process: impl FnMut(u32) -> Arc<str>,
    ) -> Vec<Row> {
        let Self { waits, sums, folded, .. } = self;
        waits.retain(|thread, wait| waits_still(wait.key.pid, *thread));
        for wait in waits.values_mut() {
            let lasted = now.saturating_sub(wait.since);
            *sums.entry(wait.key.clone()).or_default() += lasted as f64 * wait.weight;
            wait.since = now;
        }
        // Names may be known better in the next period.
        folded.clear();
        let mut rows: Vec<Row> = sums
            .drain()
            .map(|(Key { pid, doing, folded }, nanoseconds)| {
                // A float becomes the nearest number that fits.
                let value = (nanoseconds / 1_000.0).round() as u64;
                Row { pid, process: process(pid), doing, folded, value, start, end }
            })
            .filter(|row| row.value > 0)
            .collect();
        rows.sort_by(|a, b| (a.pid, a.doing, &a.folded).cmp(&(b.pid, b.doing, &b.folded)));
        rows
    }
}

/// `[t] thread;outermost;...;innermost;[k] outermost of the kernel;...`.
fn fold(pid: u32, raw: &Raw, names: &mut dyn Names) -> String {
    let mut frames: Vec<Arc<str>> = Vec::with_capacity(raw.kernel.len() + raw.user.len());
    // Only the very innermost address is where the thread is; all others are where calls return to.
    let kernel = raw.kernel.iter().enumerate().map(|(at, address)| names.kernel(*address, at > 0));
    frames.extend(kernel.skip_while(|name| OWN_FRAMES.iter().any(|own| name.starts_with(own))));
    for (at, address) in raw.user.iter().enumerate() {
        let name = names.user(pid, raw.space, *address, at > 0);
        // A function without frame pointer had something else in the register: from here on the addresses are no callers.
        if at > 0 && *name == *UNKNOWN {
            break;
        }
        frames.push(name);
    }
    let mut folded = format!("[t] {}", raw.thread_name.replace(';', ":"));
    let mut room = FOLDED_MAX - folded.len();
    let fit = frames.iter().take_while(|frame| {
        let fits = room > frame.len() + "[...];".len();
        room = room.saturating_sub(frame.len() + 1);
        fits
    });
    let fit = fit.count();
    if fit < frames.len() {
        folded.push_str(";[...]");
    }
    for frame in frames[..fit].iter().rev() {
        folded.push(';');
        folded.push_str(frame);
    }
    folded
}

/// How likely a wait is told, so that no more than `budget` of them are in a second, given how many there were in the last one: the number of
/// 2^32 that the kernel's programs compare with.
pub fn odds(before: u32, taken: u64, budget: u32) -> u32 {
    let taken = taken.max(1) as f64;
    let budget = f64::from(budget.max(1));
    let next = if taken > budget {
        f64::from(before) * budget / taken
    } else if taken < budget / 2.0 {
        // Rises by steps: one quiet second says little.
        f64::from(before) * 2.0
    } else {
        return before;
    };
    // A float becomes the nearest number that fits; with 0 nothing would ever be told again.
    (next as u32).max(1 << 16)
}
