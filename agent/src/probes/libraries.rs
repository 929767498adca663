//! Files that processes have mapped to run them, as /proc tells it.
//!
//! A file is known by where it lies on its disk, not by its name: containers have files of their own, and a probe on a file counts for every
//! process that has mapped it, also for those that begin later. So only files that nobody had before need to be looked into.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

/// Longest list of mappings that is read.
const MAPS_MAX: u64 = 4 << 20;

/// A file, wherever it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    device: String,
    inode: u64,
}

/// A program or library in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) key: FileKey,
    range: String,
    path: String,
}

impl Mapped {
    pub(super) fn is_named(&self, names: &[&str]) -> bool {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        path.rsplit('/').next().is_some_and(|name| names.contains(&name))
    }

    /// Ways to the file: the mapping itself leads to files that were deleted or replaced, too; the other one goes through the root of the process,
    /// whose container may have another view of files.
    pub(super) fn paths(&self, pid: u32) -> Vec<PathBuf> {
        let Self { range, path, .. } = self;
        // There, numbers have no zeros before them.
        let range: Vec<&str> = range.split('-').map(|address| address.trim_start_matches('0')).collect();
        let range = range.join("-");
        [format!("/proc/{pid}/map_files/{range}"), format!("/proc/{pid}/root{path}")]
            .map(PathBuf::from)
            .into()
    }
}

/// The files that a process runs; none when it is gone.
pub(super) fn of_process(pid: u32) -> Vec<Mapped> {
    let mut text = String::new();
    let read = File::open(format!("/proc/{pid}/maps"))
        .and_then(|file| file.take(MAPS_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => parse(&text),
        Err(_) => Vec::new(),
    }
}

/// Numbers of all processes.
pub(super) fn processes() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Lines like `7f2c-7f3d r-xp 00001000 fd:01 123456 /usr/lib/libssl.so.3`.
fn parse(text: &str) -> Vec<Mapped> {
    let mut found: Vec<Mapped> = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(6, ' ');
        let (Some(range), Some(rights), Some(_), Some(device), Some(inode), Some(path)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = path.trim_start();
        if rights.as_bytes().get(2) != Some(&b'x') || !path.starts_with('/') {
            continue;
        }
        let Ok(inode) = inode.parse() else { continue };
        let key = FileKey { device: device.to_owned(), inode };
        if found.iter().all(|mapped| mapped.key != key) {
            found.push(Mapped { key, range: range.to_owned(), path: path.to_owned() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_mappings_of_files_are_found_once() {
        let text = "\
7f00-7f01 r--p 00000000 fd:01 11                         /usr/lib/libssl.so.3
7f01-7f02 r-xp 00001000 fd:01 11                         /usr/lib/libssl.so.3
7f02-7f03 r-xp 00001000 fd:01 11                         /usr/lib/libssl.so.3
00401000-0074b000 r-xp 00001000 00:2a 13                         /app/my server
7f05-7f06 r-xp 00001000 fd:01 14                         /usr/lib/libssl.so.1.1 (deleted)
7f06-7f07 r-xp 00000000 00:00 0                          [vdso]
7f07-7f08 rw-p 00000000 00:00 0
";
        let found: Vec<_> =
            parse(text).into_iter().map(|mapped| (mapped.key.inode, mapped.paths(9))).collect();
        let paths = |range: &str, path: &str| {
            vec![
                PathBuf::from(format!("/proc/9/map_files/{range}")),
                PathBuf::from(format!("/proc/9/root{path}")),
            ]
        };
        assert!(parse(text)[1].is_named(&["my server"]) && parse(text)[2].is_named(&["libssl.so.1.1"]));
        assert_eq!(
            found,
            [
                (11, paths("7f01-7f02", "/usr/lib/libssl.so.3")),
                (13, paths("401000-74b000", "/app/my server")),
                (14, paths("7f05-7f06", "/usr/lib/libssl.so.1.1 (deleted)")),
            ]
        );
    }
}
