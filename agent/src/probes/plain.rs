//! Probes in programs and libraries: files are found bit by bit, probed once each, and let go of when no process has them mapped any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{HashMap as KernelMap, MapData};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope};
use aya::programs::{ProgramError, UProbe};

use super::binary::{self, Findings};
use super::libraries::{self, FileKey, Mapped};
use super::reader::{Examined, Reader};
use super::{explain, find};
use crate::facts::OWN;

/// Processes whose mappings are read in one slice: a millisecond at most.
const SLICE: usize = 8;
/// Files that are probed in one slice: some twenty probes each, 0.1 ms a probe.
const PROBED_SLICE: usize = 2;
/// How often the list of processes is read.
const LIST_EVERY_MS: u64 = 500;
/// A young process loads its libraries bit by bit: it is looked at again at these ages.
const YOUNG_AGES_MS: [u64; 6] = [30, 100, 200, 400, 1_000, 3_000];
/// After that it is looked at so often; it may load a library late.
const OLD_EVERY_MS: u64 = 10_000;
/// Files that are known at one time; most of them are of no interest.
const FILES_MAX: usize = 16_384;
/// Descriptors that this process may have, if the host allows it: each probe is one.
const DESCRIPTORS: u64 = 65_536;

/// A process of the search.
struct Process {
    /// When it was first seen to run its program.
    began_ms: u64,
    files: Vec<FileKey>,
    /// The programs know that it runs Go.
    is_go: bool,
}

/// A file that some process runs.
enum State {
    /// It is being looked into.
    Waiting,
    /// There is nothing in it, or it cannot be probed.
    Nothing,
    Probed {
        name: PathBuf,
        links: Vec<(&'static str, UProbeLinkId)>,
        findings: Findings,
    },
}

/// The search and what it found.
pub(super) struct PlainProbes {
    reader: Reader,
    go_processes: KernelMap<MapData, u32, u64>,
    /// Programs that could not be loaded are not attached.
    refused: Vec<&'static str>,
    processes: HashMap<u32, Process>,
    /// When to look at which process.
    due: BTreeMap<(u64, u32), ()>,
    listed_ms: Option<u64>,
    files: HashMap<FileKey, State>,
    is_full: bool,
}

impl PlainProbes {
    /// Loads the programs; whether the kernel attaches them is tried on this process's own program. The second result says what went wrong with
    /// Go, with tokio, and with rustls.
    pub(super) fn load(ebpf: &mut Ebpf, tls: bool) -> Result<(Self, [Option<String>; 3]), String> {
        load(ebpf, binary::programs())?;
        try_attach(ebpf)?;
        let parts = [&binary::GO_PROGRAMS[..], &binary::TOKIO_PROGRAMS[..], &binary::RUST_PROGRAMS[..]];
        let problems = parts.map(|programs| load(ebpf, programs.iter().copied()).err());
        let mut refused = Vec::new();
        for (programs, _) in parts.iter().zip(&problems).filter(|(_, problem)| problem.is_some()) {
            refused.extend_from_slice(programs);
        }
        let map = ebpf.take_map("GO_PROCESSES").ok_or("the object has no map GO_PROCESSES")?;
        allow_descriptors();
        let search = Self {
            reader: Reader::start(tls).map_err(|error| explain(&error))?,
            go_processes: KernelMap::try_from(map).map_err(|error| explain(&error))?,
            refused,
            processes: HashMap::new(),
            due: BTreeMap::new(),
            listed_ms: None,
            files: HashMap::new(),
            is_full: false,
        };
        Ok((search, problems))
    }

    pub(super) fn looks_into(&self, pid: u32) -> bool {
        let files = self.processes.get(&pid).map_or(&[][..], |process| &process.files);
        files.iter().any(|key| matches!(self.files.get(key), Some(State::Probed { .. })))
    }

    /// Files that are probed, and the number of probes in each.
    pub(super) fn probed(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.files.values().filter_map(|state| match state {
            State::Probed { name, links, .. } => Some((name.as_path(), links.len())),
            State::Waiting | State::Nothing => None,
        })
    }

    pub(super) fn began(&mut self, pid: u32, now_ms: u64) {
        // What the programs knew of it is gone already, and may be there anew.
        self.processes.remove(&pid);
        self.due.retain(|(_, other), ()| *other != pid);
        self.expect(pid, now_ms);
    }

