//! TLS libraries that processes have mapped, as /proc tells it.
//!
//! A library is known by its file, not by its name: containers have files of their own, and a probe on a file counts for every process
//! that has mapped it, also for those that begin later. So only files that nobody had before need to be found.

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

/// A TLS library in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) key: FileKey,
    /// Through the root of the process, whose container may have another view of files.
    pub(super) path: PathBuf,
}

/// The TLS libraries of a process; none when it is gone.
pub(super) fn of_process(pid: u32) -> Vec<Library> {
    let mut text = String::new();
    let read = File::open(format!("/proc/{pid}/maps"))
        .and_then(|file| file.take(MAPS_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => parse(&text, pid),
        Err(_) => Vec::new(),
    }
}

/// Numbers of all processes.
pub(super) fn processes() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Lines like `7f2c-7f3d r-xp 00001000 fd:01 123456 /usr/lib/libssl.so.3`.
fn parse(text: &str, pid: u32) -> Vec<Library> {
    let mut found: Vec<Library> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(_), Some(rights), Some(_), Some(device), Some(inode), Some(path)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if rights.as_bytes().get(2) != Some(&b'x') || !is_tls(path) || fields.next().is_some() {
            continue;
        }
        let Ok(inode) = inode.parse() else { continue };
        let key = FileKey { device: device.to_owned(), inode };
        if found.iter().all(|library| library.key != key) {
            found.push(Library { key, path: PathBuf::from(format!("/proc/{pid}/root{path}")) });
        }
    }
    found
}

/// `libssl.so.3`, `libssl-3f2a.so.1.1` as wheels ship it.
fn is_tls(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_prefix("libssl").is_some_and(|rest| rest.starts_with(['.', '-']) && rest.contains(".so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_mappings_of_tls_libraries_are_found_once() {
        let text = "\
7f00-7f01 r--p 00000000 fd:01 11 /usr/lib/libssl.so.3
7f01-7f02 r-xp 00001000 fd:01 11 /usr/lib/libssl.so.3
7f02-7f03 r-xp 00001000 fd:01 11 /usr/lib/libssl.so.3
7f03-7f04 r-xp 00001000 fd:01 12 /usr/lib/libssl3.so
7f04-7f05 r-xp 00001000 00:2a 13 /app/numpy.libs/libssl-3f2a.so.1.1
7f05-7f06 r-xp 00001000 fd:01 14 /usr/lib/libssl.so.1.1 (deleted)
7f06-7f07 r-xp 00000000 00:00 0  [vdso]
7f07-7f08 rw-p 00000000 00:00 0
";
        let found: Vec<_> =
            parse(text, 9).into_iter().map(|library| (library.key.inode, library.path)).collect();
        assert_eq!(
            found,
            [
                (11, PathBuf::from("/proc/9/root/usr/lib/libssl.so.3")),
                (13, PathBuf::from("/proc/9/root/app/numpy.libs/libssl-3f2a.so.1.1")),
            ]
        );
    }
}
