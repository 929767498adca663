//! The eBPF programs with what makes calls of their records, and child processes to look at.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metaflow_agent::clock;
use metaflow_agent::events;
use metaflow_agent::probes::{Losses, Probes, Settings, Step, Verdict, Verified};
use metaflow_agent::sockets::{Call, Config, Judgement, Sockets};

/// The machine is shared: patience costs nothing where all goes well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether this kernel has what the first step needs: it names its tracepoints among its types.
pub(crate) fn has_socket_tracepoints() -> bool {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
    memchr::memmem::find(&types, b"\0btf_trace_sock_send_length\0").is_some()
}

/// The steps that this kernel has.
pub(crate) fn steps() -> impl Iterator<Item = Step> {
    Step::ALL.into_iter().filter(|step| *step != Step::SocketLayer || has_socket_tracepoints())
}

pub(crate) struct Watch {
    probes: Probes,
    sockets: Sockets,
    calls: Vec<Call>,
    started: Instant,
    /// Events and bytes of payload by port of either end.
    events: HashMap<u16, (u64, u64)>,
    skips_told: usize,
    sockets_left: usize,
    dark: Vec<u32>,
}

impl Watch {
    pub(crate) fn start(settings: Settings) -> Self {
        let (probes, report) = Probes::open(&settings);
        let probes = probes.unwrap_or_else(|| panic!("{report:#?}"));
        let expected = match settings.first_step {
            Step::SocketLayer if !has_socket_tracepoints() => Step::CallEnd,
            step => step,
        };
        assert_eq!(probes.step(), expected, "{report:#?}");
        let config =
            Config { sockets_max: 65_536, session: Arc::default(), tls: settings.tls, trace_base: 0 };
        let mut sockets = Sockets::new(config);
        sockets.set_clock(clock::wall_minus_monotonic_us());
        let mut watch = Self {
            probes,
            sockets,
            calls: Vec::new(),
            started: Instant::now(),
            events: HashMap::new(),
            skips_told: 0,
            sockets_left: 0,
            dark: Vec::new(),
        };
        // The libraries of programs that run already.
        for _ in 0..50 {
            watch.look();
        }
        watch
    }

    /// Takes in what is there.
    pub(crate) fn look(&mut self) {
        let Self { probes, sockets, calls, events: counts, .. } = self;
        let mut began = Vec::new();
        probes.poll(&mut |record| {
            if let Ok(event) = events::read(record) {
                if let events::Event::Exec { task } = event {
                    began.push(task.pid);
                }
                if let events::Event::Transfer { ends, data, .. } = event {
                    for port in [ends.local.port(), ends.remote.port()] {
                        let (events, bytes) = counts.entry(port).or_default();
                        (*events, *bytes) = (*events + 1, *bytes + data.payload.len() as u64);
                    }
                }
                sockets.event(&event, calls);
            }
            ControlFlow::Continue(())
        });
        let now_ms = self.started.elapsed().as_millis() as u64;
        for pid in began {
            probes.began(pid, now_ms);
        }
        probes.search_libraries(now_ms);
        sockets.tick(clock::monotonic_ns(), calls);
        self.dark.extend(sockets.take_dark());
        for (socket, judgement) in sockets.take_judgements() {
            self.sockets_left += usize::from(judgement == Judgement::Ignore);
            self.skips_told += usize::from(matches!(judgement, Judgement::Skip { .. }));
            probes.judge_socket(socket, judgement);
        }
    }

