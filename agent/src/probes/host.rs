//! The programs that tell about the host beside requests: stacks of threads, slow calls on files, lives of processes.
//!
//! Loaded apart from those for requests, each group with a ring of its own: one may be off, or not be possible, while others work, and what
//! nodes set takes effect without touching the rest. Maps that a group does not use are made as small as can be.

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
    programs::{
        PerfEvent,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use bpf_abi::{
    counter,
    host::{Sample, constant},
};

use super::constants;
use super::types::{Error, Types};
use super::{
    Capability, KernelTypes, OBJECT, Settings, Verdict, Verified, costs, explain, find, kernel_types, rivals,
    trace_btf, trace_raw,
};

/// Name of a program that whoever samples stacks has loaded; and of one for lives of processes.
const PROFILER: &str = "on_cpu";
const WITNESS: &str = "life_exit";
/// Records taken in one go.
const RECORDS_MAX: usize = 8_192;
/// Maps of the programs for requests.
const UNUSED: [&str; 3] = ["SOCKETS", "MESSAGES", "TLS_CALLS"];
/// Records of so many milliseconds find room in a ring while the agent does something else.
const ROOM_MS: u64 = 400;

/// Which stacks are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileSettings {
    pub on_cpu: bool,
    pub off_cpu: bool,
    /// Samples a second and CPU.
    pub frequency: u32,
    /// Only processes with the verdict [`Verdict::Listed`].
    pub only_listed: bool,
}

/// Which incidents are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSettings {
    pub processes: bool,
    /// Calls on files that take so many microseconds or more.
    pub files_from_us: Option<u32>,
}

/// A group of programs at work.
pub struct HostProbes {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    processes: HashMap<MapData, u32, u32>,
    odds: Array<MapData, u32>,
    counters: PerCpuArray<MapData, u64>,
}

impl HostProbes {
    /// Samples of stacks. Says how each ability went; none where there is none.
    pub fn profile(settings: &ProfileSettings) -> (Option<Self>, Vec<Capability>) {
        let ProfileSettings { on_cpu, off_cpu, frequency, only_listed } = *settings;
        let cpus = online_cpus().map_or(1, |cpus| cpus.len() as u64);
        // Waits have a budget of their own, in samples a second.
        let samples = cpus * u64::from(frequency) * ROOM_MS / 1_000 + if off_cpu { 1_024 } else { 0 };
        let bytes = (samples * size_of::<Sample>() as u64).clamp(256 << 10, 16 << 20).next_power_of_two();
        let wanted = Settings { only_listed, ..Settings::default() };
        let loaded = Self::load(&wanted, u32::try_from(bytes).unwrap_or(1 << 20), 0, &["FILE_CALLS"]);
        let parts: [(bool, &'static str, &'static str, Attach); 2] = [
            (
                on_cpu,
                "functions that compute (perf_event: cpu-clock)",
                "there are no flame graphs of computing time",
                |probes, _, frequency| probes.attach_clock(frequency),
            ),
            (
                off_cpu,
                "functions that wait (sched_switch)",
                "there are no flame graphs of waiting time",
                |probes, btf, _| trace_btf(&mut probes.ebpf, "off_cpu", "sched_switch", btf),
            ),
        ];
        attach_all(loaded, parts, frequency)
    }

    /// Slow calls on files, and lives of processes.
    pub fn events(settings: &EventSettings) -> (Option<Self>, Vec<Capability>) {
        let EventSettings { processes, files_from_us } = *settings;
        let loaded =
            Self::load(&Settings::default(), 512 << 10, files_from_us.unwrap_or(u32::MAX), &["WAITING"]);
        let parts: [(bool, &'static str, &'static str, Attach); 3] = [
            (
                processes,
                "lives of processes (sched_process_fork, sched_process_exec, sched_process_exit, signal_generate)",
                "there are no events of processes",
                |probes, btf, _| {
                    trace_btf(&mut probes.ebpf, "life_start", "sched_process_fork", btf)?;
                    trace_btf(&mut probes.ebpf, "life_exec", "sched_process_exec", btf)?;
                    trace_btf(&mut probes.ebpf, "life_exit", "sched_process_exit", btf)?;
                    trace_btf(&mut probes.ebpf, "life_signal", "signal_generate", btf)
                },
            ),
            (
                processes,
                "lack of memory (mark_victim)",
                "a process that the kernel kills for memory shows as killed alone",
                |probes, _, _| trace_raw(&mut probes.ebpf, "life_oom", "mark_victim"),
            ),
            (
                files_from_us.is_some(),
                "slow calls on files (sys_enter, sys_exit)",
                "there are no events of files",
                |probes, _, _| {
                    trace_raw(&mut probes.ebpf, "file_enter", "sys_enter")?;
                    trace_raw(&mut probes.ebpf, "file_exit", "sys_exit")
                },
            ),
        ];
        attach_all(loaded, parts, 0)
    }

