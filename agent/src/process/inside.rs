//! The eBPF thread: reads the records of the kernel's programs, makes calls of them and hands them to the sealing thread.
//!
//! Nothing here is fatal: where the programs cannot be loaded, that is said once, and packets go on. While the guard says stop, the
//! programs are not in the kernel at all.

use std::{
    collections::HashSet,
    ops::ControlFlow,
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
    config::{Config, Ebpf, Enabled},
    control::Running,
    events::{self, Event},
    facts::{OWN, Snapshot},
    flow::Output,
    guard::{Level, Shedding},
    metrics::{Metrics, reason},
    pipeline::{PIECE_ROWS, Piece},
    probes::{Capability, Losses, Probes, RECORDS_MAX, Rival, Settings, Verdict},
    sockets::{self, Sockets},
};

/// How often records are read: a wakeup for each would cost the traced programs more than all the rest.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often it is looked whether there is room again in a full queue.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);
/// Calls of less than a piece are handed over after so long.
const HAND_OVER: Duration = Duration::from_millis(100);
/// How often clocks, losses and processes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Programs that are named for what stays unseen of them.
const DARK_MAX: usize = 256;

/// Programs in the kernel, before their thread begins.
pub(super) struct Inside {
    /// None while another agent is there.
    probes: Option<Probes>,
    settings: Settings,
    config: Ebpf,
    session: crate::session::Config,
}

impl Inside {
    /// None where it is off or cannot be had; an error where it is required.
    pub(super) fn open(config: &Config) -> anyhow::Result<Option<Self>> {
        let required = config.ebpf.enabled == Enabled::Required;
        if config.ebpf.enabled == Enabled::Off {
            return Ok(None);
        }
        let settings = Settings::new(&config.ebpf, config.excluded_ports());
        let probes = match Probes::open_alone(&settings) {
            Ok((probes, report)) => {
                tell(probes.as_ref(), report);
                anyhow::ensure!(
                    probes.is_some() || !required,
                    "eBPF cannot be used here (see `metaflow-agent capabilities`)"
                );
                if probes.is_none() {
                    return Ok(None);
                }
                probes
            }
            Err(rival) => {
                anyhow::ensure!(
                    !required,
                    "{rival}: stop it first, or let this one keep to packets (ebpf.enabled = \"auto\")"
                );
                tracing::warn!(
                    "{rival}: two would see everything twice, so this one keeps to packets until that one ends"
                );
                None
            }
        };
        Ok(Some(Self { probes, settings, config: config.ebpf.clone(), session: config.session.clone() }))
    }

    pub(super) fn spawn(
        self,
        process: &Process,
        facts: watch::Receiver<Arc<Snapshot>>,
        running: Running,
        halt: &Arc<AtomicBool>,
    ) -> anyhow::Result<JoinHandle<()>> {
        let Self { probes, settings, config, session } = self;
        let sockets = Sockets::new(sockets::Config {
            sockets_max: config.sockets_max,
            session: Arc::new(session.clone()),
            tls: config.tls,
            trace_base: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), clock::now()),
        });
        let thread = Thread {
            probes,
            settings,
            config,
            session,
            sockets,
            facts,
            running,
            verdicts: FxHashMap::default(),
            queue: process.queue()?,
            output: Output::default(),
            metrics: Arc::clone(&process.metrics),
            shedding: Arc::clone(&process.shedding),
            started: Instant::now(),
            looked: None,
            handed_over: Instant::now(),
            counted: Losses::default(),
            of_sockets: sockets::Counters::default(),
            dark: HashSet::new(),
            is_closed: false,
        };
        let halt = Arc::clone(halt);
        std::thread::Builder::new()
            .name("ebpf".to_owned())
            .spawn(move || thread.run(&halt))
            .context("failed to start the eBPF thread")
    }
}

struct Thread {
    /// None while the guard says stop, and while another agent is there.
    probes: Option<Probes>,
    settings: Settings,
    config: Ebpf,
    session: crate::session::Config,
    sockets: Sockets,
    facts: watch::Receiver<Arc<Snapshot>>,
    /// What nodes may change while it runs.
    running: Running,
    /// What was said about which process.
    verdicts: FxHashMap<u32, Verdict>,
    queue: SyncSender<Piece>,
    output: Output,
    metrics: Arc<Metrics>,
    shedding: Arc<Shedding>,
    started: Instant,
    looked: Option<Instant>,
    handed_over: Instant,
    counted: Losses,
    of_sockets: sockets::Counters,
    /// Programs that were named for their unseen TLS.
    dark: HashSet<String>,
    is_closed: bool,
}

