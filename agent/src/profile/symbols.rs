//! Names of functions, from what is mapped in a process and from the files that it is mapped from.
//!
//! All is cached and bounded: mappings by address space, functions by file, names by address. Files are opened as the process sees them,
//! whatever its container. What has no name is shown as its file in brackets, so that it still has a place.

use std::{
    fs::File,
    io::{BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustc_hash::FxHashMap;

use super::{
    Names, UNKNOWN,
    elf::Functions,
    kernel::KernelSymbols,
    maps::{self, Mapping},
};

/// Address spaces that are remembered, and how long after their last use.
const SPACES_MAX: usize = 4_096;
const SPACE_KEPT_MS: u64 = 60_000;
/// Names that are remembered of one address space.
const NAMES_MAX: usize = 16_384;
/// Functions of files that are remembered.
const FILES_BYTES_MAX: usize = 16 << 20;
const FILES_MAX: usize = 512;
/// Mappings change while a process loads libraries: they are read anew soon at first, later at most so often.
const REREAD_FIRST_MS: u64 = 20;
const REREAD_AFTER_MS: u64 = 1_000;
const MAPS_BYTES_MAX: u64 = 4 << 20;
const PERF_MAP_BYTES_MAX: u64 = 16 << 20;
const KERNEL_BYTES_MAX: u64 = 64 << 20;
/// Longest name that is shown.
const SHOWN_MAX: usize = 256;

/// A file, wherever it is mounted.
type FileKey = (String, u64);

#[derive(Debug)]
struct Space {
    pid: u32,
    mappings: Vec<Mapping>,
    read_ms: u64,
    /// How long after that they may be read again.
    pause_ms: u64,
    used_ms: u64,
    names: FxHashMap<u64, Arc<str>>,
    /// Text of the compiler's map, and its functions as places in it. Empty: there is none.
    compiled: Vec<(u64, u64, Arc<str>)>,
    compiled_bytes: u64,
    /// When the map was looked for last.
    compiled_ms: Option<u64>,
}

#[derive(Debug)]
struct Known {
    /// None: it cannot be read, or has no functions.
    functions: Option<Functions>,
    used_ms: u64,
}

/// What is known of processes, files and the kernel.
#[derive(Debug, Default)]
pub struct Symbols {
    now_ms: u64,
    spaces: FxHashMap<u64, Space>,
    files: FxHashMap<FileKey, Known>,
    kernel: Option<KernelSymbols>,
    kernel_names: FxHashMap<u64, Arc<str>>,
}

impl Symbols {
    /// Moves the clock, which never goes back, and forgets what was not used for long.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.spaces.retain(|_, space| now_ms < space.used_ms + SPACE_KEPT_MS);
        while self.files.len() > FILES_MAX || self.file_bytes() > FILES_BYTES_MAX {
            let oldest = self.files.iter().min_by_key(|(_, known)| known.used_ms);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            self.files.remove(&key);
        }
        if self.kernel_names.len() > NAMES_MAX {
            self.kernel_names.clear();
        }
    }

    /// Reads what is mapped in a process while it is there; names may be asked for when it is gone.
    pub fn meet(&mut self, pid: u32, space: u64) {
        let now_ms = self.now_ms;
        if space == 0 || self.spaces.contains_key(&space) || self.spaces.len() >= SPACES_MAX {
            return;
        }
        let mut met = Space {
            pid,
            mappings: Vec::new(),
            read_ms: now_ms,
            pause_ms: REREAD_FIRST_MS,
            used_ms: now_ms,
            names: FxHashMap::default(),
            compiled: Vec::new(),
            compiled_bytes: 0,
            compiled_ms: None,
        };
        met.read();
        self.spaces.insert(space, met);
    }

    fn file_bytes(&self) -> usize {
        self.files.values().filter_map(|known| Some(known.functions.as_ref()?.bytes())).sum()
    }
}

impl Names for Symbols {
    fn user(&mut self, pid: u32, space: u64, address: u64, is_call: bool) -> Arc<str> {
        // A call that is the last instruction of its function returns to the next one.
        let address = address.wrapping_sub(u64::from(is_call));
        self.meet(pid, space);
        let Self { spaces, files, now_ms, .. } = self;
        let Some(space) = spaces.get_mut(&space) else { return UNKNOWN.into() };
        space.used_ms = *now_ms;
        if let Some(name) = space.names.get(&address) {
            return Arc::clone(name);
        }
        if maps::find(&space.mappings, address).is_none() && *now_ms >= space.read_ms + space.pause_ms {
            space.read_ms = *now_ms;
            space.pause_ms = (2 * space.pause_ms).min(REREAD_AFTER_MS);
            space.read();
        }
        let (name, is_final) = space.name(address, files, *now_ms);
        let name: Arc<str> = name.into();
        if is_final && space.names.len() < NAMES_MAX {
            space.names.insert(address, Arc::clone(&name));
        }
        name
    }

    fn kernel(&mut self, address: u64, is_call: bool) -> Arc<str> {
        let address = address.wrapping_sub(u64::from(is_call));
        if let Some(name) = self.kernel_names.get(&address) {
            return Arc::clone(name);
        }
        let kernel = self.kernel.get_or_insert_with(|| {
            let file = File::open("/proc/kallsyms").map(|file| BufReader::new(file.take(KERNEL_BYTES_MAX)));
            let symbols = file.map(KernelSymbols::read).unwrap_or_default();
            if symbols.is_empty() {
                tracing::warn!("functions of the kernel have no names: /proc/kallsyms needs CAP_SYSLOG");
            }
            symbols
        });
        let name: Arc<str> = format!("[k] {}", kernel.name(address).unwrap_or("kernel")).into();
        self.kernel_names.insert(address, Arc::clone(&name));
        name
    }
}

impl Space {
    fn read(&mut self) {
        let path = PathBuf::from(format!("/proc/{}/maps", self.pid));
        // A process that is gone leaves what was known of it.
        let Some(text) = read_text(&path, MAPS_BYTES_MAX) else { return };
        let mappings = maps::parse(&text);
        if !mappings.is_empty() {
            self.mappings = mappings;
        }
    }

    /// A name, and whether it will stay the same.
    fn name(&mut self, address: u64, files: &mut FxHashMap<FileKey, Known>, now_ms: u64) -> (String, bool) {
        let Some(mapping) = maps::find(&self.mappings, address) else {
            return (UNKNOWN.to_owned(), false);
        };
        // Memory of a compiler has no file, or one without a name of its own.
        if mapping.inode == 0 || mapping.path.starts_with("/memfd:") || mapping.path.starts_with("/dev/zero")
        {
            if mapping.path.starts_with("[v") {
                return (mapping.path.clone(), true);
            }
            return (self.compiled(address, now_ms), false);
        }
        let mapping = mapping.clone();
        let key = (mapping.device.clone(), mapping.inode);
        let known = files
            .entry(key)
            .or_insert_with(|| Known { functions: open_file(self.pid, &mapping), used_ms: now_ms });
        known.used_ms = now_ms;
        let offset = address - mapping.start + mapping.offset;
        let name = known.functions.as_ref().and_then(|functions| functions.name(offset));
        (name.map_or_else(|| format!("[{}]", clean(mapping.file_name())), |name| shown(&name)), true)
    }

    /// A function that a just-in-time compiler made, if it says so in `/tmp/perf-PID.map`.
    fn compiled(&mut self, address: u64, now_ms: u64) -> String {
        let find = |entries: &[(u64, u64, Arc<str>)]| {
            let after = entries.partition_point(|(start, _, _)| *start <= address);
            let (start, size, name) = entries.get(after.checked_sub(1)?)?;
            (address - start < *size).then(|| shown(name))
        };
        if let Some(name) = find(&self.compiled) {
            return name;
        }
        if self.compiled_ms.is_none_or(|looked| now_ms >= looked + REREAD_AFTER_MS) {
            self.compiled_ms = Some(now_ms);
            self.read_compiled();
        }
        find(&self.compiled).unwrap_or_else(|| "[anonymous memory]".to_owned())
    }

    fn read_compiled(&mut self) {
        // The compiler writes the number that the process has in its own namespace.
        let status = read_text(&PathBuf::from(format!("/proc/{}/status", self.pid)), 64 << 10);
        let own = status.as_deref().and_then(own_pid).unwrap_or(self.pid);
        let path = PathBuf::from(format!("/proc/{}/root/tmp/perf-{own}.map", self.pid));
        let Ok(length) = std::fs::metadata(&path).map(|file| file.len()) else { return };
        if length == self.compiled_bytes {
            return;
        }
        self.compiled_bytes = length;
        let Some(text) = read_text(&path, PERF_MAP_BYTES_MAX) else { return };
        let entries = maps::perf_map(&text).into_iter();
        self.compiled = entries.map(|(start, size, name)| (start, size, name.into())).collect();
    }
}

/// The number of a process in its innermost namespace.
fn own_pid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

/// Opens the mapped file itself, also when another one has its path by now.
fn open_file(pid: u32, mapping: &Mapping) -> Option<Functions> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let exact = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let file = File::open(exact).ok().or_else(|| {
        let path = root.join(mapping.path.trim_start_matches('/'));
        let file = File::open(path).ok()?;
        (file.metadata().ok()?.ino() == mapping.inode).then_some(file)
    })?;
    // A device or a pipe is no program, and reading it may do something.
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    Functions::open(file, &root)
}

