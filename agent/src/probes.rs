//! The eBPF programs in the kernel: loaded, attached, read. With `probes/*`, the only files that know the library for it.
//!
//! What a kernel can do is found out by loading, never by its version, from the best step of the ladder down ([`Step`]). Everything hangs on
//! descriptors of this process: when it ends, however it ends, the kernel takes the programs away.
//! Leaves out: what records mean (`events`, `sockets`).

mod binary;
mod constants;
mod costs;
pub mod host;
mod libraries;
mod plain;
mod reader;
mod rivals;
mod types;

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError, RawTracePoint},
};
use bpf_abi::{counter, skips, verdict};

pub use self::costs::{ProgramCost, Verified, program_costs};

use self::plain::PlainProbes;
pub use self::rivals::{Rival, holder, loaded_program_ids};
use self::types::Types;
use crate::config;
use crate::sockets::Judgement;

/// The programs, as `./dev bpf` builds them from `bpf/probes`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/object/probes.o");

/// Numbers in the kernel's value of a socket.
const WISH_WORDS: usize = size_of::<bpf_abi::Wish>() / size_of::<u32>();
/// Records taken in one go: bounds how long other work of the thread waits.
pub const RECORDS_MAX: usize = 16_384;

/// What is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Memory for records that wait for the agent; a power of two.
    pub ring_bytes: u32,
    /// Payload of one transfer that is copied.
    pub payload_max: u32,
    pub excluded_ports: Vec<u16>,
    /// Not empty: traffic from or to these ports alone.
    pub only_ports: Vec<u16>,
    /// Only processes with the verdict [`Verdict::Listed`].
    pub only_listed: bool,
    /// Plain text of TLS libraries.
    pub tls: bool,
    /// The best step that may be tried.
    pub first_step: Step,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ring_bytes: 8 << 20,
            payload_max: 2_047,
            excluded_ports: Vec::new(),
            only_ports: Vec::new(),
            only_listed: false,
            tls: true,
            first_step: Step::SocketLayer,
        }
    }
}

impl Settings {
    /// As the configuration says.
    pub fn new(config: &config::Ebpf, excluded_ports: Vec<u16>) -> Self {
        let config::Ebpf {
            enabled: _,
            tls,
            payload_max,
            ring,
            sockets_max: _,
            only_ports,
            only_processes,
            excluded_processes: _,
        } = config;
        let default = Self::default();
        Self {
            ring_bytes: u32::try_from(ring.0).unwrap_or(default.ring_bytes),
            payload_max: u32::try_from(payload_max.0).unwrap_or(default.payload_max),
            excluded_ports,
            only_ports: only_ports.clone(),
            only_listed: !only_processes.is_empty(),
            tls: *tls,
            first_step: default.first_step,
        }
    }
}

/// How data of sockets is seen; the best first. What comes after the last one is packets alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Tracepoints of the socket layer: nothing is added to other system calls.
    SocketLayer,
    /// The end of every system call.
    CallEnd,
    /// Their beginning, too, and nothing that needs types of the kernel at the place of a program.
    CallBoth,
}

impl Step {
    /// The ladder.
    pub const ALL: [Self; 3] = [Self::SocketLayer, Self::CallEnd, Self::CallBoth];

    pub fn name(self) -> &'static str {
        match self {
            Self::SocketLayer => "socket tracepoints (sock_send_length, sock_recv_length)",
            Self::CallEnd => "end of system calls (sys_exit)",
            Self::CallBoth => "beginning and end of system calls (raw sys_enter, sys_exit)",
        }
    }

    /// What is lost without it: the next step is taken.
    fn lost(self) -> &'static str {
        match self {
            Self::SocketLayer => {
                "the end of every system call of the host is looked at instead: about 0.1 us each"
            }
            Self::CallEnd => "their beginning is looked at, too: about twice the cost",
            Self::CallBoth => ALL_LOST,
        }
    }
}

/// The agent's word on a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Ignore,
    /// Looked at, where only listed processes are.
    Listed,
}

impl Verdict {
    fn number(self) -> u32 {
        match self {
            Self::Ignore => verdict::IGNORE,
            Self::Listed => verdict::LISTED,
        }
    }
}

/// An ability, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    pub name: &'static str,
    /// None: it works.
    pub problem: Option<String>,
    /// What is lost without it.
    pub lost: &'static str,
}

/// What was not seen since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Records that found no room in the ring.
    pub dropped: u64,
    /// Transfers whose bytes could not be seen.
    pub unseen: u64,
    /// Transfers of Unix sockets that are no streams: they are not looked at.
    pub unix_datagrams: u64,
    /// What was handed to io_uring, where it is not told which of it are transfers.
    pub submitted: u64,
}

