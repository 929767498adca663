//! The profile thread: stacks of threads, slow calls on files, lives of processes.
//!
//! Nothing here is fatal: what cannot be had is said once. Settings count as soon as they change. While the guard sheds anything, no stacks are
//! sampled; while it says stop, nothing of this is in the kernel at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use super::Process;
use crate::{
    clock,
    config::{Config, Enabled, Events, Profile as ProfileConfig},
    control::Running,
    events::host::{self as records, Event},
    facts::Snapshot,
    flow::Output,
    guard::{Level, Shedding},
    incidents::Incidents,
    metrics::{Metrics, reason},
    pipeline::{PIECE_ROWS, Piece},
    probes::{
        Capability, Verdict,
        host::{self as probes, EventSettings, HostProbes, ProfileSettings},
    },
    profile::{self, Profile, Symbols},
};

/// How often records are read. Rings have room for much longer; a process that ends takes its mappings along.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often clocks, losses and processes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Rows of incidents are handed over after so long.
const HAND_OVER: Duration = Duration::from_millis(200);
/// Programs of MetaFlow itself.
const OWN: [&str; 2] = ["metaflow", "metaflow-agent"];

/// Whether no other agent watches this host.
pub(super) fn is_free() -> bool {
    !probes::is_in_use(&[])
}

