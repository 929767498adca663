//! The programs that tell about the host, with what makes rows of their records, and C programs to look at.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use metaflow_agent::clock;
use metaflow_agent::events::host::{self, Event};
use metaflow_agent::incidents::{FileRow, Incidents, LifeRow};
use metaflow_agent::probes::host::{EventSettings, HostProbes, ProfileSettings};
use metaflow_agent::profile::{Profile, Row, Symbols};

/// The machine is shared: patience costs nothing where all goes well.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
pub(crate) const FREQUENCY: u32 = 99;

/// Stacks of one process.
pub(crate) struct Sampled {
    probes: HostProbes,
    profile: Profile,
    symbols: Symbols,
}

impl Sampled {
    pub(crate) fn start(on_cpu: bool, off_cpu: bool) -> Self {
        let settings = ProfileSettings { on_cpu, off_cpu, frequency: FREQUENCY, only_listed: false };
        let (probes, report) = HostProbes::profile(&settings);
        let mut probes = probes.unwrap_or_else(|| panic!("{report:#?}"));
        assert!(report.iter().all(|ability| ability.problem.is_none()), "{report:#?}");
        probes.set_odds(u32::MAX);
        Self { probes, profile: Profile::new(FREQUENCY), symbols: Symbols::default() }
    }

    /// Rows of a process, until they are as expected.
    pub(crate) fn until(&mut self, pid: u32, is_so: impl Fn(&[Row]) -> bool) -> Vec<Row> {
        let started = Instant::now();
        let mut rows: Vec<Row> = Vec::new();
        while !is_so(&rows) {
            assert!(started.elapsed() < PATIENCE, "{rows:#?}");
            let Self { probes, profile, symbols } = self;
            symbols.tick(started.elapsed().as_millis() as u64);
            probes.poll(&mut |record| match host::read(record).unwrap() {
                Event::Stack(stack) => profile.stack(stack, symbols),
                Event::Wake { time, thread } => profile.wake(thread, time),
                other => panic!("{other:?}"),
            });
            let taken = profile.take(clock::monotonic_ns(), [1, 2], |_, _| true, |_| "it".into());
            rows.extend(taken.into_iter().filter(|row| row.pid == pid));
            std::thread::park_timeout(PAUSE);
        }
        rows
    }

    pub(crate) fn program_ids(&self) -> Vec<u32> {
        self.probes.program_ids()
    }
}

/// Calls on files, and lives of processes.
pub(crate) struct Witness {
    probes: HostProbes,
    incidents: Incidents,
    pub(crate) files: Vec<FileRow>,
    pub(crate) lives: Vec<LifeRow>,
}

impl Witness {
    pub(crate) fn start(settings: &EventSettings) -> Self {
        let (probes, report) = HostProbes::events(settings);
        let probes = probes.unwrap_or_else(|| panic!("{report:#?}"));
        assert!(report.iter().all(|ability| ability.problem.is_none()), "{report:#?}");
        let mut incidents = Incidents::default();
        incidents.set_clock(clock::wall_minus_monotonic_us());
        Self { probes, incidents, files: Vec::new(), lives: Vec::new() }
    }

    /// Takes in what is there.
    pub(crate) fn look(&mut self) {
        let Self { probes, incidents, files, lives } = self;
        while probes.poll(&mut |record| match host::read(record).unwrap() {
            Event::File(call) => files.extend(incidents.file(call)),
            Event::Life(life) => lives.extend(incidents.life(life)),
            other => panic!("{other:?}"),
        }) > 0
        {}
    }

    pub(crate) fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{:#?} {:#?}", self.files, self.lives);
            self.look();
            std::thread::park_timeout(PAUSE);
        }
    }
}

/// Waits until something is so; else what is wrong.
pub(crate) fn until(wrong: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{wrong}");
        std::thread::park_timeout(PAUSE);
    }
}

/// A C program that runs until it is dropped.
pub(crate) struct Program {
    child: Child,
}

impl Program {
    pub(crate) fn start(path: &Path) -> Self {
        Self { child: Command::new(path).stdin(Stdio::null()).spawn().unwrap() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Where programs lie that were compiled before: in a system without a compiler.
const PROGRAMS: &str = "METAFLOW_TEST_PROGRAMS";

/// Compiles a C program of this folder into another one, with frame pointers and as little cleverness as keeps functions apart.
pub(crate) fn compile(folder: &Path, name: &str) -> PathBuf {
    if let Some(programs) = std::env::var_os(PROGRAMS) {
        return Path::new(&programs).join(name);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/host_events/{name}.c"));
    let program = folder.join(name);
    let done =
        Command::new("cc").args(["-O0", "-fno-omit-frame-pointer", "-o"]).arg(&program).arg(&source).status();
    assert!(done.unwrap().success());
    program
}