/// Programs at work.
pub struct Probes {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    sockets: HashMap<MapData, u64, [u32; WISH_WORDS]>,
    processes: HashMap<MapData, u32, u32>,
    counters: PerCpuArray<MapData, u64>,
    /// Unix sockets whose path was told.
    named: HashMap<MapData, u64, u64>,
    step: Step,
    plain: Option<PlainProbes>,
}

impl Probes {
    /// Tries the ladder. Says how each ability went, also when there are no probes in the end.
    pub fn open(settings: &Settings) -> (Option<Self>, Vec<Capability>) {
        let mut report = Vec::new();
        // Kernels before 5.11 count maps against this limit; without the right to change it, loading says so.
        let unlimited = rustix::process::Rlimit { current: None, maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited).ok();
        let btf = match kernel_types() {
            Ok(btf) => btf,
            Err(problem) => {
                report.push(Capability {
                    name: "kernel types (BTF)",
                    problem: Some(problem),
                    lost: ALL_LOST,
                });
                return (None, report);
            }
        };
        let mut found = None;
        for step in Step::ALL.into_iter().skip_while(|step| *step != settings.first_step) {
            let result = Self::load(settings, step, &btf);
            let problem = result.as_ref().err().cloned();
            report.push(Capability { name: step.name(), problem, lost: step.lost() });
            found = result.ok();
            if found.is_some() {
                break;
            }
        }
        let Some(mut probes) = found else { return (None, report) };
        let problem = Types::parse(&btf.bytes).and_then(|types| constants::unix(&types)).err();
        report.push(Capability {
            name: "streams of Unix sockets",
            problem: problem.map(|error| error.to_string()),
            lost: "what programs of one host ask each other by Unix sockets stays unseen",
        });
        let problem = (probes.step != Step::SocketLayer)
            .then(|| "the socket tracepoints alone tell of them".to_owned());
        report.push(Capability { name: IO_URING, problem, lost: IO_URING_LOST });
        probes.attach_threads(&btf.library, &mut report);
        let problems = match PlainProbes::load(&mut probes.ebpf, settings.tls) {
            Ok((plain, [go, tokio, rust])) => {
                probes.plain = Some(plain);
                [None, go, tokio, rust]
            }
            Err(problem) => [(); 4].map(|()| Some(problem.clone())),
        };
        let inside = [(TLS, TLS_LOST), (GO, GO_LOST), (TOKIO, TOKIO_LOST), (RUST, RUST_LOST)];
        for ((name, lost), problem) in inside.into_iter().zip(problems) {
            report.push(Capability { name, problem, lost });
        }
        let problem = (!plain::has_cookies()).then(|| "probes carry no numbers before Linux 5.15".to_owned());
        report.push(Capability { name: GO_FIRST, problem, lost: GO_FIRST_LOST });
        (Some(probes), report)
    }