pub(super) fn spawn(
    process: &Process,
    is_free: bool,
    facts: watch::Receiver<Arc<Snapshot>>,
    settings: Running,
    halt: &Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<()>> {
    let mut thread = Thread {
        settings,
        facts,
        is_free,
        stacks: None,
        incidents: None,
        no_stacks: false,
        no_incidents: false,
        config: Config::default(),
        is_fresh: true,
        output: Output::default(),
        queue: process.queue()?,
        metrics: Arc::clone(&process.metrics),
        shedding: Arc::clone(&process.shedding),
        started: Instant::now(),
        looked: None,
        handed_over: Instant::now(),
        is_closed: false,
    };
    let halt = Arc::clone(halt);
    std::thread::Builder::new()
        .name("profile".to_owned())
        .spawn(move || thread.run(&halt))
        .context("failed to start the profile thread")
}

/// Stacks that are sampled.
struct Stacks {
    probes: HostProbes,
    profile: Profile,
    symbols: Symbols,
    judged: Judged,
    dropped: u64,
    odds: u32,
    /// Waits that were told since the last look.
    waits: u64,
    /// Of processes that were seen in this period; they may be gone at its end.
    names: FxHashMap<u32, Arc<str>>,
    /// When the period began.
    began: Instant,
    began_us: u64,
}

struct Watched {
    probes: HostProbes,
    incidents: Incidents,
    judged: Judged,
    dropped: u64,
}

struct Thread {
    settings: Running,
    facts: watch::Receiver<Arc<Snapshot>>,
    /// No other agent watches this host.
    is_free: bool,
    stacks: Option<Stacks>,
    incidents: Option<Watched>,
    /// It was tried with these settings and cannot be had.
    no_stacks: bool,
    no_incidents: bool,
    /// What counts now.
    config: Config,
    /// It was not looked at yet.
    is_fresh: bool,
    output: Output,
    queue: SyncSender<Piece>,
    metrics: Arc<Metrics>,
    shedding: Arc<Shedding>,
    started: Instant,
    looked: Option<Instant>,
    handed_over: Instant,
    is_closed: bool,
}

impl Thread {
    fn run(&mut self, halt: &AtomicBool) {
        while !halt.load(Ordering::Relaxed) && !self.is_closed {
            self.heed_settings();
            self.read();
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL) {
                self.looked = Some(Instant::now());
                self.look();
            }
            self.end_period(false);
            if self.handed_over.elapsed() >= HAND_OVER || rows(&self.output) >= PIECE_ROWS {
                self.hand_over();
            }
            std::thread::park_timeout(POLL_INTERVAL);
        }
        self.read();
        self.end_period(true);
        self.hand_over();
    }

    /// Puts programs into the kernel and takes them out, as settings and guard say.
    fn heed_settings(&mut self) {
        let is_new = std::mem::take(&mut self.is_fresh) || self.settings.has_changed().unwrap_or(false);
        if is_new {
            let next = Config::clone(&self.settings.borrow_and_update());
            if next.profile != self.config.profile || next.ebpf.enabled != self.config.ebpf.enabled {
                self.end_period(true);
                self.stacks = None;
            }
            if next.events != self.config.events || next.ebpf.enabled != self.config.ebpf.enabled {
                self.incidents = None;
            }
            (self.no_stacks, self.no_incidents) = (false, false);
            self.config = next;
        }
        let level = self.shedding.level();
        let is_allowed = self.is_free && self.config.ebpf.enabled != Enabled::Off;
        let Config { profile, events, .. } = &self.config;
        let (stacks, incidents) = (
            is_allowed && level < Level::NoRequests && (profile.on_cpu || profile.off_cpu),
            is_allowed && level < Level::Stop && (events.processes || events.files),
        );
        if !stacks && self.stacks.is_some() {
            self.end_period(true);
            self.stacks = None;
        }
        if !incidents {
            self.incidents = None;
        }
        let mut has_begun = false;
        if stacks && self.stacks.is_none() && !self.no_stacks {
            self.stacks = open_stacks(&self.config.profile);
            self.no_stacks = self.stacks.is_none();
            has_begun = true;
        }
        if incidents && self.incidents.is_none() && !self.no_incidents {
            self.incidents = open_incidents(&self.config.events);
            self.no_incidents = self.incidents.is_none();
            has_begun = true;
        }
        if has_begun {
            self.give_way();
        }
    }

    /// Of two agents that begin in the same moment one goes on.
    fn give_way(&mut self) {
        let stacks = self.stacks.iter().flat_map(|stacks| stacks.probes.program_ids());
        let incidents = self.incidents.iter().flat_map(|watched| watched.probes.program_ids());
        let own: Vec<u32> = stacks.chain(incidents).collect();
        if !own.is_empty() && probes::is_in_use(&own) {
            tracing::warn!("another agent watches this host");
            (self.stacks, self.incidents, self.is_free) = (None, None, false);
        }
    }

    fn read(&mut self) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Self { stacks, incidents, output, metrics, facts, .. } = self;
        let mut taken = 0;
        if let Some(Stacks { probes, profile, symbols, waits, names, .. }) = stacks {
            let facts = Arc::clone(&facts.borrow());
            symbols.tick(now_ms);
            taken += probes.poll(&mut |record| match records::read(record) {
                Ok(Event::Stack(stack)) => {
                    *waits += u64::from(stack.doing == records::Doing::Waiting);
                    names.entry(stack.pid).or_insert_with(|| name(&facts, stack.pid));
                    profile.stack(stack, symbols);
                }
                Ok(Event::Wake { time, thread }) => profile.wake(thread, time),
                Ok(Event::File(_) | Event::Life(_)) => {}
                Err(error) => tracing::trace!(%error, "a record is no event"),
            });
        }
        if let Some(Watched { probes, incidents, .. }) = incidents {
            taken += probes.poll(&mut |record| match records::read(record) {
                Ok(Event::File(call)) => output.files.extend(incidents.file(call)),
                Ok(Event::Life(life)) => output.lives.extend(incidents.life(life)),
                Ok(Event::Stack(_) | Event::Wake { .. }) => {}
                Err(error) => tracing::trace!(%error, "a record is no event"),
            });
        }
        Metrics::add(&metrics.events, taken as u64);
    }

    /// Once a second: what was lost, who is looked at, how many waits are told, whether another agent has gone.
    fn look(&mut self) {
        self.is_free = self.is_free || is_free();
        let facts = Arc::clone(&self.facts.borrow());
        let Self { stacks, incidents, metrics, config, .. } = self;
        if let Some(stacks) = stacks {
            let profile = &config.profile;
            stacks.judged.judge(
                &mut stacks.probes,
                &facts,
                &profile.only_processes,
                &profile.excluded_processes,
            );
            let dropped = stacks.probes.dropped();
            let lost = dropped.saturating_sub(stacks.dropped);
            if lost > 0 {
                stacks.profile.forget_waits();
            }
            metrics.lose(reason::HOST_EVENT_DROPS, lost + stacks.profile.take_excess());
            stacks.dropped = dropped;
            let told = std::mem::take(&mut stacks.waits) + lost;
            let odds = profile::odds(stacks.odds, told, profile.off_cpu_budget);
            if odds != stacks.odds {
                stacks.odds = odds;
                stacks.probes.set_odds(odds);
            }
        }
        if let Some(watched) = incidents {
            watched.incidents.set_clock(clock::wall_minus_monotonic_us());
            watched.judged.judge(&mut watched.probes, &facts, &[], &[]);
            let dropped = watched.probes.dropped();
            let lost = dropped.saturating_sub(watched.dropped) + watched.incidents.take_excess();
            metrics.lose(reason::HOST_EVENT_DROPS, lost);
            watched.dropped = dropped;
        }
    }

    /// Makes rows of what was sampled, when it is time or `at_once`.
    fn end_period(&mut self, at_once: bool) {
        let Self { stacks: Some(stacks), output, facts, config, .. } = self else { return };
        if !at_once && stacks.began.elapsed() < config.profile.interval {
            return;
        }
        let now_us = clock::now();
        let period = [std::mem::replace(&mut stacks.began_us, now_us), now_us];
        stacks.began = Instant::now();
        let facts = Arc::clone(&facts.borrow());
        let Stacks { profile, names, .. } = stacks;
        let rows = profile.take(clock::monotonic_ns(), period, is_here, |pid| {
            let known = names.get(&pid).filter(|_| !facts.processes.contains_key(&pid));
            known.map_or_else(|| name(&facts, pid), Arc::clone)
        });
        names.clear();
        output.stacks.extend(rows);
    }

    fn hand_over(&mut self) {
        self.handed_over = Instant::now();
        let output = std::mem::take(&mut self.output);
        let count = rows(&output);
        if count == 0 {
            return;
        }
        let piece = Piece { output, traffic_now: clock::now(), end: false };
        match self.queue.try_send(piece) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.metrics.lose(reason::EMIT_BACKLOG, count as u64),
            Err(TrySendError::Disconnected(_)) => self.is_closed = true,
        }
    }
}