impl Thread {
    fn run(mut self, halt: &AtomicBool) {
        while !halt.load(Ordering::Relaxed) && !self.is_closed {
            self.heed_guard();
            self.take_lists();
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL) {
                self.looked = Some(Instant::now());
                self.look();
            }
            self.read();
            if self.handed_over.elapsed() >= HAND_OVER {
                self.hand_over();
            }
            let wait = if self.is_full() { ROOM_INTERVAL } else { POLL_INTERVAL };
            std::thread::park_timeout(wait);
        }
        self.read();
        self.sockets.finish(&mut self.output.calls);
        self.hand_over_last();
    }

    /// Takes the programs out of the kernel while nothing may be captured, and puts them back.
    fn heed_guard(&mut self) {
        let may_look = self.shedding.level() < Level::Stop;
        if self.probes.is_some() && !may_look {
            self.probes = None;
            self.sockets.finish(&mut self.output.calls);
        } else if self.probes.is_none()
            && may_look
            && self.looked.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL)
        {
            self.put_in();
        }
    }

    /// Settings of requests, and lists of ports and processes, count at once. Ports, and whether only listed processes are looked at, are constants of the programs, so
    /// these are loaded anew; connections go on, their sockets are known.
    fn take_lists(&mut self) {
        if !self.running.has_changed().unwrap_or(false) {
            return;
        }
        let running = Arc::clone(&self.running.borrow_and_update());
        if running.session != self.session {
            self.session = running.session.clone();
            self.sockets.set_session(Arc::new(self.session.clone()));
        }
        let Ebpf { only_ports, only_processes, excluded_processes, .. } = &running.ebpf;
        let config = Ebpf {
            only_ports: only_ports.clone(),
            only_processes: only_processes.clone(),
            excluded_processes: excluded_processes.clone(),
            ..self.config.clone()
        };
        if config == self.config {
            return;
        }
        self.config = config;
        let settings = Settings::new(&self.config, self.settings.excluded_ports.clone());
        if settings != self.settings {
            self.settings = settings;
            self.read();
            if self.probes.take().is_some() {
                self.put_in();
                self.sockets.judge_again();
            }
        }
        self.looked = None;
    }

    /// Puts the programs into the kernel (again), where no other agent has its own.
    fn put_in(&mut self) {
        if Rival::is_there() {
            return;
        }
        self.counted = Losses::default();
        self.verdicts.clear();
        match Probes::open_alone(&self.settings) {
            Ok((probes, report)) => {
                tell(probes.as_ref(), report);
                self.probes = probes;
            }
            Err(rival) => tracing::debug!("{rival}"),
        }
    }

    /// Reads what is there. A record may complete many requests (pipelines): they are handed over piece by piece, so that what waits is
    /// bounded. When the sealing thread does not follow, records stay in the ring, where a request takes a small part of what it takes here.
    fn read(&mut self) {
        let mut records = 0;
        while records < RECORDS_MAX {
            if self.is_full() {
                self.hand_over();
            }
            if self.is_full() {
                return;
            }
            records += self.read_piece();
            if !self.is_full() {
                return;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.output.calls.len() >= PIECE_ROWS
    }

    fn read_piece(&mut self) -> usize {
        let Self { probes: Some(probes), sockets, output, metrics, .. } = self else { return 0 };
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut began = Vec::new();
        let taken = probes.poll(&mut |record| {
            match events::read(record) {
                Ok(Event::Exec { task }) => began.push(task.pid),
                Ok(event) => sockets.event(&event, &mut output.calls),
                // The packet path sees what a record cannot tell.
                Err(error) => tracing::trace!(%error, "a record is no event"),
            }
            if output.calls.len() < PIECE_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        Metrics::add(&metrics.events, taken as u64);
        sockets.tick(clock::monotonic_ns(), &mut output.calls);
        for (socket, judgement) in sockets.take_judgements() {
            probes.judge_socket(socket, judgement);
        }
        for pid in began {
            probes.began(pid, now_ms);
            // Another program may be another matter.
            if self.verdicts.remove(&pid).is_some() {
                probes.judge_process(pid, None);
            }
        }
        probes.search_libraries(now_ms);
        taken
    }

    fn look(&mut self) {
        self.sockets.set_clock(clock::wall_minus_monotonic_us());
        let facts = Arc::clone(&self.facts.borrow());
        for listener in &facts.listeners {
            self.sockets.server_port(listener.port);
        }
        self.judge_processes(&facts);
        let Some(probes) = &self.probes else { return };
        let losses = probes.losses();
        let Losses { dropped, unseen, unix_datagrams, submitted } = self.counted;
        self.metrics.lose(reason::EVENT_DROPS, losses.dropped.saturating_sub(dropped));
        self.metrics.lose(reason::UNSEEN_TRANSFERS, losses.unseen.saturating_sub(unseen));
        self.metrics.lose(reason::IO_URING_SUBMISSIONS, losses.submitted.saturating_sub(submitted));
        let datagrams = losses.unix_datagrams.saturating_sub(unix_datagrams);
        Metrics::add(&self.metrics.unix_datagrams, datagrams);
        self.counted = losses;
        let sockets::Counters { excess, unseen_tls, .. } = self.sockets.counters();
        self.metrics.lose(reason::EXCESS_SOCKETS, excess - self.of_sockets.excess);
        self.metrics.lose(reason::UNSEEN_TLS, unseen_tls - self.of_sockets.unseen_tls);
        self.of_sockets = self.sockets.counters();
        self.name_dark(&facts);
    }

    /// Says once of each program that its TLS stays unseen.
    fn name_dark(&mut self, facts: &Snapshot) {
        for pid in self.sockets.take_dark() {
            let name = facts.processes.get(&pid).map_or("", |process| process.name.as_str());
            if self.dark.len() < DARK_MAX && self.dark.insert(name.to_owned()) {
                tracing::warn!(
                    pid,
                    name,
                    "requests inside TLS of a program stay unseen: it has no functions that can be probed"
                );
            }
        }
    }

    /// Lists of names become lists of processes.
    fn judge_processes(&mut self, facts: &Snapshot) {
        let Self { probes: Some(probes), verdicts, config, .. } = self else { return };
        let has = |names: &[String], name: &str| names.iter().any(|known| known == name);
        for (pid, process) in &facts.processes {
            let name = process.name.as_str();
            let verdict = if OWN.contains(&name) || has(&config.excluded_processes, name) {
                Some(Verdict::Ignore)
            } else {
                has(&config.only_processes, name).then_some(Verdict::Listed)
            };
            if verdicts.get(pid).copied() != verdict {
                probes.judge_process(*pid, verdict);
                match verdict {
                    Some(verdict) => verdicts.insert(*pid, verdict),
                    None => verdicts.remove(pid),
                };
            }
        }
        verdicts.retain(|pid, _| {
            let is_here = facts.processes.contains_key(pid);
            if !is_here {
                probes.judge_process(*pid, None);
            }
            is_here
        });
    }

    /// Hands over what there is; where there is no room, it is kept.
    fn hand_over(&mut self) {
        let piece = self.take_piece();
        match self.queue.try_send(piece) {
            Ok(()) => self.handed_over = Instant::now(),
            Err(TrySendError::Full(piece)) => self.output = piece.output,
            Err(TrySendError::Disconnected(_)) => self.is_closed = true,
        }
    }

    /// The end: waits for room.
    fn hand_over_last(&mut self) {
        let piece = self.take_piece();
        self.is_closed |= self.queue.send(piece).is_err();
    }

    fn take_piece(&mut self) -> Piece {
        // As much room as it took this time: growing anew would move all of it several times.
        let next = Output { calls: Vec::with_capacity(self.output.calls.len()), ..Output::default() };
        let output = std::mem::replace(&mut self.output, next);
        Piece { output, traffic_now: clock::now(), end: false }
    }
}

/// Says how each ability went that is not there, and by which way requests are seen.
fn tell(probes: Option<&Probes>, report: Vec<Capability>) {
    for Capability { name, problem, lost } in report {
        if let Some(problem) = problem {
            tracing::warn!(problem, lost, "eBPF: no {name}");
        }
    }
    if let Some(probes) = probes {
        tracing::info!(step = probes.step().name(), "eBPF: requests are seen in processes");
    }
}