    fn load(
        settings: &Settings,
        ring_bytes: u32,
        file_latency_us: u32,
        unused: &[&str],
    ) -> Result<(Self, Btf), String> {
        let KernelTypes { bytes, library } = kernel_types()?;
        let (constants, own) = Types::parse(&bytes)
            .and_then(|types| {
                let constants = constants::constants(&types, settings, std::process::id(), false)?;
                Ok((constants, own_constants(&types, file_latency_us)?))
            })
            .map_err(|error| error.to_string())?;
        // Some megabytes, while programs are loaded.
        drop(bytes);
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&library))
            .override_global("CONSTANTS", &constants[..], true)
            .override_global("HOST_CONSTANTS", &own[..], true)
            .map_max_entries("EVENTS", ring_bytes);
        for map in UNUSED.iter().chain(unused) {
            loader.map_max_entries(map, 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| explain(&error))?;
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| format!("the object has no map {name}"));
        let probes = Self {
            ring: RingBuf::try_from(take("EVENTS")?).map_err(|error| explain(&error))?,
            processes: HashMap::try_from(take("PROCESSES")?).map_err(|error| explain(&error))?,
            odds: Array::try_from(take("ODDS")?).map_err(|error| explain(&error))?,
            counters: PerCpuArray::try_from(take("COUNTERS")?).map_err(|error| explain(&error))?,
            ebpf,
        };
        Ok((probes, library))
    }

    /// The clock of the software: it ticks on every machine, virtual ones too, and takes no counter from anybody.
    fn attach_clock(&mut self, frequency: u32) -> Result<(), String> {
        let cpus = online_cpus().map_err(|(_, error)| error.to_string())?;
        let program: &mut PerfEvent = find(&mut self.ebpf, PROFILER)?;
        program.load().map_err(|error| explain(&error))?;
        let period = SamplePolicy::Period(1_000_000_000 / u64::from(frequency.max(1)));
        for cpu in cpus {
            program
                .attach(
                    PerfEventConfig::Software(SoftwareEvent::CpuClock),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    period,
                    false,
                )
                .map_err(|error| explain(&error))?;
        }
        Ok(())
    }

    /// Hands over the records that are there, up to a bound; gives their number.
    pub fn poll(&mut self, each: &mut dyn FnMut(&[u8])) -> usize {
        for taken in 0..RECORDS_MAX {
            let Some(record) = self.ring.next() else { return taken };
            each(&record);
        }
        RECORDS_MAX
    }

    /// As [`super::Probes::judge_process`].
    pub fn judge_process(&mut self, pid: u32, verdict: Option<Verdict>) {
        let result = match verdict {
            Some(verdict) => self.processes.insert(pid, verdict.number(), 0),
            None => self.processes.remove(&pid),
        };
        if let Err(error) = result {
            tracing::debug!(%error, pid, "no verdict on a process");
        }
    }

    /// The chance of a wait to be told, of 2^32.
    pub fn set_odds(&mut self, odds: u32) {
        if let Err(error) = self.odds.set(0, odds, 0) {
            tracing::debug!(%error, "no chance of waits");
        }
    }

    /// Records that were lost in the kernel.
    pub fn dropped(&self) -> u64 {
        self.counters.get(&counter::DROPPED, 0).map_or(0, |values| values.iter().copied().sum())
    }

    /// The kernel's numbers of the programs that are loaded.
    pub fn program_ids(&self) -> Vec<u32> {
        rivals::ids(&self.ebpf)
    }

    /// How much of each program the verifier looked at.
    pub fn verified(&self) -> Vec<Verified> {
        costs::verified(&self.ebpf)
    }
}