    /// Runs a command to its end and gives its output.
    pub(crate) fn run(&mut self, command: &mut Command) -> String {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{command:?} does not end");
            self.look();
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a Python program.
    pub(crate) fn python(&mut self, program: &str, arguments: &[&str]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(program.as_bytes()).unwrap();
        self.run(Command::new("/usr/bin/python3").arg(file.path()).args(arguments))
    }

    /// Starts a Python program that serves until it is dropped.
    pub(crate) fn serve(&self, program: &str, arguments: &[&str]) -> Served {
        Served::start(Command::new("/usr/bin/python3").arg("-c").arg(program).args(arguments))
    }

    /// Looks until something is so.
    pub(crate) fn until(&mut self, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{:#?}", self.calls);
            self.look();
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Until the TLS library of a program is found.
    pub(crate) fn wait_for_libraries(&mut self, served: &Served) {
        self.until(|watch| watch.probes.looks_into(served.id()));
    }

    pub(crate) fn step(&self) -> Step {
        self.probes.step()
    }

    pub(crate) fn losses(&self) -> Losses {
        self.probes.losses()
    }

    /// Probes, as the kernel gave descriptors for them, beyond those that are said to be in files.
    pub(crate) fn other_descriptors(&self) -> usize {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let names = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        names.filter(|name| name.to_str().is_some_and(|name| name.contains("bpf_link"))).count()
            - self.probes.probed_files().map(|(_, probes)| probes).sum::<usize>()
    }

    /// Probes in files of a folder.
    pub(crate) fn probes_below(&self, folder: &Path) -> usize {
        let files = self.probes.probed_files().filter(|(path, _)| path.starts_with(folder));
        files.map(|(_, probes)| probes).sum()
    }

    pub(crate) fn program_ids(&self) -> Vec<u32> {
        self.probes.program_ids()
    }

    pub(crate) fn verified(&self) -> Vec<Verified> {
        self.probes.verified()
    }

    /// A process that is looked at where only listed ones are.
    pub(crate) fn list_process(&mut self, pid: u32) {
        self.probes.judge_process(pid, Some(Verdict::Listed));
    }

    /// Transfers whose bytes could not be seen.
    pub(crate) fn unseen(&self) -> u64 {
        self.probes.losses().unseen
    }

    /// Processes whose TLS stayed unseen.
    pub(crate) fn dark(&self) -> &[u32] {
        &self.dark
    }

    /// How often the kernel was told to leave the rest of a body uncopied.
    pub(crate) fn skips_told(&self) -> usize {
        self.skips_told
    }

    /// Transfers from or to a port.
    pub(crate) fn events(&self, port: u16) -> u64 {
        self.events.get(&port).map_or(0, |(events, _)| *events)
    }

    /// How often the kernel was told to leave a socket alone.
    pub(crate) fn sockets_left(&self) -> usize {
        self.sockets_left
    }

    /// Bytes of payload that the kernel copied of them.
    pub(crate) fn copied(&self, port: u16) -> u64 {
        self.events.get(&port).map_or(0, |(_, bytes)| *bytes)
    }

    /// Calls to a port, once there are so many.
    pub(crate) fn calls_until(&mut self, port: u16, count: usize) -> Vec<Call> {
        let deadline = Instant::now() + PATIENCE;
        while self.calls_to(port).len() < count {
            assert!(
                Instant::now() < deadline,
                "{} of {count} at {:?}, {:?}: {:#?}",
                self.calls_to(port).len(),
                self.step(),
                self.losses(),
                self.calls_to(port)
            );
            self.look();
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.calls_to(port)
    }

    /// Calls through the Unix socket of a path.
    pub(crate) fn calls_through(&self, path: &str) -> Vec<Call> {
        self.calls.iter().filter(|call| call.session.socket_path == path).cloned().collect()
    }

    pub(crate) fn calls_to(&self, port: u16) -> Vec<Call> {
        self.calls.iter().filter(|call| call.facts.ends.server_port == port).cloned().collect()
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A child process with output to read; ended when dropped.
pub(crate) struct Served {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Served {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A line for its input.
    pub(crate) fn say(&mut self, line: &str) {
        let mut input = self.child.stdin.take().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
        self.child.stdin = Some(input);
    }

    /// The next line of its output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it ended");
        line.trim().to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