fn rows(output: &Output) -> usize {
    output.stacks.len() + output.files.len() + output.lives.len()
}

fn open_stacks(config: &ProfileConfig) -> Option<Stacks> {
    let ProfileConfig { on_cpu, off_cpu, frequency, only_processes, .. } = config;
    let settings = ProfileSettings {
        on_cpu: *on_cpu,
        off_cpu: *off_cpu,
        frequency: *frequency,
        only_listed: !only_processes.is_empty(),
    };
    let (probes, report) = HostProbes::profile(&settings);
    tell(report);
    let mut probes = probes?;
    probes.set_odds(u32::MAX);
    Some(Stacks {
        probes,
        profile: Profile::new(*frequency),
        symbols: Symbols::default(),
        judged: Judged::default(),
        dropped: 0,
        odds: u32::MAX,
        waits: 0,
        names: FxHashMap::default(),
        began: Instant::now(),
        began_us: clock::now(),
    })
}

fn open_incidents(config: &Events) -> Option<Watched> {
    let Events { processes, files, file_latency_min } = config;
    let from = u32::try_from(file_latency_min.as_micros()).unwrap_or(u32::MAX);
    let settings = EventSettings { processes: *processes, files_from_us: files.then_some(from) };
    let (probes, report) = HostProbes::events(&settings);
    tell(report);
    let mut incidents = Incidents::default();
    incidents.set_clock(clock::wall_minus_monotonic_us());
    Some(Watched { probes: probes?, incidents, judged: Judged::default(), dropped: 0 })
}

fn tell(report: Vec<Capability>) {
    for Capability { name, problem, lost } in report {
        match problem {
            Some(problem) => tracing::warn!(problem, lost, "eBPF: no {name}"),
            None => tracing::info!("eBPF: {name}"),
        }
    }
}

/// Whether a thread still is where it was.
fn is_here(pid: u32, thread: u32) -> bool {
    std::fs::exists(format!("/proc/{pid}/task/{thread}")).unwrap_or(false)
}

/// What people call a process: as the facts say, or as it says itself while the facts do not know it yet.
fn name(facts: &Snapshot, pid: u32) -> Arc<str> {
    if let Some(process) = facts.processes.get(&pid) {
        return process.name.as_str().into();
    }
    let own = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    own.trim_end().into()
}

/// Lists of names become lists of processes.
#[derive(Default)]
struct Judged(FxHashMap<u32, Verdict>);

impl Judged {
    fn judge(&mut self, probes: &mut HostProbes, facts: &Snapshot, only: &[String], excluded: &[String]) {
        let has = |names: &[String], name: &str| names.iter().any(|known| known == name);
        for (pid, process) in &facts.processes {
            let name = process.name.as_str();
            let verdict = if OWN.contains(&name) || has(excluded, name) {
                Some(Verdict::Ignore)
            } else {
                has(only, name).then_some(Verdict::Listed)
            };
            if self.0.get(pid).copied() != verdict {
                probes.judge_process(*pid, verdict);
                match verdict {
                    Some(verdict) => self.0.insert(*pid, verdict),
                    None => self.0.remove(pid),
                };
            }
        }
        self.0.retain(|pid, _| {
            let is_here = facts.processes.contains_key(pid);
            if !is_here {
                probes.judge_process(*pid, None);
            }
            is_here
        });
    }
}