/// Attaches a part of a group; the last argument is the frequency of samples.
type Attach = fn(&mut HostProbes, &Btf, u32) -> Result<(), String>;

/// Tries each part that is wanted; the group is there when one works.
fn attach_all<const PARTS: usize>(
    loaded: Result<(HostProbes, Btf), String>,
    parts: [(bool, &'static str, &'static str, Attach); PARTS],
    frequency: u32,
) -> (Option<HostProbes>, Vec<Capability>) {
    let mut report = Vec::new();
    let mut loaded = loaded;
    let mut works = false;
    for (is_wanted, name, lost, attach) in parts {
        if !is_wanted {
            continue;
        }
        let problem = match &mut loaded {
            Ok((probes, btf)) => attach(probes, btf, frequency).err(),
            Err(problem) => Some(problem.clone()),
        };
        works |= problem.is_none();
        report.push(Capability { name, problem, lost });
    }
    (loaded.ok().filter(|_| works).map(|(probes, _)| probes), report)
}

/// Whether another agent samples stacks, or tells of processes, on this host. For one that has programs itself: an agent whose have smaller numbers,
/// so that of two that begin in the same moment one stays.
pub fn is_in_use(own: &[u32]) -> bool {
    let first = own.iter().min().copied().unwrap_or(u32::MAX);
    rivals::programs_of(&[PROFILER, WITNESS], own, first).next().is_some()
}

/// Numbers of pread64, pwrite64, preadv, pwritev, preadv2, pwritev2, fsync, fdatasync.
#[cfg(target_arch = "x86_64")]
const FILE_CALLS: [u32; 8] = [17, 18, 295, 296, 327, 328, 74, 75];
#[cfg(target_arch = "aarch64")]
const FILE_CALLS: [u32; 8] = [67, 68, 69, 70, 286, 287, 82, 83];

/// The array `HOST_CONSTANTS` of the programs.
fn own_constants(types: &Types<'_>, file_latency_us: u32) -> Result<[u32; constant::COUNT], Error> {
    let mut all = [0; constant::COUNT];
    for (index, forms) in FIELDS {
        let mut found = Err(Error::Form("a field has no form"));
        for (structure, field) in forms {
            found = found.or_else(|_| types.offset(structure, field));
        }
        all[index] = found?;
    }
    all[constant::NR_PREAD..][..FILE_CALLS.len()].copy_from_slice(&FILE_CALLS);
    all[constant::FILE_LATENCY_US] = file_latency_us;
    Ok(all)
}

/// Where each constant comes from. Of several forms of a field in time, the first that the kernel has.
const FIELDS: [(usize, &[(&str, &str)]); 19] = [
    (constant::TASK_PID, &[("task_struct", "pid")]),
    (constant::TASK_TGID, &[("task_struct", "tgid")]),
    (constant::TASK_COMM, &[("task_struct", "comm")]),
    (constant::TASK_PARENT, &[("task_struct", "real_parent")]),
    (constant::TASK_EXIT_CODE, &[("task_struct", "exit_code")]),
    (constant::TASK_START_TIME, &[("task_struct", "start_time")]),
    (constant::TASK_MM, &[("task_struct", "mm")]),
    (constant::TASK_STATE, &[("task_struct", "__state"), ("task_struct", "state")]),
    (constant::TASK_SIGNAL, &[("task_struct", "signal")]),
    (constant::SIGNAL_LIVE, &[("signal_struct", "live")]),
    (constant::BPRM_FILENAME, &[("linux_binprm", "filename")]),
    (constant::FILE_DENTRY, &[("file", "f_path.dentry")]),
    (constant::FILE_MOUNT, &[("file", "f_path.mnt")]),
    (constant::DENTRY_PARENT, &[("dentry", "d_parent")]),
    (constant::DENTRY_NAME, &[("dentry", "d_name.name")]),
    (constant::VFSMOUNT_ROOT, &[("vfsmount", "mnt_root")]),
    (constant::MOUNT_VFSMOUNT, &[("mount", "mnt")]),
    (constant::MOUNT_PARENT, &[("mount", "mnt_parent")]),
    (constant::MOUNT_MOUNTPOINT, &[("mount", "mnt_mountpoint")]),
];