    fn load(settings: &Settings, step: Step, btf: &KernelTypes) -> Result<Self, String> {
        let by_address = step != Step::SocketLayer;
        let constants = Types::parse(&btf.bytes)
            .and_then(|types| constants::constants(&types, settings, std::process::id(), by_address))
            .map_err(|error| error.to_string())?;
        let go_registers = constants::go_registers(plain::has_cookies());
        let (excluded, included) =
            (constants::port_set(&settings.excluded_ports), constants::port_set(&settings.only_ports));
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf.library))
            .override_global("CONSTANTS", &constants[..], true)
            .override_global("EXCLUDED_PORTS", &excluded[..], true)
            .override_global("INCLUDED_PORTS", &included[..], true)
            .override_global("GO_REGISTERS", &go_registers[..], true)
            .map_max_entries("EVENTS", settings.ring_bytes)
            .load(OBJECT)
            .map_err(|error| explain(&error))?;
        attach(&mut ebpf, step, &btf.library)?;
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| format!("the object has no map {name}"));
        Ok(Self {
            ring: RingBuf::try_from(take("EVENTS")?).map_err(|error| explain(&error))?,
            sockets: HashMap::try_from(take("SOCKETS")?).map_err(|error| explain(&error))?,
            processes: HashMap::try_from(take("PROCESSES")?).map_err(|error| explain(&error))?,
            counters: PerCpuArray::try_from(take("COUNTERS")?).map_err(|error| explain(&error))?,
            named: HashMap::try_from(take("NAMED")?).map_err(|error| explain(&error))?,
            ebpf,
            step,
            plain: None,
        })
    }

    fn attach_threads(&mut self, btf: &Btf, report: &mut Vec<Capability>) {
        let ebpf = &mut self.ebpf;
        let result = match self.step {
            Step::SocketLayer | Step::CallEnd => trace_btf(ebpf, "thread_exit", "sched_process_exit", btf)
                .and_then(|()| trace_btf(ebpf, "exec", "sched_process_exec", btf)),
            Step::CallBoth => trace_raw(ebpf, "thread_exit_raw", "sched_process_exit")
                .and_then(|()| trace_raw(ebpf, "exec_raw", "sched_process_exec")),
        };
        report.push(Capability {
            name: "ends of threads, new programs (sched_process_exit, sched_process_exec)",
            problem: result.err(),
            lost: "the memory of a thread stays for a while; a TLS library in a new program is found up to a second later",
        });
    }

    pub fn step(&self) -> Step {
        self.step
    }

    /// Hands over the records that are there, up to a bound and until `each` has enough; gives their number.
    pub fn poll(&mut self, each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> usize {
        for taken in 0..RECORDS_MAX {
            let Some(record) = self.ring.next() else { return taken };
            if each(&record).is_break() {
                return taken + 1;
            }
        }
        RECORDS_MAX
    }

    /// Says what the kernel is to do with a socket from now on. A full map is no error: the socket is looked at as before.
    pub fn judge_socket(&mut self, socket: u64, judgement: Judgement) {
        // As `bpf_abi::Wish` has them.
        let wish = match judgement {
            Judgement::NoPayload => Some([verdict::NO_PAYLOAD, 0, 0, 0]),
            Judgement::Ignore => Some([verdict::IGNORE, 0, 0, 0]),
            Judgement::Skip { sent, received } => {
                let bit = |is_told: bool, bit: u32| if is_told { bit } else { 0 };
                let told = bit(sent.is_some(), skips::SENT) | bit(received.is_some(), skips::RECEIVED);
                Some([0, told, sent.unwrap_or(0), received.unwrap_or(0)])
            }
            Judgement::Forget => None,
        };
        let result = match wish {
            Some(wish) => self.sockets.insert(socket, wish, 0),
            None => {
                // Most sockets have no path.
                self.named.remove(&socket).ok();
                self.sockets.remove(&socket)
            }
        };
        if let Err(error) = result {
            tracing::trace!(%error, socket, "no verdict on a socket");
        }
    }

    pub fn judge_process(&mut self, pid: u32, verdict: Option<Verdict>) {
        let result = match verdict {
            Some(verdict) => self.processes.insert(pid, verdict.number(), 0),
            None => self.processes.remove(&pid),
        };
        if let Err(error) = result {
            tracing::debug!(%error, pid, "no verdict on a process");
        }
    }

    /// A process began to run a program: its libraries are looked at soon.
    pub fn began(&mut self, pid: u32, now_ms: u64) {
        if let Some(plain) = &mut self.plain {
            plain.began(pid, now_ms);
        }
    }

    /// A slice of the search for programs and libraries; `now_ms` is a clock that never goes back.
    pub fn search_libraries(&mut self, now_ms: u64) {
        if let Some(plain) = &mut self.plain {
            plain.search(&mut self.ebpf, now_ms);
        }
    }

    /// Files that are probed, programs and libraries with TLS, Go or tokio in them, and the number of probes in each.
    pub fn probed_files(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.plain.iter().flat_map(PlainProbes::probed)
    }

    /// Whether a file of a process is probed.
    pub fn looks_into(&self, pid: u32) -> bool {
        self.plain.as_ref().is_some_and(|plain| plain.looks_into(pid))
    }

    /// Tries the ladder where no other agent's programs are in the kernel: two would see everything twice.
    pub fn open_alone(settings: &Settings) -> Result<(Option<Self>, Vec<Capability>), Rival> {
        if let Some(rival) = Rival::find() {
            return Err(rival);
        }
        let (probes, report) = Self::open(settings);
        // Of two that begin in the same moment, the one stays whose programs have the smaller numbers.
        let own = probes.as_ref().map(Self::program_ids).unwrap_or_default();
        match own.iter().min().and_then(|first| rivals::find(&own, *first)) {
            Some(rival) => Err(rival),
            None => Ok((probes, report)),
        }
    }

    /// The kernel's numbers of the programs that are loaded.
    pub fn program_ids(&self) -> Vec<u32> {
        rivals::ids(&self.ebpf)
    }

    /// How much of each program the verifier looked at.
    pub fn verified(&self) -> Vec<Verified> {
        costs::verified(&self.ebpf)
    }

    pub fn losses(&self) -> Losses {
        let sum =
            |index: u32| self.counters.get(&index, 0).map_or(0, |values| values.iter().copied().sum::<u64>());
        Losses {
            dropped: sum(counter::DROPPED),
            unseen: sum(counter::UNSEEN),
            unix_datagrams: sum(counter::UNIX_DATAGRAMS),
            submitted: sum(counter::SUBMITTED),
        }
    }
}