    /// One slice.
    pub(super) fn search(&mut self, ebpf: &mut Ebpf, now_ms: u64) {
        if self.listed_ms.is_none_or(|listed| now_ms >= listed + LIST_EVERY_MS) {
            let first = self.listed_ms.is_none();
            self.listed_ms = Some(now_ms);
            self.list(ebpf, now_ms, first);
        }
        for _ in 0..SLICE {
            let Some(((due, pid), ())) = self.due.first_key_value().map(|(key, value)| (*key, *value)) else {
                break;
            };
            if due > now_ms {
                break;
            }
            self.due.remove(&(due, pid));
            self.look(pid, now_ms);
        }
        let mut probed = 0;
        while probed < PROBED_SLICE
            && let Some(examined) = self.reader.next()
        {
            probed += usize::from(self.probe(ebpf, examined));
        }
    }

    /// Compares the list of processes with what is known.
    fn list(&mut self, ebpf: &mut Ebpf, now_ms: u64, is_first: bool) {
        let here: HashSet<u32> = libraries::processes().into_iter().collect();
        let gone: Vec<u32> = self.processes.keys().filter(|pid| !here.contains(pid)).copied().collect();
        let any_gone = !gone.is_empty();
        for pid in gone {
            self.forget(pid);
        }
        for pid in here {
            if !self.processes.contains_key(&pid) {
                // Those that were there before the agent are not young: one look now.
                let began = if is_first { now_ms.saturating_sub(OLD_EVERY_MS) } else { now_ms };
                self.expect(pid, began);
            }
        }
        if any_gone {
            self.let_go(ebpf);
        }
    }

    fn expect(&mut self, pid: u32, began_ms: u64) {
        self.processes.insert(pid, Process { began_ms, files: Vec::new(), is_go: false });
        self.due.insert((began_ms, pid), ());
    }

    fn forget(&mut self, pid: u32) {
        if self.processes.remove(&pid).is_some_and(|process| process.is_go) {
            // The programs took it out themselves, where they see ends of processes.
            self.go_processes.remove(&pid).ok();
        }
        self.due.retain(|(_, other), ()| *other != pid);
    }