/// A name as its language writes it.
fn shown(name: &str) -> String {
    let plain = if let Ok(rust) = rustc_demangle::try_demangle(name) {
        format!("{rust:#}")
    } else if name.starts_with("_Z") {
        let parsed = cpp_demangle::Symbol::new(name).ok();
        let options = cpp_demangle::DemangleOptions::new().no_params().no_return_type();
        let plain = parsed.and_then(|symbol| symbol.demangle_with_options(&options).ok());
        plain.unwrap_or_else(|| name.to_owned())
    } else {
        // Versions of the C library's functions.
        name.split('@').next().unwrap_or(name).to_owned()
    };
    clean(&plain)
}

/// What separates frames or lines cannot stand in a name.
fn clean(name: &str) -> String {
    name.chars().map(|c| if c == ';' || c.is_control() { ':' } else { c }).take(SHOWN_MAX).collect()
}

fn read_text(path: &Path, bytes_max: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(bytes_max).read_to_end(&mut bytes).ok()?;
    Some(
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_their_language_writes_them() {
        for (name, expected) in [
            ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_ZN5Shape4areaEid", "Shape::area"),
            ("main", "main"),
            ("memcpy@@GLIBC_2.14", "memcpy"),
            ("lambda;1\n", "lambda:1:"),
            ("_Znonsense", "_Znonsense"),
        ] {
            assert_eq!(shown(name), expected);
        }
    }

    #[test]
    fn functions_of_this_process_have_names() {
        let mut symbols = Symbols::default();
        let address = functions_of_this_process_have_names as fn() as usize as u64;
        let name = symbols.user(std::process::id(), 1, address, false);
        assert!(name.ends_with("symbols::tests::functions_of_this_process_have_names"), "{name}");
        assert_eq!(&*symbols.user(std::process::id(), 1, 8, false), "[unknown]");
        assert_eq!(&*symbols.user(u32::MAX, 2, address, false), "[unknown]");
    }

    #[test]
    fn code_of_a_compiler_has_the_names_that_it_writes() {
        let pid = std::process::id();
        let own = own_pid(&std::fs::read_to_string("/proc/self/status").unwrap()).unwrap();
        let path = format!("/tmp/perf-{own}.map");
        let mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            offset: 0,
            device: "00:00".to_owned(),
            inode: 0,
            path: String::new(),
        };
        let mut symbols = Symbols::default();
        symbols.meet(pid, 1);
        symbols.spaces.get_mut(&1).unwrap().mappings = vec![mapping];
        assert_eq!(&*symbols.user(pid, 1, 0x1010, false), "[anonymous memory]");
        std::fs::write(&path, "1000 20 py::work:/app.py\n").unwrap();
        symbols.tick(REREAD_AFTER_MS);
        let name = symbols.user(pid, 1, 0x1010, false);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&*name, "py::work:/app.py");
        assert_eq!(&*symbols.user(pid, 1, 0x1030, false), "[anonymous memory]");
    }

    #[test]
    fn the_innermost_number_of_a_process_counts() {
        assert_eq!(own_pid("Name:\tx\nNSpid:\t4711\t12\t1\n"), Some(1));
        assert_eq!(own_pid("Name:\tx\n"), None);
    }
}