const ALL_LOST: &str = "requests are seen in packets alone: no TLS, no threads, no links from a request to the requests it causes";
const IO_URING: &str = "lengths of what goes through io_uring";
const IO_URING_LOST: &str = "what goes through io_uring stays unseen at the end that uses it; what is handed to it is counted (io_uring_submissions)";
const TLS: &str = "TLS libraries (uprobes)";
const TLS_LOST: &str = "requests inside TLS stay unseen";
const RUST: &str = "TLS of Rust programs that have symbols (uprobes on rustls)";
const RUST_LOST: &str = "requests inside TLS of Rust programs stay unseen";
const GO: &str = "goroutines and TLS of Go (uprobes)";
const GO_LOST: &str =
    "what a Go program asks while it works for a request is not linked to it; its TLS stays unseen";
const GO_FIRST: &str = "goroutines from the first one of a process on (numbers of uprobes)";
const GO_FIRST_LOST: &str = "what a Go program does in its first second, until the agent has looked into it, is linked by threads alone";
const TOKIO: &str = "tasks of tokio (uprobes)";
const TOKIO_LOST: &str =
    "which request a task works for is guessed from the order of what its process reads and writes";

struct KernelTypes {
    bytes: Vec<u8>,
    library: Btf,
}

fn kernel_types() -> Result<KernelTypes, String> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    let bytes = std::fs::read(PATH)
        .map_err(|error| format!("{PATH}: {error} (a kernel with CONFIG_DEBUG_INFO_BTF is needed)"))?;
    let library = Btf::parse(&bytes, object::Endianness::default()).map_err(|error| explain(&error))?;
    Ok(KernelTypes { bytes, library })
}

/// The programs of a step. What a kernel may lack comes first: nothing else need be loaded then.
fn attach(ebpf: &mut Ebpf, step: Step, btf: &Btf) -> Result<(), String> {
    match step {
        Step::SocketLayer => {
            trace_btf(ebpf, "send_length", "sock_send_length", btf)?;
            trace_btf(ebpf, "recv_length", "sock_recv_length", btf)?;
            trace_btf(ebpf, "set_state", "inet_sock_set_state", btf)
        }
        Step::CallEnd => {
            trace_btf(ebpf, "set_state", "inet_sock_set_state", btf)?;
            trace_raw(ebpf, "sys_exit", "sys_exit")
        }
        Step::CallBoth => {
            trace_raw(ebpf, "set_state_raw", "inet_sock_set_state")?;
            trace_raw(ebpf, "call_ends", "sys_exit")?;
            trace_raw(ebpf, "call_begins", "sys_enter")
        }
    }
}

fn trace_btf(ebpf: &mut Ebpf, program: &str, tracepoint: &str, btf: &Btf) -> Result<(), String> {
    let program: &mut BtfTracePoint = find(ebpf, program)?;
    program.load(tracepoint, btf).and_then(|()| program.attach().map(drop)).map_err(|error| {
        let problem = explain(&error);
        if problem.contains("unknown BTF type") {
            return format!("this kernel has no tracepoint {tracepoint}");
        }
        problem
    })
}

fn trace_raw(ebpf: &mut Ebpf, program: &str, tracepoint: &str) -> Result<(), String> {
    let program: &mut RawTracePoint = find(ebpf, program)?;
    program.load().and_then(|()| program.attach(tracepoint).map(drop)).map_err(|error| explain(&error))
}

fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut aya::programs::Program: TryInto<&'a mut P, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    program.try_into().map_err(|error: ProgramError| explain(&error))
}

/// An error with its causes; the verifier's log, which may be long, is cut to its end, where the reason is.
fn explain(error: &dyn std::error::Error) -> String {
    /// Characters of a log that are kept.
    const LOG_MAX: usize = 400;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    if text.contains("Operation not permitted") || text.contains("EPERM") {
        return "no rights: run as root or grant CAP_BPF and CAP_PERFMON".to_owned();
    }
    let text: Cow<'_, str> = match text.char_indices().rev().nth(LOG_MAX) {
        Some((at, _)) => Cow::Owned(format!("... {}", &text[at..])),
        None => Cow::Owned(text),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
