//! Probes on TLS libraries: found bit by bit, attached by file, detached when no process has the file mapped any more.

use std::collections::{BTreeMap, HashMap, HashSet};

use aya::Ebpf;
use aya::programs::uprobe::{UProbeLinkId, UProbeScope};
use aya::programs::{ProgramError, UProbe};

use super::libraries::{self, FileKey, Library};
use super::{explain, find};

/// Functions of a library: at its entry and at its return stand these programs. The first two must be there.
const FUNCTIONS: [(&str, &str); 4] = [
    ("SSL_read", "tls_read"),
    ("SSL_write", "tls_write"),
    ("SSL_read_ex", "tls_read_ex"),
    ("SSL_write_ex", "tls_write_ex"),
];
const ENTRY: &str = "tls_enter";

/// Processes whose mappings are read in one slice: a millisecond at most.
const SLICE: usize = 8;
/// How often the list of processes is read.
const LIST_EVERY_MS: u64 = 500;
/// A young process loads its libraries bit by bit: it is looked at again at these ages.
const YOUNG_AGES_MS: [u64; 5] = [30, 100, 300, 1_000, 3_000];
/// After that it is looked at so often; it may load a library late.
const OLD_EVERY_MS: u64 = 10_000;
/// Files that are probed at one time.
const FILES_MAX: usize = 256;

/// A process of the search.
struct Process {
    /// When it was first seen to run its program.
    began_ms: u64,
    looks: usize,
    files: Vec<FileKey>,
}

/// A file with probes.
struct Probed {
    links: Vec<(&'static str, UProbeLinkId)>,
    /// None: the file could not be probed; it is not tried again.
    is_good: bool,
}

/// The search and what it found.
pub(super) struct PlainProbes {
    processes: HashMap<u32, Process>,
    /// When to look at which process.
    due: BTreeMap<(u64, u32), ()>,
    listed_ms: Option<u64>,
    files: HashMap<FileKey, Probed>,
}

impl PlainProbes {
    /// Loads the programs; whether the kernel attaches them is tried on this process's own C library.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self, String> {
        for name in [ENTRY].into_iter().chain(FUNCTIONS.map(|(_, program)| program)) {
            let program: &mut UProbe = find(ebpf, name)?;
            program.load().map_err(|error| explain(&error))?;
        }
        try_attach(ebpf)?;
        Ok(Self { processes: HashMap::new(), due: BTreeMap::new(), listed_ms: None, files: HashMap::new() })
    }

    pub(super) fn looks_into(&self, pid: u32) -> bool {
        let files = self.processes.get(&pid).map_or(&[][..], |process| &process.files);
        files.iter().any(|key| self.files.get(key).is_some_and(|file| file.is_good))
    }

    pub(super) fn began(&mut self, pid: u32, now_ms: u64) {
        self.forget(pid);
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
                return;
            };
            if due > now_ms {
                return;
            }
            self.due.remove(&(due, pid));
            self.look(ebpf, pid, now_ms);
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
        self.processes.insert(pid, Process { began_ms, looks: 0, files: Vec::new() });
        self.due.insert((began_ms, pid), ());
    }

    fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.due.retain(|(_, other), ()| *other != pid);
    }

    fn look(&mut self, ebpf: &mut Ebpf, pid: u32, now_ms: u64) {
        let found = libraries::of_process(pid);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.files = found.iter().map(|library| library.key.clone()).collect();
        let age = now_ms.saturating_sub(process.began_ms);
        let next = YOUNG_AGES_MS.iter().find(|young| **young > age);
        process.looks += 1;
        // Kernel threads and programs that are settled are spread over the interval by their number.
        let due = match next {
            Some(young) => process.began_ms + young,
            None => now_ms + OLD_EVERY_MS + u64::from(pid % 1_000),
        };
        self.due.insert((due, pid), ());
        for library in found {
            self.probe(ebpf, library, pid);
        }
    }

    fn probe(&mut self, ebpf: &mut Ebpf, library: Library, pid: u32) {
        if self.files.contains_key(&library.key) {
            return;
        }
        if self.files.len() >= FILES_MAX {
            tracing::warn!(files = FILES_MAX, path = %library.path.display(), "too many TLS libraries: one is not looked at");
            return;
        }
        let mut links = Vec::new();
        let result = attach(ebpf, &library, &mut links);
        match &result {
            Ok(()) => tracing::info!(path = %library.path.display(), pid, "TLS library is looked at"),
            Err(problem) => {
                detach(ebpf, &mut links);
                tracing::debug!(path = %library.path.display(), pid, problem, "TLS library cannot be looked at");
            }
        }
        // A process that ended meanwhile took the path along; the file may be found again through another one.
        if result.is_ok() || library.path.exists() {
            self.files.insert(library.key, Probed { links, is_good: result.is_ok() });
        }
    }

    /// Detaches from files that no process has mapped.
    fn let_go(&mut self, ebpf: &mut Ebpf) {
        let used: HashSet<&FileKey> = self.processes.values().flat_map(|process| &process.files).collect();
        let unused: Vec<FileKey> = self.files.keys().filter(|key| !used.contains(key)).cloned().collect();
        for key in unused {
            if let Some(mut file) = self.files.remove(&key) {
                detach(ebpf, &mut file.links);
            }
        }
    }
}

fn attach(
    ebpf: &mut Ebpf,
    library: &Library,
    links: &mut Vec<(&'static str, UProbeLinkId)>,
) -> Result<(), String> {
    for (index, (function, at_return)) in FUNCTIONS.into_iter().enumerate() {
        for program_name in [ENTRY, at_return] {
            let program: &mut UProbe = find(ebpf, program_name)?;
            match program.attach(function, &library.path, UProbeScope::AllProcesses) {
                Ok(link) => links.push((program_name, link)),
                // Older libraries lack the second pair.
                Err(_) if index >= 2 => {}
                Err(error) => return Err(explain(&error)),
            }
        }
    }
    Ok(())
}

fn detach(ebpf: &mut Ebpf, links: &mut Vec<(&'static str, UProbeLinkId)>) {
    for (name, link) in links.drain(..) {
        let result = find::<UProbe>(ebpf, name).map(|program| program.detach(link));
        if let Ok(Err(error)) | Err(error) = result.map(|result| result.map_err(|error| explain(&error))) {
            tracing::debug!(error, "a probe could not be detached");
        }
    }
}

/// Attaches to a function of this process that nobody calls, and detaches.
fn try_attach(ebpf: &mut Ebpf) -> Result<(), String> {
    let program: &mut UProbe = find(ebpf, ENTRY)?;
    let result: Result<(), ProgramError> = program
        .attach(0u64, "/proc/self/exe", UProbeScope::CallingProcess)
        .and_then(|link| program.detach(link));
    result.map_err(|error| explain(&error))
}