    fn look(&mut self, pid: u32, now_ms: u64) {
        // A process that looks does not look at itself, and its tasks would pay for it.
        if pid == std::process::id() {
            return;
        }
        let found = libraries::of_process(pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.files = found.iter().map(|mapped| mapped.key.clone()).collect();
        let age = now_ms.saturating_sub(process.began_ms);
        // Kernel threads and programs that are settled are spread over the interval by their number.
        let due = match YOUNG_AGES_MS.iter().find(|young| **young > age) {
            Some(young) => process.began_ms + young,
            None => now_ms + OLD_EVERY_MS + u64::from(pid % 1_000),
        };
        self.due.insert((due, pid), ());
        for mapped in found {
            self.examine(mapped, pid);
        }
        self.tell_go(pid);
    }

    fn examine(&mut self, mapped: Mapped, pid: u32) {
        // Nothing that MetaFlow itself says is reported, so it need not pay for probes.
        if self.files.contains_key(&mapped.key) || mapped.is_named(&OWN) {
            return;
        }
        if self.files.len() >= FILES_MAX {
            if !std::mem::replace(&mut self.is_full, true) {
                tracing::warn!(files = FILES_MAX, "processes run more files than are looked into");
            }
            return;
        }
        let paths = mapped.paths(pid);
        if self.reader.examine(mapped.key.clone(), paths) {
            self.files.insert(mapped.key, State::Waiting);
        }
    }

    /// True when the file was of interest.
    fn probe(&mut self, ebpf: &mut Ebpf, Examined { key, result }: Examined) -> bool {
        let (path, findings) = match result {
            Ok((path, findings)) if !findings.points.is_empty() => (path, findings),
            // A process that ended meanwhile took the path along; the file may be found again through another one.
            Err(binary::Error::Io(_)) => {
                self.files.remove(&key);
                return false;
            }
            Ok(_) => {
                self.files.insert(key, State::Nothing);
                return false;
            }
            Err(problem) => {
                tracing::debug!(%problem, ?key, "a file cannot be looked into");
                self.files.insert(key, State::Nothing);
                return false;
            }
        };
        let name = std::fs::read_link(&path).unwrap_or_else(|_| path.clone());
        let Findings { has_tls, ref go, .. } = findings;
        let mut links = Vec::new();
        let state = match attach(ebpf, &path, &findings, &self.refused, &mut links) {
            Ok(()) => {
                tracing::info!(path = %name.display(), tls = has_tls, go = go.is_some(), "file is probed");
                State::Probed { name, links, findings }
            }
            Err(problem) => {
                tracing::debug!(path = %name.display(), problem, "file cannot be probed");
                self.detach(ebpf, links);
                if !path.exists() {
                    self.files.remove(&key);
                    return true;
                }
                State::Nothing
            }
        };
        let having: Vec<u32> = self
            .processes
            .iter()
            .filter(|(_, process)| process.files.contains(&key))
            .map(|(pid, _)| *pid)
            .collect();
        self.files.insert(key, state);
        for pid in having {
            self.tell_go(pid);
        }
        true
    }

    /// Tells the programs where a process's goroutines are, if it runs Go.
    fn tell_go(&mut self, pid: u32) {
        let Self { processes, files, go_processes, refused, .. } = self;
        if refused.contains(&binary::GO_PROGRAMS[0]) {
            return;
        }
        let Some(process) = processes.get_mut(&pid).filter(|process| !process.is_go) else { return };
        let offsets = process.files.iter().find_map(|key| match files.get(key) {
            Some(State::Probed { findings, .. }) => findings.go,
            _ => None,
        });
        let Some(offsets) = offsets else { return };
        match go_processes.insert(pid, offsets, 0) {
            Ok(()) => process.is_go = true,
            Err(error) => tracing::debug!(%error, pid, "goroutines of a process are not seen"),
        }
    }

    /// Detaches from files that no process has mapped.
    fn let_go(&mut self, ebpf: &mut Ebpf) {
        let used: HashSet<&FileKey> = self.processes.values().flat_map(|process| &process.files).collect();
        let unused: Vec<FileKey> = self
            .files
            .iter()
            .filter(|(key, state)| !used.contains(key) && !matches!(state, State::Waiting))
            .map(|(key, _)| key.clone())
            .collect();
        for key in unused {
            if let Some(State::Probed { links, .. }) = self.files.remove(&key) {
                self.detach(ebpf, links);
            }
        }
        self.is_full = false;
    }

    fn detach(&self, ebpf: &mut Ebpf, links: Vec<(&'static str, UProbeLinkId)>) {
        let mut taken = Vec::new();
        for (name, link) in links {
            match find::<UProbe>(ebpf, name).map(|program| program.take_link(link)) {
                Ok(Ok(link)) => taken.push(link),
                Ok(Err(error)) => tracing::debug!(%error, "a probe could not be detached"),
                Err(error) => tracing::debug!(error, "a probe could not be detached"),
            }
        }
        if !taken.is_empty() {
            self.reader.let_go(taken);
        }
    }
}

fn load(ebpf: &mut Ebpf, names: impl Iterator<Item = &'static str>) -> Result<(), String> {
    for name in names {
        let program: &mut UProbe = find(ebpf, name)?;
        program.load().map_err(|error| explain(&error))?;
    }
    Ok(())
}

fn attach(
    ebpf: &mut Ebpf,
    path: &Path,
    findings: &Findings,
    refused: &[&str],
    links: &mut Vec<(&'static str, UProbeLinkId)>,
) -> Result<(), String> {
    for point in &findings.points {
        if refused.contains(&point.program) {
            continue;
        }
        let program: &mut UProbe = find(ebpf, point.program)?;
        let cookie = findings.go.filter(|_| has_cookies() && binary::GO_PROGRAMS.contains(&point.program));
        let point_with =
            UProbeAttachPoint { location: UProbeAttachLocation::AbsoluteOffset(point.offset), cookie };
        let link =
            program.attach(point_with, path, UProbeScope::AllProcesses).map_err(|error| explain(&error))?;
        links.push((point.program, link));
    }
    Ok(())
}

/// Whether this kernel's probes can carry a number (since 5.15).
pub(super) fn has_cookies() -> bool {
    let features = aya::features();
    features.bpf_cookie() && features.bpf_perf_link()
}

/// Attaches to a place in this process's program that is never run, and detaches.
fn try_attach(ebpf: &mut Ebpf) -> Result<(), String> {
    let program: &mut UProbe = find(ebpf, binary::ENTRY)?;
    let result: Result<(), ProgramError> = program
        .attach(0u64, "/proc/self/exe", UProbeScope::CallingProcess)
        .and_then(|link| program.detach(link));
    result.map_err(|error| explain(&error))
}

/// Raises the limit of this process as far as it may.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::debug!(%error, "the limit of descriptors stays as it is");
    }
}
